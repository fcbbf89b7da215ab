"""Plays gcloud: a queued resource, its hosts and the buckets, whose state lies in the files of one folder.

fake_gcloud.py answers processes with it, conftest.py what runs within the test. In the folder:

plan.json: for each time the resource is created, its states in order, each [state, until]: a number of looks, or "step N":
until the bucket holds a checkpoint of that step; the last state stays. A state may also be "refuse: MESSAGE", an error of create
itself, "FAILED: CODE MESSAGE", or "broken", an active resource whose hosts do not answer.
trainer.json: what the trainer does: {"crash": exit code, "at": step, "host": only on this one}, {"stalls": from which step}.
failing.json: [[parts of a command, joined by |, times, error message], ...]: what fails how often before it works.
gs: the buckets. calls.jsonl: every call. trained.jsonl: every start of a trainer.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

HOSTS = 2
# The flags that each command has in the general release track, besides those of every command; from
# https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create, .../describe, .../delete,
# https://cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm/ssh,
# https://cloud.google.com/sdk/gcloud/reference/storage/cp, .../ls and .../cat.
WIDE = {"project", "quiet", "format", "verbosity"}
CREATE = {"zone", "runtime-version", "accelerator-type", "topology", "type", "node-id"}
CREATE |= {"spot", "reserved", "guaranteed", "async", "labels", "metadata", "network", "subnetwork", "service-account"}
CREATE |= {"internal-ips", "valid-until-duration", "valid-after-duration", "tags", "scopes", "node-count"}
CREATE |= {"node-prefix"}
SSH = {"zone", "worker", "command", "internal-ip", "ssh-flag", "ssh-key-file", "output-directory"}
FLAGS = {
    "compute tpus queued-resources create": CREATE,
    "compute tpus queued-resources describe": {"zone"},
    "compute tpus queued-resources delete": {"zone", "force", "async"},
    "compute tpus tpu-vm ssh": SSH,
    "storage cp": {"recursive", "no-clobber", "continue-on-error"},
    "storage ls": {"recursive", "long", "json"},
    "storage cat": {"range", "display-url"},
}


class Answer(NamedTuple):
    """Exit code, and what is printed."""

    code: int
    output: str = ""
    errors: str = ""


class Refused(Exception):
    """An error message of gcloud and its exit code."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


class Hosts(Protocol):
    """The machines of the resource."""

    def ssh(self, command: str, workers: Sequence[int]) -> Answer:
        """Runs a shell command on some of them."""

    def vanish(self) -> None:
        """Takes them away, with all that runs and lies on them."""


