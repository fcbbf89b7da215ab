"""How fast the loader alone delivers encoded records, and whether its memory stays flat: docs/data.md.

    python benchmarks/loader.py --folder=/somewhere/with/4/GB [--records=4000] [--seconds=60] [--batch=32] [--workers=0]

Writes two sets of random 256-pixel records, 4 x 32 x 32 latents with deviations and 77 x 1280 embeddings: one whose captions all
have 77 tokens, the most there is to read, one whose captions have 8 to 40. A process of its own then reads each for so long, and
says how many images came, what CPU time they took, and how its memory went. M-64E's pod of 128 hosts trains on 4096 images in
0.45 s: 71 images/s for each host.
"""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import process

NEEDED = 4096 / 0.45 / 128
WIDTH, LENGTH = 1280, 77
LENGTHS = {"all 77 tokens": (77, 77), "8 to 40 tokens": (8, 40)}
_MEASURE = "--measure"
_EVERY = 2.0  # seconds between looks at the memory


class RandomEncoders:
    """Random latents, and embeddings of `lengths` tokens at least and at most; stands in for frozen encoders."""

    factor, channels, width, length = 8, 4, WIDTH, LENGTH

    def __init__(self, lengths: tuple[int, int]):
        self._lengths, self._rng = lengths, np.random.default_rng(0)

    def images(self, image_BYXZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation."""
        batch, rows, columns, _ = image_BYXZ.shape
        shape = (batch, rows // 8, columns // 8, 4)
        return self._rng.standard_normal(shape, np.float32), self._rng.random(shape, np.float32)

    def texts(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings and masks."""
        low, high = self._lengths
        counts = self._rng.integers(low, high + 1, len(captions))
        text_BTM = self._rng.standard_normal((len(captions), LENGTH, WIDTH), np.float32)
        return text_BTM, np.arange(LENGTH) < counts[:, None]

    def cut(self, captions: Sequence[str]) -> int:
        """None: they are drawn."""
        return 0


def write(folder: Path, records: int, lengths: tuple[int, int]) -> None:
    """A set of one picture again and again, which nobody looks at."""
    from PIL import Image

    from ec_dit.data.records import Record
    from ec_dit.preparation import units, writing
    from ec_dit.preparation.source import Shard, ranges

    buffer = io.BytesIO()
    Image.new("RGB", (256, 256)).save(buffer, "PNG")

    class Same:
        name, libraries, options = "random", (), lengths_options(lengths)

        def splits(self) -> tuple[str, ...]:
            return ("train",)

        def shards(self) -> list[Shard]:
            return ranges(records)

        def records(self, shard: int) -> Iterator[Record]:
            for index in range(shard * 1000, min(records, (shard + 1) * 1000)):
                yield Record(f"{index:07d}", buffer.getvalue(), (f"picture {index}",))

    facts = {
        "autoencoder": {"sha256": "", "path": "", "factor": 8, "channels": 4},
        "text": {"sha256": [], "paths": [], "width": WIDTH, "length": LENGTH, "lower": False, "type": "bfloat16"},
        "pictures": {"resolution": 256},
    }
    plan = units.EncodingPlan(RandomEncoders(lengths), facts, [(256, 256)])
    report = writing.write(Same(), folder, encoding=plan)
    sys.stdout.write(report.table() + "\n")


def lengths_options(lengths: tuple[int, int]) -> object:
    """Options of a source, as a data set notes them."""
    import dataclasses

    return dataclasses.make_dataclass("Lengths", ["tokens"], frozen=True)(lengths)


def resident() -> int:
    """Memory of this process and its workers, without the files it has mapped, in bytes (Linux)."""
    mine = {os.getpid(), *(int(p) for p in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())}
    total = 0
    for pid in mine:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1]) * 1024
    return total


def measure(folder: Path, seconds: float, batch: int, workers: int, figures: Path) -> None:
    """Reads, and writes what it took."""
    from ec_dit.data import dataset
    from ec_dit.data.loader import Loader
    from ec_dit.data.rows import EncodedRows

    data = dataset.open(folder)
    assert data.encoding is not None
    rows = EncodedRows(data["train"], mean_Z=data.encoding.mean_Z, std_Z=data.encoding.std_Z)
    batches = Loader(rows, batch_size=batch, seed=0, workers=workers).batches()
    for _ in range(10):  # threads, workers and files are open then
        next(batches)
    start, cpu, images = time.monotonic(), time.process_time(), 0
    memory: list[tuple[float, int, int]] = []
    while (now := time.monotonic() - start) < seconds:
        images += len(next(batches).image_BYXZ)
        if now >= _EVERY * len(memory):
            memory.append((now, images, resident()))
    took = time.monotonic() - start
    found = {"images": images, "seconds": took, "cpu": time.process_time() - cpu, "memory": memory}
    figures.write_text(json.dumps(found))


def main() -> None:
    """Writes the sets where they are missing, measures in a process of its own, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    for name, default in (("records", 4000), ("batch", 32), ("workers", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(_MEASURE, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.folder, given.seconds, given.batch, given.workers, given.measure)
        return
    sys.stdout.write(f"{os.cpu_count()} cores; needed by a host of M-64E's pod: {NEEDED:.0f} images/s\n")
    for label, lengths in LENGTHS.items():
        folder = given.folder.absolute() / f"{lengths[0]}_{lengths[1]}"
        if not folder.exists():
            write(folder, given.records, lengths)
        own = ["benchmarks/loader.py", f"--folder={folder}", f"--seconds={given.seconds}", f"--batch={given.batch}"]
        own.append(f"--workers={given.workers}")
        found = process.figures("loader", lambda path, own=own: [*own, f"{_MEASURE}={path}"])
        speed = found["images"] / found["seconds"]
        memory = [bytes_ for _, _, bytes_ in found["memory"]]
        third = max(1, len(memory) // 3)
        early, late = (sum(part) / len(part) / 2**20 for part in (memory[:third], memory[-third:]))
        sys.stdout.write(
            f"{label}: {speed:,.0f} images/s, {speed / NEEDED:.1f} x what is needed, {found['cpu'] / found['seconds']:.1f} cores "
            f"busy in the reading process; {found['images']:,} images, memory {early:.0f} MiB in the first third of the time, "
            f"{late:.0f} MiB in the last (from {min(memory) / 2**20:.0f} to {max(memory) / 2**20:.0f})\n"
        )


if __name__ == "__main__":
    main()
