"""A folder in which gcloud, hosts and a bucket are played, and the launcher's commands as processes in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
POD = ("--config=configs/shapes.py", "--name=pod", "--project=proj", "--zone=us-east5-a")
SLICE = (*POD, "--topology=v5p:2x2x2")  # of two hosts
WORKDIR = "--workdir=gs://bucket/run"


class Stage:
    """What is played, and what was seen."""

    def __init__(self, folder):
        self.folder = folder
        programs = folder / "programs"
        programs.mkdir()
        for name in ("gcloud", "uv", "hostname"):
            (programs / name).symlink_to(HERE / "fake_gcloud.py")
        path = f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = os.environ | {"FAKE": str(folder), "PATH": path, "PYTHONPATH": str(ROOT)}

    def plan(self, *states, failing=(), **trainer):
        """The states of the resource for each time it is created; `failing` and `trainer` as fake_gcloud.py has them."""
        (self.folder / "failing.json").write_text(json.dumps(failing))
        (self.folder / "plan.json").write_text(json.dumps(states))
        (self.folder / "trainer.json").write_text(json.dumps(trainer))

    def start(self, command, *arguments):
        """A command of the launcher as a process."""
        words = [sys.executable, "-m", f"launch.{command}", *arguments]
        return subprocess.Popen(
            words, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def call(self, command, *arguments):
        """(exit code, output) of a command."""
        process = self.start(command, *arguments)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

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
    def starts(self):
        """The step from which each start of the trainer on host 0 went on."""
        return [start["from"] for start in self.lines("trained.jsonl") if start["host"] == "w-0"]


@pytest.fixture
def stage(tmp_path):
    made = Stage(tmp_path)
    yield made
    for pid in tmp_path.glob("hosts/*/ec_dit/jobs/*/pid"):
        subprocess.run(["pkill", "-KILL", "--session", pid.read_text().split()[0]], check=False)
