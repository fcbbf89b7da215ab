"""Hosts and a clock for stories told within a test: what host.sh and the trainer do, in a time of their own."""

import datetime as dt
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.clock import Clock
from tests.launch.played_gcloud import Answer, Refused, Trainer, World

STEP_SECONDS = 300.0  # from one of the trainer's checkpoints to the next
_START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_LONGEST = 86400.0
_ON_HOST = re.compile(r"host\.sh (start|status|stop|log|trace)\b ?([^; ]*)")
_LOADED = re.compile(r"storage cp --quiet '?(\S+?)/\*")


class PlayedClock(Clock):
    """Goes by only while somebody waits.

    Attributes:
        seconds: since the story began.
        waits: for how long it was slept, in order.
        every_step: called each STEP_SECONDS.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waits: list[float] = []
        self.every_step: Callable[[], None] = lambda: None
        self._alarms: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> dt.datetime:
        return _START + dt.timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.pass_by(seconds)

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Does something at a moment of the story."""
        self._alarms.append((seconds, action))

    def pass_by(self, seconds: float) -> None:
        """Lets time go by, with what happens in it."""
        end = self.seconds + seconds
        assert end < _LONGEST, "the story does not end"
        while (step := (self.seconds // STEP_SECONDS + 1) * STEP_SECONDS) <= end:
            self.seconds = step
            self.every_step()
        self.seconds = end
        due = [action for moment, action in self._alarms if moment <= end]
        self._alarms = [alarm for alarm in self._alarms if alarm[0] > end]
        for action in due:
            action()


@dataclass
class _Host:
    """What lies on one: of its newest job the name, the trainer and how that ended."""

    job: str = "none"
    trainer: Trainer | None = None
    code: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        return self.trainer is not None and not self.code


class PlayedHosts:
    """Hosts whose jobs are objects.

    Attributes:
        silent: numbers of those of which nothing is heard.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._hosts: dict[int, _Host] = {}
        self.silent: set[int] = set()

    def ssh(self, command: str, workers: Sequence[int]) -> Answer:
        found = _ON_HOST.search(command)
        assert found, command
        answers = [self._answer(n, found[1], found[2], command) for n in workers if n not in self.silent]
        return Answer(0, "".join(answers))

    def _answer(self, number: int, verb: str, word: str, command: str) -> str:
        host = self._hosts.setdefault(number, _Host())
        if verb == "log":
            return "".join(f"{line}\n" for line in host.log)
        if verb == "start" and host.job != word:
            loaded = _LOADED.search(command)
            assert loaded, command
            self._hosts[number] = host = self._load(World(self._folder).local(loaded[1]), f"w-{number}", word)
        if verb == "stop" and host.runs:
            host.code = "75"
        state = "none" if host.job == "none" else f"exited code={host.code}" if host.code else "running"
        return f"ec_dit host=w-{number} job={host.job} state={state}\n"

    def _load(self, shipped: Path, name: str, job: str) -> _Host:
        """Starts what was shipped."""
        if not shipped.is_dir():
            raise Refused("The following URLs matched no objects or files")
        assert {"env.sh", "host.sh", "job.sh"} < {path.name for path in shipped.iterdir()}
        (command,) = re.findall(r"^JOB_COMMAND=\((.*)\)$", (shipped / "job.sh").read_text(), re.MULTILINE)
        return _Host(job, Trainer(self._folder, name, shlex.split(command)))

    def step(self) -> None:
        """Lets every trainer take a step."""
        for host in self._hosts.values():
            if host.trainer is not None and not host.code:
                code, line = host.trainer.step()
                host.log += [line] if line else []
                host.code = "" if code is None else str(code)

    def restart(self) -> None:
        """Ends everything that runs, and nobody notes how."""
        for host in self._hosts.values():
            host.code = host.code or ("killed" if host.trainer else "")

    def vanish(self) -> None:
        self._hosts.clear()
