#!/usr/bin/env -S python3 -S
"""The programs gcloud, uv and the trainer's python as processes, in the folder $FAKE; called by the names of its links.

What they answer is played_gcloud.py's; the hosts are folders here in which the launcher's own host.sh runs: $FAKE/hosts/N.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.launch.played_gcloud import Answer, Gcloud, Trainer


class ShellHosts:
    """Hosts that run what they are told, each in a home of its own."""

    def __init__(self, folder: Path, env: Mapping[str, str]):
        self._folder, self._env = folder, env

    def ssh(self, command: str, workers: Sequence[int]) -> Answer:
        done = [self._run(command, number) for number in workers]
        codes, outputs, errors = zip(*done, strict=True)
        return Answer(max(codes), "".join(outputs), "".join(errors))

    def _run(self, command: str, number: int) -> Answer:
        home = self._folder / "hosts" / str(number)
        home.mkdir(parents=True, exist_ok=True)
        own = {"EC_DIT_ROOT": str(home / "ec_dit"), "FAKE_HOST": f"w-{number}", "EC_DIT_RETRY_SECONDS": "0"}
        words = ["bash", "-c", command]
        done = subprocess.run(words, env={**self._env, **own}, capture_output=True, text=True, check=False)
        return Answer(done.returncode, done.stdout, done.stderr)

    def vanish(self) -> None:
        self.kill()
        for home in self._folder.glob("hosts/*"):
            shutil.rmtree(home, ignore_errors=True)
            if home.exists():  # something was still writing
                shutil.rmtree(home, ignore_errors=True)

    def kill(self) -> None:
        """Ends what runs on them."""
        for pid in self._folder.glob("hosts/*/ec_dit/jobs/*/pid"):
            subprocess.run(["pkill", "-KILL", "--session", pid.read_text().split()[0]], check=False)


def uv(arguments: Sequence[str]) -> None:
    """Makes an environment whose python is the trainer below."""
    if arguments[0] == "venv":
        python = Path(arguments[-1]) / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{Path(__file__).resolve()}" "$@"\n')
        python.chmod(0o755)


def train(folder: Path, host: str, arguments: Sequence[str]) -> int:
    """Runs the trainer to its end."""
    trainer, code = Trainer(folder, host, arguments), None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    signal.signal(signal.SIGUSR1, lambda *_: trace(trainer.workdir))
    while code is None:
        code, line = trainer.step()
        if line:
            print(line, flush=True)
        time.sleep(0.1)
    return code


def trace(workdir: Path) -> None:
    folder = workdir / "trace" / "plugins" / "profile" / "now"
    folder.mkdir(parents=True)
    (folder / "new").write_text("a trace")
    (folder / "new").rename(folder / "w-0.xplane.pb")


def main(name: str, arguments: Sequence[str]) -> int:
    """Plays the program of that name."""
    folder = Path(os.environ["FAKE"])
    if name == "gcloud":
        code, output, errors = Gcloud(folder, ShellHosts(folder, os.environ))(arguments)
        print(output, end="")
        print(errors, end="", file=sys.stderr)
        return code
    if name == "uv":
        uv(arguments)
        return 0
    return train(folder, os.environ["FAKE_HOST"], arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[0]).name, sys.argv[1:]))
