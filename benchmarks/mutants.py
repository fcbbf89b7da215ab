"""Whether the tests notice mistakes: python benchmarks/mutants.py [--only=WORD] [--list] [--results=FILE].

Applies each mutant of benchmarks/mutants.toml, a small wrong change to one file, to a copy of the repository in a temporary
folder, runs there the tests that should notice, and prints a table: killed (a test failed) or SURVIVED (none did), with seconds.
The checkout is never touched. First the same tests run on the unchanged copy, where they must pass.

Results are written as they come, and a later call repeats only what is not known: a mutant is run again when its file or its
tests have changed since. All of them take about half an hour on two cores. Exit code 1 where one survived that the table does not
expect to, 2 where a mutant no longer fits its file or the unchanged copy fails.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("ec_dit", "tests", "configs", "launch", "benchmarks", "pyproject.toml", "setup.py", "README.md", "docs")
_FAILED, _PASSED = 1, 0  # exit codes of pytest; another one is no answer
# Processes that have imported what takes long and of which no mutant is a part.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["flax.nnx", "jax", "optax", "orbax.checkpoint", "pytest"])
_PATIENCE = 10  # a mutant may loop for ever: this many times what the unchanged tests took, plus a minute


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A wrong change.

    Attributes:
        edits: pairs of text that occurs once in the file, and what takes its place.
        tests: pytest's arguments for those that should notice.
        equivalent: why no test can tell it from the original, where it is expected to survive.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]
    equivalent: str = ""

    def apply(self, text: str) -> str:
        """The file's text with the change. Ends the program where it does not fit."""
        for old, new in self.edits:
            if text.count(old) != 1:
                _fail(f"{self.name}: {self.file} has {text.count(old)} times, not once:\n{old}")
            text = text.replace(old, new)
        return text

    def key(self, folder: Path) -> str:
        """Of what its outcome depends on in a copy: the mutant, its file, and the files of its tests."""
        parts = [json.dumps([self.file, self.edits, self.tests]), (folder / self.file).read_text()]
        parts += [(folder / test.partition("::")[0]).read_text() for test in self.tests if test.startswith("tests/")]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


def load() -> list[Mutant]:
    """All mutants of the table."""
    found = []
    for group in tomllib.loads((ROOT / "benchmarks/mutants.toml").read_text())["group"]:
        for values in group.pop("mutants"):
            values = group | values
            edits, tests = tuple(map(tuple, values.pop("edits"))), tuple(values.pop("tests"))
            found.append(Mutant(edits=edits, tests=tests, **values))
    if len({(mutant.file, mutant.name) for mutant in found}) < len(found):
        _fail("two mutants of a file have one name")
    return found


def _pytest(folder: Path, tests: Sequence[str], output: Path) -> None:
    """In a process of its own: pytest on a copy, all that is printed in a file."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def run_tests(folder: Path, tests: Sequence[str], limit: float) -> tuple[int | None, float, str]:
    """(pytest's exit code, None past the limit; seconds; its output) for a copy of the repository."""
    output, start = folder.parent / "output", time.perf_counter()
    process = _SERVER.Process(target=_pytest, args=(folder, tests, output))
    process.start()
    process.join(limit)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code, time.perf_counter() - start, output.read_text()


def judge(mutant: Mutant, folder: Path, limit: float) -> tuple[str, float]:
    """(killed or SURVIVED, seconds) in a copy, which is as it was afterwards. Ends the program where pytest did not run."""
    file = folder / mutant.file
    original = file.read_text()
    file.write_text(mutant.apply(original))
    try:
        code, seconds, output = run_tests(folder, mutant.tests, limit)
    finally:
        file.write_text(original)
    if code not in (_FAILED, _PASSED, None):
        _fail(f"{mutant.name}: pytest ended with {code} on {' '.join(mutant.tests)}\n{output[-3000:]}")
    return ("SURVIVED" if code == _PASSED else "killed"), seconds


def outcomes(mutants: Sequence[Mutant], results: Path) -> Iterator[tuple[Mutant, str, float]]:
    """Yields every mutant's outcome, known or new; new ones are appended to the file of results."""
    lines = results.read_text().splitlines() if results.exists() else []
    known = {line["key"]: line for line in map(json.loads, lines)}
    with tempfile.TemporaryDirectory(prefix="mutants") as temporary, results.open("a") as log:
        folder = Path(temporary) / "copy"
        folder.mkdir()
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(folder),
            # Programs are found by their content: what a mutant does not change need not be compiled again.
            "JAX_COMPILATION_CACHE_DIR": f"{temporary}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        unchanged: dict[tuple[str, ...], float] = {}
        for mutant in mutants:
            key = mutant.key(folder)
            if key not in known:
                if mutant.tests not in unchanged:
                    code, seconds, output = run_tests(folder, mutant.tests, 1800)
                    if code != _PASSED:
                        _fail(f"without a mutant pytest ended with {code}: {' '.join(mutant.tests)}\n{output[-3000:]}")
                    unchanged[mutant.tests] = seconds
                outcome, seconds = judge(mutant, folder, _PATIENCE * unchanged[mutant.tests] + 60)
                known[key] = {"key": key, "name": mutant.name, "outcome": outcome, "seconds": seconds}
                log.write(json.dumps(known[key]) + "\n")
                log.flush()
            yield mutant, known[key]["outcome"], known[key]["seconds"]


def main() -> int:
    """Runs what the flags ask for and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants whose name or file has this word")
    parser.add_argument("--list", action="store_true", help="name them and end")
    parser.add_argument("--results", type=Path, default=ROOT / "mutants.jsonl", help="where outcomes are kept")
    flags = parser.parse_args()
    mutants = [mutant for mutant in load() if flags.only in f"{mutant.name} {mutant.file}"]
    if flags.list:
        print("\n".join(f"{mutant.file:<32} {mutant.name}" for mutant in mutants))
        return 0
    for mutant in mutants:
        mutant.apply((ROOT / mutant.file).read_text())  # before any test runs
    survivors = 0
    for mutant, outcome, seconds in outcomes(mutants, flags.results):
        expected = outcome == "SURVIVED" and mutant.equivalent
        survivors += outcome == "SURVIVED" and not expected
        note = f"  as expected: {mutant.equivalent}" if expected else ""
        print(f"{outcome:<9}{seconds:6.0f} s  {mutant.file:<32} {mutant.name}{note}", flush=True)
    print(f"{len(mutants)} mutants, {survivors} survived that a test should kill")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
