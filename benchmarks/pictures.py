"""How much memory pictures of the largest size take while they are decoded and shrunk: docs/data.md.

    python benchmarks/pictures.py [--side=8000] [--threads=1,8]

Each kind runs in a process of its own, as `prepare` does: every thread waits for room, decodes, and crops to 256 pixels. The peak
is the largest resident memory that the kernel saw, less that of a process which decodes a tiny picture. Files are of one colour,
so that making them takes little; what decoders hold does not depend on that.
"""

import argparse
import io
import json
import resource
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import process
from PIL import Image

MIB = 2**20
KINDS = ("jpeg", "jpeg p3", "jpeg turned", "progressive", "cmyk", "png", "rgba", "grey", "grey16", "webp")
_MEASURE = "--measure"


def picture(kind: str, side: int) -> bytes:
    """A file of that kind."""
    modes = {"cmyk": "CMYK", "rgba": "RGBA", "grey": "L", "grey16": "I;16"}
    image = Image.new(modes.get(kind, "RGB"), (side, side))
    form = "JPEG" if kind.startswith("jpeg") or kind in ("progressive", "cmyk") else "PNG"
    options: dict[str, Any] = {}
    if kind == "webp":
        form, options = "WEBP", {"method": 0}
    if kind == "progressive":
        options = {"progressive": True}
    if kind == "jpeg turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    if kind == "jpeg p3":
        from tests.data import icc

        options["icc_profile"] = icc.rgb_profile("p3", 2.2)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def measure(source: Path, threads: int, figures: Path) -> None:
    """Decodes twice as many copies as there are threads, and writes the peak of this process."""
    from ec_dit.data import images

    data = source.read_bytes()

    def look(data: bytes) -> np.ndarray:
        with images.room_for(data):
            return images.fit(images.decode(data), (256, 256))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(look, [data] * 2 * threads))
    figures.write_text(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def main() -> None:
    """Makes the files, measures each in processes of their own, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8000)
    parser.add_argument("--threads", default="1,8")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument(_MEASURE, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        source, threads, figures = given.measure
        measure(Path(source), int(threads), Path(figures))
        return
    counts = [int(count) for count in given.threads.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "picture"

        def peak(data: bytes, threads: int) -> float:
            source.write_bytes(data)
            words = ["benchmarks/pictures.py", _MEASURE, str(source), str(threads)]
            return process.figures("pictures", lambda path: [*words, str(path)])["peak"] / MIB

        sys.stdout.write(f"{given.side} x {given.side} pixels, MiB with {counts} threads\n")
        least = [peak(picture("jpeg", 64), count) for count in counts]
        for kind in given.kinds.split(","):
            data = picture(kind, given.side)
            above = [f"{peak(data, count) - none:8.0f}" for count, none in zip(counts, least, strict=True)]
            sys.stdout.write(f"{kind:12}{''.join(above)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
