"""A folder in which gcloud, hosts and a bucket are played, and the launcher's commands as processes or calls in it."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from launch import clock, gcloud
from tests.launch.fake_gcloud import ShellHosts
from tests.launch.played_gcloud import Gcloud
from tests.launch.played_hosts import PlayedClock, PlayedHosts

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
POD = ("--config=configs/shapes.py", "--name=pod", "--project=proj", "--zone=us-east5-a")
SLICE = (*POD, "--topology=v5p:2x2x2")  # of two hosts
WORKDIR = "--workdir=gs://bucket/run"
UP = [["WAITING_FOR_RESOURCES", 2], ["PROVISIONING", 1], ["ACTIVE", 10_000]]


class Stage:
    """What is played, and what was seen."""

    def __init__(self, folder):
        self.folder = folder

    def plan(self, *states, failing=(), **trainer):
        """The states of the resource for each time it is created; `failing` and `trainer` as played_gcloud.py has them."""
        for name, what in (("failing", failing), ("plan", states), ("trainer", trainer)):
            new = self.folder / f"{name}.planned"
            new.write_text(json.dumps(what))
            new.rename(self.folder / f"{name}.json")  # whoever reads it meanwhile reads it whole

    def lines(self, name):
        """The objects of a file of JSON lines."""
        path = self.folder / name
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""  # the last may be half written
        return [json.loads(line) for line in whole.splitlines()]

    @property
    def calls(self):
        """Every call of gcloud, as words without flags."""
        return [" ".join(w for w in call if not w.startswith("--")) for call in self.lines("calls.jsonl")]

    @property
    def creations(self):
        """How often the resource was asked for."""
        return sum("queued-resources create" in call for call in self.calls)

    @property
    def starts(self):
        """The step from which each start of the trainer on host 0 went on."""
        return [start["from"] for start in self.lines("trained.jsonl") if start["host"] == "w-0"]

    @property
    def events(self):
        return [entry["event"] for entry in self.lines("journal.jsonl")]

    @property
    def newest(self):
        """The newest step in the journal."""
        return max(entry.get("step", 0) for entry in self.lines("journal.jsonl"))

    def watch_arguments(self, *more, steps=12, where=SLICE):
        """Of launch.watch, for a run of that many steps."""
        code, journal = "--code=git+https://host/repo@v1", f"--journal={self.folder / 'journal.jsonl'}"
        return (*where, code, WORKDIR, journal, "--max_attempts=3", *more, "--", f"--config.train.steps={steps}")


class ProcessStage(Stage):
    """The launcher's commands, gcloud and hosts as processes."""

    def __init__(self, folder):
        super().__init__(folder)
        programs = folder / "programs"
        programs.mkdir()
        for name in ("gcloud", "uv"):
            (programs / name).symlink_to(HERE / "fake_gcloud.py")
        (programs / "hostname").write_text('#!/bin/sh\necho "$FAKE_HOST"\n')
        (programs / "hostname").chmod(0o755)
        path = f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = os.environ | {"FAKE": str(folder), "PATH": path, "PYTHONPATH": str(ROOT)}
        self.hosts = ShellHosts(folder, self.env)
        self._started = []

    def start(self, command, *arguments):
        """A command of the launcher as a process."""
        words = [sys.executable, "-m", f"launch.{command}", *arguments]
        process = subprocess.Popen(
            words, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._started.append(process)
        return process

    def call(self, command, *arguments):
        """(exit code, output) of a command."""
        process = self.start(command, *arguments)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def wait_for(self, event):
        """Until it stands in the journal."""
        deadline = time.monotonic() + 60
        while event not in self.events:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def close(self):
        """Ends what still runs."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self.hosts.kill()


class Killed(BaseException):
    """What ends a watcher as kill -9 does: nothing of it runs on."""


class CalledStage(Stage):
    """The launcher's commands called within the test, and with them gcloud.

    Attributes:
        clock: what the commands wait by.
        dies: asked before and after each call of gcloud, with its number and whether it is done: whether the command dies there.
    """

    def __init__(self, folder, hosts, clock):
        super().__init__(folder)
        self.clock, self.hosts, self.gcloud = clock, hosts, Gcloud(folder, hosts)
        self.dies = lambda number, done: False
        self._called = 0

    def call(self, command, *arguments):
        """(exit code, output) of a command."""
        module, output = importlib.import_module(f"launch.{command}"), io.StringIO()
        with (
            mock.patch.object(gcloud, "execute", self._execute),
            mock.patch.object(clock, "Clock", return_value=self.clock),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            try:
                code = module.main([command, *arguments])
            except Killed:
                code = None
        return code, output.getvalue()

    def _execute(self, command, timeout, show):
        number, (program, *arguments) = self._called, command
        self._called += 1
        assert program == "gcloud"
        if self.dies(number, False):
            raise Killed
        ended = gcloud.Ended(*self.gcloud(arguments))
        if self.dies(number, True):
            raise Killed
        if isinstance(self.clock, PlayedClock):
            self.clock.pass_by(2)
        if show:
            print(ended.output, end="")
        return ended


class QuickClock(clock.Clock):
    """The system's, with less patience."""

    def sleep(self, seconds):
        super().sleep(min(seconds, 0.2))


def play(folder):
    """A stage on which everything is an object and time is played."""
    folder.mkdir(exist_ok=True)
    clock, hosts = PlayedClock(), PlayedHosts(folder)
    clock.every_step = hosts.step
    return CalledStage(folder, hosts, clock)


@pytest.fixture
def played(tmp_path):
    return play(tmp_path)


@pytest.fixture
def processes(tmp_path):
    """Commands, gcloud and hosts are processes."""
    made = ProcessStage(tmp_path)
    yield made
    made.close()


@pytest.fixture
def stage(processes):
    """Commands are called, hosts are processes that run host.sh."""
    return CalledStage(processes.folder, processes.hosts, QuickClock())
