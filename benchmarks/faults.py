"""What a run survives: killed at random moments, with flipped bits, and given bad input. Writes docs/faults.md.

    python benchmarks/faults.py [--kills=100] [--flips=100] [--only=kills,flips,inputs] [--seed=0]

A tiny model trains on one CPU; nothing is emulated, every run is a process of its own. Two parts at a time;
three quarters of an hour on two cores.
"""

import argparse
import collections
import contextlib
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from board import scalars

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults.md"
STEPS = 40
CONFIG = f"""
from ec_dit import config, presets


def get_config(arg=""):
    c = config.default()
    c.moe.update(routing="expert_choice", num_experts=8)
    c = presets.smoke(c)
    c.model.update(width=32, num_blocks=2, num_heads=2, num_kv_heads=2, head_dim=16)
    c.moe.group_size = "64"
    c.train.update(steps={STEPS}, batch_size=16)
    c.checkpoint.update(every=2, keep=2)
    c.log.update(every=1, validate_every=5, validate_images=32, sample_every=10)
    return c
"""
EMPTY: Mapping[str, str | None] = {}
TIMELESS = re.compile(r"loss|norm|router|learning_rate")  # metrics that two runs share to the bit
SAVING, DELETING, PREPARING = "saving a checkpoint", "deleting a checkpoint", "preparing data"
STARTING, VALIDATING, BETWEEN = "starting or resuming", "validating or drawing", "between saves"
MOMENTS = (SAVING, DELETING, PREPARING, STARTING, VALIDATING, BETWEEN)
SECONDS = 300  # after which a run counts as stuck


class Place:
    """A folder in which runs of one config lie, with the programs they compiled."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "tiny.py").write_text(CONFIG)
        self._env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def command(
        self, module: str, *arguments: str, within: Path | None = None, env: Mapping[str, str | None] = EMPTY
    ) -> subprocess.Popen[str]:
        """Starts an entry point, with variables of `env` set, or taken away where they are None."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=within or self.folder,
            env={name: value for name, value in (self._env | env).items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def train(self, name: str) -> subprocess.Popen[str]:
        """Starts the training of the workdir `name`, on data of its own that the first start prepares."""
        return self.command("ec_dit.main", "--config=tiny.py", f"--workdir={name}", f"--config.data.path=data_{name}")

    def end(self, process: subprocess.Popen[str]) -> tuple[int | None, str]:
        """(exit code, output) of a process that ends by itself; None where it was stuck."""
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0]
        return process.returncode, output


def fingerprint(output: str) -> str | None:
    """Of the final parameters, as a run prints it."""
    found = re.search(r"params_fingerprint=([0-9a-f]{64})$", output, re.MULTILINE)
    return found and found[1]