class World:
    """The folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.now = self.read("now.json", {"created": 0, "exists": False, "looks": 0, "at": 0})

    def read(self, name: str, default: Any) -> Any:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else default

    def save(self) -> None:
        new = self.folder / "now.new"
        new.write_text(json.dumps(self.now))
        new.rename(self.folder / "now.json")

    def add(self, name: str, entry: object) -> None:
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def local(self, path: str) -> Path:
        return self.folder / "gs" / path.removeprefix("gs://") if path.startswith("gs://") else Path(path)

    @property
    def newest_step(self) -> int:
        marks = self.folder.glob("gs/*/run/checkpoints/*/commit_success.txt")
        return max((int(mark.parent.name) for mark in marks), default=0)

    @property
    def states(self) -> list[list[Any]]:
        plan = self.read("plan.json", [])
        return plan[min(self.now["created"], len(plan)) - 1]

    @property
    def state(self) -> str:
        return self.states[self.now["at"]][0]

    def is_to_go(self) -> bool:
        """Whether the next look finds another state, for the sake of the checkpoints that are there."""
        until = self.states[self.now["at"]][1]
        return isinstance(until, str) and self.newest_step >= int(until.split()[1])

    def look(self, vanish: Callable[[], None]) -> str:
        """The state, as time goes by with every look."""
        shown = self.state
        until = self.states[self.now["at"]][1]
        self.now["looks"] += 1
        over = self.is_to_go() if isinstance(until, str) else self.now["looks"] >= until
        if over and self.now["at"] + 1 < len(self.states):
            self.now |= {"looks": 0, "at": self.now["at"] + 1}
            if self.state not in ("ACTIVE", "broken"):
                vanish()
        return shown


class Trainer:
    """What ec_dit.main does on a host: the first saves a checkpoint every step and goes on from the last, the others wait.

    Args:
        arguments: of the command line, behind python.
    """

    def __init__(self, folder: Path, host: str, arguments: Sequence[str]):
        self._folder, self._host = folder, host
        values = dict(a.removeprefix("--").split("=", 1) for a in arguments if a.startswith("--"))
        world = World(folder)
        self.workdir = world.local(values["workdir"])
        self._steps = int(values["config.train.steps"])
        world.add("trained.jsonl", {"arguments": list(arguments), "from": world.newest_step, "host": host})

    def step(self) -> tuple[int | None, str]:
        """Takes one: the exit code where it was the last, and what is printed."""
        world = World(self._folder)
        behaviour, newest = world.read("trainer.json", {}), world.newest_step
        if newest >= self._steps:
            return 0, ""
        if behaviour.get("at") == newest and behaviour.get("host", self._host) == self._host:
            return behaviour["crash"], "something went wrong"
        if self._host != "w-0" or newest >= behaviour.get("stalls", self._steps) or world.is_to_go():
            return None, ""
        folder = self.workdir / "checkpoints" / str(newest + 1)
        folder.mkdir(parents=True)
        (folder / "commit_success.txt").touch()
        return None, f"step {folder.name}/{self._steps}"


def _parse(arguments: Sequence[str]) -> tuple[str, list[str], dict[str, str]]:
    words = [a for a in arguments if not a.startswith("--")]
    command = next((c for c in FLAGS if " ".join(words).startswith(c)), None)
    if command is None:
        raise Refused(f"Invalid choice: {words}", 2)
    flags = {}
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            if name not in FLAGS[command] | WIDE:
                raise Refused(f"unrecognized arguments: {argument}", 2)
            flags[name] = value
    return command.split()[-1], words[len(command.split()) :], flags


class Gcloud:
    """The program; called with its arguments."""

    def __init__(self, folder: Path, hosts: Hosts):
        self._folder, self._hosts = folder, hosts

    def __call__(self, arguments: Sequence[str]) -> Answer:
        try:
            return self._answer(arguments)
        except Refused as refused:
            return Answer(refused.code, errors=f"ERROR: (gcloud) {refused}\n")

    def _answer(self, arguments: Sequence[str]) -> Answer:
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            world = World(self._folder)
            world.add("calls.jsonl", list(arguments))
            verb, words, flags = _parse(arguments)
            self._refuse_for_a_while(world, " ".join(arguments))
            if verb in ("create", "describe", "delete"):
                try:
                    return Answer(0, self._queued(world, verb, flags))
                finally:
                    world.save()
            if verb == "ssh" and world.now["exists"] and world.state == "broken":
                raise Refused("ssh: connect to host 10.0.0.2 port 22: Connection timed out")
            if verb == "ssh" and (not world.now["exists"] or world.state != "ACTIVE"):
                raise Refused('This TPU has terminal state "PREEMPTED", so it cannot be used anymore.')
        if verb == "ssh":
            worker = flags["worker"]
            return self._hosts.ssh(flags["command"], range(HOSTS) if worker == "all" else [int(worker)])
        return Answer(0, self._storage(world, verb, words))

    def _refuse_for_a_while(self, world: World, command: str) -> None:
        failing = world.read("failing.json", [])
        for entry in failing:
            words, times, message = entry
            if times and all(part in command for part in words.split("|")):
                entry[1] -= 1
                (self._folder / "failing.json").write_text(json.dumps(failing))
                raise Refused(message)

    def _queued(self, world: World, verb: str, flags: dict[str, str]) -> str:
        now = world.now
        if verb == "create":
            if now["exists"]:
                raise Refused("ALREADY_EXISTS: Resource already exists")
            kind = flags["accelerator-type"]
            now |= {"created": now["created"] + 1, "exists": True, "looks": 0, "at": 0, "kind": kind}
            if world.state.startswith("refuse"):
                now["exists"] = False
                raise Refused(world.state)
            return ""
        if not now["exists"]:
            raise Refused("NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/q' was not found")
        if verb == "delete":
            if "force" not in flags and world.state not in ("FAILED", "SUSPENDED"):
                raise Refused("FAILED_PRECONDITION: it has a node")
            now["exists"] = False
            self._hosts.vanish()
            return ""
        state, _, message = world.look(self._hosts.vanish).partition(": ")
        shown: dict[str, Any] = {"state": "ACTIVE" if state == "broken" else state}
        if message:
            code, _, message = message.partition(" ")
            shown["failedData"] = {"error": {"code": int(code), "message": message}}
        node = {"acceleratorType": now["kind"]}
        return json.dumps({"name": "q", "state": shown, "tpu": {"nodeSpec": [{"nodeId": "q", "node": node}]}})

    def _storage(self, world: World, verb: str, words: Sequence[str]) -> str:
        if verb == "cp":
            *sources, target = words
            folder = world.local(target)
            if not target.startswith("gs://") and not folder.is_dir():
                raise Refused(f"Destination URL must name an existing directory. Provided: {target}.")
            for source in sources:
                self._copy(world, source, folder, into=target.endswith("/"))
            return ""
        (word,) = words
        if verb == "cat" and world.local(word).is_file():
            return world.local(word).read_text()
        bucket = world.folder / "gs"
        paths = bucket.glob(word.removeprefix("gs://").replace("/**", "/**/*"))
        names = sorted(f"gs://{path.relative_to(bucket)}\n" for path in paths if path.is_file())
        if not names:
            raise Refused("One or more URLs matched no objects.")
        return "".join(names)

    def _copy(self, world: World, source: str, folder: Path, into: bool) -> None:
        paths = sorted(world.local(source[:-2]).iterdir()) if source.endswith("/*") else [world.local(source)]
        if not all(path.exists() for path in paths):
            raise Refused(f"The following URLs matched no objects or files: {source}")
        for path in paths:
            to = folder / path.name if into or folder.is_dir() else folder
            to.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, to)
