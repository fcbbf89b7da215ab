"""Doing what is missing of a study: every run in a process of its own, several side by side, each on its share of the machine."""

import collections
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from ec_dit.core.errors import UserError
from studying import runs as study_runs
from studying.plan import ROOT, Study
from studying.runs import Run

_STOPPED = (75, -signal.SIGTERM, -signal.SIGINT, 130)  # what was told to stop, or may be started again
_DIVERGED = "gradient norm"  # words of the trainer, of a loss or norm that is not finite
_LOOK = 0.5  # seconds between looks at a process and the clock
_MACHINE = "from studying import worker; print(worker.machine())"


class Worker:
    """Does runs until there is no time left.

    Args:
        until: of time.monotonic(), when no more is begun and what runs is told to stop; it goes on the next time.
        say: prints a line.
        jobs: runs side by side, each on its share of this process's cores.
        programs: folder of compiled programs, which all runs of a variant share.
    """

    def __init__(self, until: float, say: Callable[[str], None], programs: Path, jobs: int = 1):
        self._until, self._say, self._jobs = until, say, jobs
        self._environment = {"JAX_COMPILATION_CACHE_DIR": str(programs), **os.environ}
        self._ended = threading.Event()

    def do(self, runs: Sequence[Run]) -> bool:
        """Does what is missing of the runs, in turn; tells whether nothing is.

        Raises:
            UserError: where a command of the package fails; a loss that is not finite is noted, and the next run begun.
        """
        study_runs.check(runs)
        left = [run for run in runs if not (run.is_done or run.note.get("diverged")) or (run.is_done and run.missing)]
        numbered = collections.deque((f"[{number} of {len(left)}]", run) for number, run in enumerate(left, 1))
        jobs = min(self._jobs, len(left))
        if not jobs:
            return True
        with ThreadPoolExecutor(jobs) as pool:
            found = [pool.submit(self._through, numbered, share) for share in shares(jobs)]
            try:
                wait(found, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:
                self._ended.set()
            if any(each.done() and each.exception() for each in found):
                self._ended.set()  # what runs beside keeps what it has
        finished = [each.result() for each in found]  # the first error of one is raised
        return all(finished)

    def compile(self, study: Study, folder: Path) -> None:
        """Compiles the training step of every variant for one CPU device, as far as that was not done; the data are there."""
        folder.mkdir(parents=True, exist_ok=True)
        for path, settings in study_runs.compilations(study, folder).values():
            if not path.exists() and not self._is_over():
                how = ["--what=train", "--topology=cpu:1", "--notry", f"--json={path}"]
                self._start("ec_dit.plan", [f"--config={study.file}", *settings, *how])

    def _through(self, numbered: collections.deque[tuple[str, Run]], share: set[int]) -> bool:
        """Does runs one after another, in a thread whose processes get so many cores."""
        if share:
            os.sched_setaffinity(0, share)  # of this thread alone; processes inherit it
        machine_ = ""
        while True:
            try:
                number, run = numbered.popleft()
            except IndexError:
                return True
            if self._is_over():
                return False
            self._say(f"{number} {run.label}")
            machine_ = machine_ or _asked()
            try:
                if not self._finish(run, machine_):
                    return False
            except _DivergedError:
                run.put_note(diverged=True)
                self._say(f"{run.label}: diverged")

    def _finish(self, run: Run, machine_: str) -> bool:
        if not run.is_done:
            arguments = study_runs.training(run)
            run.put_note(arguments=arguments, machine=machine_)
            if not self._start("ec_dit.main", [*arguments, f"--workdir={run.folder}"], run.label):
                return False
        return all(
            self._start("ec_dit.evaluate", study_runs.scoring(run, capacity), run.label) for capacity in run.missing
        )

    def _is_over(self) -> bool:
        return self._ended.is_set() or time.monotonic() >= self._until

    def _start(self, module: str, arguments: Sequence[str], label: str = "") -> bool:
        """Runs a command of the package; False where the time was up before its end.

        Raises:
            UserError: where it fails.
        """
        command = [sys.executable, "-m", module, *arguments]
        with tempfile.TemporaryFile("w+") as told:
            # A session of its own: Ctrl-C is for this process, which then tells it in the way that keeps a checkpoint.
            with subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=told,
                text=True,
                start_new_session=True,
            ) as process:
                reader = threading.Thread(target=self._pass_on, args=(process, label))
                reader.start()
                stopped = False
                while True:
                    try:
                        code = process.wait(None if stopped else _LOOK)
                        break
                    except subprocess.TimeoutExpired:
                        if self._is_over():
                            stopped = True
                            process.send_signal(signal.SIGTERM)
                    except KeyboardInterrupt:  # only of what runs in the main thread
                        self._ended.set()
                reader.join()
            told.seek(0)
            words = told.read()
        print(words, end="", file=sys.stderr, flush=True)
        if code == 0:
            return True
        if (stopped and code in _STOPPED) or code == _STOPPED[0]:
            return False
        if _DIVERGED in words:
            raise _DivergedError
        raise UserError(f"this failed with exit code {code}: {' '.join(command[1:])}")

    def _pass_on(self, process: subprocess.Popen[str], label: str) -> None:
        """Says what a process says; whose it is, where there are several."""
        assert process.stdout is not None
        for line in process.stdout:
            self._say((f"{label}: " if self._jobs > 1 and label else "") + line.rstrip("\n"))


class _DivergedError(Exception):
    """A run's loss is not finite."""


def shares(jobs: int) -> list[set[int]]:
    """Parts the cores of this process among jobs; empty sets where it is for the system to do."""
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [set[int]() for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // jobs)
    return [{cores[(place * each + i) % len(cores)] for i in range(each)} for place in range(jobs)]


def machine() -> str:
    """Names the devices of this process."""
    import jax

    devices = jax.devices()
    cores = ""
    if devices[0].platform == "cpu":
        own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        cores = f", {own} of {os.cpu_count()} cores"
    return f"{len(devices)} x {devices[0].device_kind} ({platform.machine()}{cores}), jax {jax.__version__}"


def _asked() -> str:
    """Names the devices that a new process has; this one must not take them."""
    command, place = [sys.executable, "-c", _MACHINE], Path(__file__).parents[1]
    return subprocess.run(command, cwd=place, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