def metrics(workdir: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> value of what does not depend on the clock, the later line of a step that was run twice."""
    values: dict[tuple[str, int], float] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        if line:
            row = json.loads(line)
            values |= {(name, row["step"]): value for name, value in row.items() if TIMELESS.search(name)}
    return values


@dataclass
class Kills:
    """What became of the runs that were killed."""

    moments: collections.Counter[str] = field(default_factory=collections.Counter)
    runs: int = 0
    faults: list[str] = field(default_factory=list)


def unbroken(place: Place) -> tuple[str, float]:
    """(fingerprint, seconds) of a run that nothing befell; compiled programs and data of its own are left behind."""
    started = time.monotonic()
    code, output = place.end(place.train("unbroken"))
    expected = fingerprint(output)
    if code or expected is None:
        sys.exit(f"the unbroken run failed:\n{output}")
    return expected, time.monotonic() - started


def kills(place: Place, wanted: int, rng: random.Random, expected: str, seconds: float) -> Kills:
    """Kills trainings `wanted` times; each run goes on until it ends, and is compared with the unbroken one."""
    logged = metrics(place.folder / "unbroken")
    drawn = _timeless(scalars(place.folder / "unbroken" / "tensorboard"))
    found = Kills()
    while sum(found.moments.values()) < wanted:
        name = f"killed{found.runs}"
        found.runs += 1
        while (moment := _kill(place, name, seconds, rng)) is not None:
            found.moments[moment] += 1
            if sum(found.moments.values()) % 10 == 0:
                print(f"{sum(found.moments.values())} kills, {found.runs} runs", flush=True)
        code, output = place.end(place.train(name))  # it has ended: once more, it says so again
        workdir = place.folder / name
        if code or fingerprint(output) != expected:
            _note(found.faults, f"{name}: exit code {code}, {output[-400:]}")
        elif metrics(workdir) != logged:
            _note(found.faults, f"{name}: metrics.jsonl differs: {_apart(metrics(workdir), logged)}")
        elif (board := _timeless(scalars(workdir / "tensorboard"))) != drawn:
            _note(found.faults, f"{name}: TensorBoard differs: {_apart(board, drawn)}")
        elif len(kept := [e.name for e in (workdir / "checkpoints").iterdir() if e.name.isdigit()]) != 2:
            _note(found.faults, f"{name}: checkpoints {sorted(kept)} are there, two should be")
        shutil.rmtree(workdir)
        shutil.rmtree(place.folder / f"data_{name}")
    if wanted >= 100 and (missed := [moment for moment in MOMENTS if moment not in found.moments]):
        _note(found.faults, f"no kill fell while {', '.join(missed)}")
    return found


def _note(faults: list[str], fault: str) -> None:
    """Keeps what went wrong, and says it at once: the whole takes long."""
    faults.append(fault)
    print(f"FAULT: {fault}", file=sys.stderr, flush=True)


def _timeless(values: Mapping[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    return {key: value for key, value in values.items() if TIMELESS.search(key[0])}


def _apart(one: Mapping[Any, float], other: Mapping[Any, float]) -> list[Any]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))[:5]


def _kill(place: Place, name: str, seconds: float, rng: random.Random) -> str | None:
    """SIGKILL at a random moment; what the run was doing, None where it ended before."""
    since = time.time()
    process = place.train(name)
    deadline = time.monotonic() + SECONDS
    # Half of the moments are even over time, the others within what such moments would rarely meet.
    wanted = rng.choice((None, None, SAVING, DELETING, PREPARING))
    if wanted == PREPARING and (place.folder / f"data_{name}" / "report.json").exists():
        wanted = None
    until = time.monotonic() + rng.uniform(0, seconds)
    while process.poll() is None:
        doing = _doing(place, name, since)
        if (doing == wanted) if wanted else (time.monotonic() > until):
            time.sleep(rng.uniform(0, 0.05) if wanted in (SAVING, PREPARING) else 0)  # a deletion takes milliseconds
            doing = _doing(place, name, since) if wanted != DELETING else doing
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0]
            if process.returncode != -signal.SIGKILL:
                break
            return doing or _said(output)
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            sys.exit(f"{name} was stuck:\n{process.communicate()[0]}")
        time.sleep(0.001)
    process.communicate()
    return None


def _doing(place: Place, name: str, since: float) -> str:
    """What the disk says that a run which began at the time `since` is doing; '' where it says nothing."""
    saved = place.folder / name / "checkpoints"
    if _touched([place.folder / f".data_{name}.incomplete"], since):
        return PREPARING
    torn = _touched(saved.glob("*orbax-checkpoint-tmp*") if saved.exists() else (), since)
    if any(path.name.endswith("-deleted") for path in torn):
        return DELETING
    return SAVING if torn else ""


def _touched(paths: Iterable[Path], since: float) -> list[Path]:
    """Those that were changed since; what an earlier run left is older."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= since:
                found.append(path)
    return found


def _said(output: str) -> str:
    """What the last line of a run says it was doing."""
    steps = re.findall(r"^step (\d+)", output, re.MULTILINE)
    if not steps:
        return STARTING
    step, last = int(steps[-1]), output.strip().splitlines()[-1]
    drawing = step % 5 == 0 and "loss" in last and "validation" not in last
    return VALIDATING if drawing else BETWEEN


@dataclass
class Flips:
    """What became of the runs whose files were damaged: by file, by outcome."""

    outcomes: dict[str, collections.Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def flips(place: Place, wanted: int, rng: random.Random, expected: str) -> Flips:
    """Flips one bit of one file of a finished run and starts it again, `wanted` times."""
    sound, found = place.folder / "unbroken", Flips()
    *older, _ = sorted((sound / "checkpoints").iterdir(), key=lambda path: int(path.name))  # which nothing reads
    files = sorted(path for path in sound.rglob("*") if path.is_file() and path.stat().st_size)
    files = [path for path in files if not set(path.parents) & set(older)]
    order = [path for path in files for _ in range(-(-wanted // len(files)))]
    rng.shuffle(order)
    for number, path in enumerate(order[:wanted]):
        shutil.rmtree(place.folder / "flipped", ignore_errors=True)
        shutil.copytree(sound, place.folder / "flipped")
        _flip(place.folder / "flipped" / path.relative_to(sound), rng)
        code, output = place.end(
            place.command("ec_dit.main", "--config=tiny.py", "--workdir=flipped", "--config.data.path=data_unbroken")
        )
        outcome = _outcome(code, output, fingerprint(output) == expected)
        kind = _kind(path.relative_to(sound))
        found.outcomes.setdefault(kind, collections.Counter())[outcome] += 1
        if outcome.startswith("FAULT"):
            _note(found.faults, f"{path.relative_to(sound)}: {outcome}: {output[-400:]}")
        if number % 10 == 9:
            print(f"{number + 1} flips", flush=True)
    return found


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def _kind(path: Path) -> str:
    """A file of a workdir as the table names it."""
    if path.parts[0] == "checkpoints":
        return "checkpoints: " + ("arrays" if {"d", "ocdbt.process_0"} & set(path.parts) else "their description")
    return path.parts[0] if len(path.parts) > 1 else path.name


def _outcome(code: int | None, output: str, same: bool) -> str:
    if code == 0 and same:
        return "named, and gone on from the checkpoint before" if "damaged" in output else "of no effect"
    if code == 2 and "Traceback" not in output:
        return "refused with a message"
    return f"FAULT: exit code {code}" + (", other parameters" if code == 0 else "")


def inputs(place: Place) -> tuple[int, list[str]]:
    """Gives every bad input to its entry point: (how many kinds, what went wrong)."""
    sys.path.insert(0, str(ROOT))
    from tests import bad_inputs

    folder, faults = place.folder / "inputs", []
    folder.mkdir()
    bad_inputs.lay(folder)
    before = sorted(folder.rglob("*"))
    for case in bad_inputs.CASES:
        code, output = place.end(place.command(case.module, *case.arguments, within=folder, env=case.env))
        left = sorted(set(folder.rglob("*")).symmetric_difference(before))
        if code != 2 or "Traceback" in output or case.message not in output or left:
            _note(faults, f"{case.module} {' '.join(case.arguments)}: exit code {code}, left {left}: {output[-300:]}")
            before = sorted(folder.rglob("*"))
    return len(bad_inputs.CASES), faults


def page(found: Mapping[str, Any]) -> Iterator[str]:
    """The figures as Markdown."""
    yield "# What a run survives\n"
    yield f"Written by `python benchmarks/faults.py`: {platform.machine()}, {os.cpu_count()} CPU cores, Python"
    yield f"{platform.python_version()}; a model of two blocks on the shapes data, every run a process.\n"
    if "kills" in found:
        done: Kills = found["kills"]
        yield f"## kill -9 at random moments: {sum(done.moments.values())}, in {done.runs} runs\n"
        yield "Each run is started again until it ends. Its parameters, metrics.jsonl and TensorBoard files are then"
        yield "compared with those of an unbroken run, and its checkpoints counted:"
        yield f"{len(done.faults)} of {done.runs} runs differ.\n"
        yield "| killed while | times |\n|---|---|"
        yield from (f"| {moment} | {count} |" for moment, count in done.moments.most_common())
        yield ""
    if "flips" in found:
        hit: Flips = found["flips"]
        total = sum(sum(of.values()) for of in hit.outcomes.values())
        yield f"## One flipped bit: {total} times\n"
        yield "One bit of one file of a finished run is flipped, and the run started again with its command: it names the"
        yield f"damage, or it ends in the very same parameters. {len(hit.faults)} did neither. Of the checkpoints the newest is"
        yield "hit, which is the one that a run reads.\n"
        yield "| file | outcome | times |\n|---|---|---|"
        yield from (f"| {k} | {what} | {n} |" for k, of in sorted(hit.outcomes.items()) for what, n in of.most_common())
        yield ""
    if "inputs" in found:
        count, faults = found["inputs"]
        yield f"## Bad input: {count} kinds\n"
        yield "Wrong flags, config values, files and folders, the list of `tests/bad_inputs.py`. Each ends with exit code 2"
        yield f"and its message, without a traceback: {count - len(faults)} of {count}."


def main() -> int:
    """Runs the parts and writes the page; the exit code is 1 where something did not survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument(
        "--only", default="kills,flips,inputs", help="parts, comma-separated; the page is written for all"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    parts = given.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        expected, seconds = unbroken(place)
        jobs: dict[str, Callable[[], Any]] = {
            "kills": lambda: kills(place, given.kills, random.Random(given.seed), expected, seconds),
            "flips": lambda: flips(place, given.flips, random.Random(given.seed), expected),
            "inputs": lambda: inputs(place),
        }
        with ThreadPoolExecutor(2) as pool:  # most of the time is spent in starting programs
            begun = {part: pool.submit(jobs[part]) for part in parts}
            found = {part: job.result() for part, job in begun.items()}
    text = "\n".join(page(found)) + "\n"
    print(text)
    if len(found) == 3:
        given.page.write_text(text)
    faults = [fault for part in ("kills", "flips") if part in found for fault in found[part].faults]
    return 1 if faults or ("inputs" in found and found["inputs"][1]) else 0


if __name__ == "__main__":
    sys.exit(main())
