#!/usr/bin/env python3
"""Plays gcloud, a queued resource with hosts, a bucket, uv and the trainer, from one folder; called by the names of its links.

$FAKE/plan.json: for each time the resource is created, its states in order, each [state, until]: a number of looks, or
"step N": until the bucket holds a checkpoint of that step; the last state stays. A state may also be "refuse: MESSAGE", an
error of create itself, "FAILED: CODE MESSAGE", or "broken", an active resource whose hosts do not answer.
$FAKE/trainer.json: what the trainer does: {"crash": exit code, "at": step}, {"stalls": true}, or nothing.
$FAKE/failing.json: [[parts of a command, joined by |, times, error message], ...]: what fails how often before it works.
$FAKE/hosts/N: home of a host. $FAKE/gs: the buckets. $FAKE/calls.jsonl: every call.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

FAKE = Path(os.environ["FAKE"])
# The flags that each command has in the general release track, besides those of every command; from
# https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create, .../describe, .../delete,
# https://cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm/ssh,
# https://cloud.google.com/sdk/gcloud/reference/storage/cp, .../ls and .../cat.
WIDE = {"project", "quiet", "format", "verbosity"}
FLAGS = {
    "compute tpus queued-resources create": {
        "zone",
        "runtime-version",
        "accelerator-type",
        "topology",
        "type",
        "node-id",
    }
    | {"spot", "reserved", "guaranteed", "async", "labels", "metadata", "network", "subnetwork", "service-account"}
    | {"internal-ips", "valid-until-duration", "valid-after-duration", "tags", "scopes", "node-count", "node-prefix"},
    "compute tpus queued-resources describe": {"zone"},
    "compute tpus queued-resources delete": {"zone", "force", "async"},
    "compute tpus tpu-vm ssh": {
        "zone",
        "worker",
        "command",
        "internal-ip",
        "ssh-flag",
        "ssh-key-file",
        "output-directory",
    },
    "storage cp": {"recursive", "no-clobber", "continue-on-error"},
    "storage ls": {"recursive", "long", "json"},
    "storage cat": {"range", "display-url"},
}
HOSTS = int(os.environ.get("FAKE_HOSTS", "2"))


def fail(message, code=1):
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    sys.exit(code)


def read(name, default):
    path = FAKE / name
    return json.loads(path.read_text()) if path.exists() else default


def local(path):
    return FAKE / "gs" / path.removeprefix("gs://") if path.startswith("gs://") else Path(path)


def newest_step():
    return max((int(p.parent.name) for p in FAKE.glob("gs/*/run/checkpoints/*/commit_success.txt")), default=0)


def parse(arguments):
    words = [a for a in arguments if not a.startswith("--")]
    command = next((c for c in FLAGS if " ".join(words).startswith(c)), None)
    if command is None:
        fail(f"Invalid choice: {words}", 2)
    flags = {}
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            if name not in FLAGS[command] | WIDE:
                fail(f"unrecognized arguments: {argument}", 2)
            flags[name] = value
    return command.split()[-1], words[len(command.split()) :], flags


class Resource:
    """The queued resource; its state lies in a file."""

    def __init__(self):
        self.now = read("now.json", {"created": 0, "exists": False, "looks": 0, "at": 0})

    def save(self):
        (FAKE / "now.new").write_text(json.dumps(self.now))
        (FAKE / "now.new").rename(FAKE / "now.json")

    @property
    def states(self):
        plan = read("plan.json", [])
        return plan[min(self.now["created"], len(plan)) - 1]

    @property
    def state(self):
        return self.states[self.now["at"]][0]

    def is_to_go(self):
        """Whether the next look finds another state, for the sake of the checkpoints that are there."""
        until = self.states[self.now["at"]][1]
        return isinstance(until, str) and newest_step() >= int(until.split()[1])

    def look(self):
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


def vanish():
    """The hosts and all that runs and lies on them."""
    for home in FAKE.glob("hosts/*"):
        for pid in home.glob("ec_dit/jobs/*/pid"):
            subprocess.run(["pkill", "-KILL", "--session", pid.read_text().split()[0]], check=False)
        shutil.rmtree(home, ignore_errors=True)
        if home.exists():  # something was still writing
            shutil.rmtree(home, ignore_errors=True)


def gcloud(arguments):
    with (FAKE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (FAKE / "calls.jsonl").open("a") as calls:
            calls.write(json.dumps(arguments) + "\n")
        verb, words, flags = parse(arguments)
        refuse_for_a_while(" ".join(arguments))
        resource = Resource()
        try:
            if verb in ("create", "describe", "delete"):
                queued(verb, resource, flags)
                return
            if verb == "ssh" and (not resource.now["exists"] or resource.state != "ACTIVE"):
                fail('This TPU has terminal state "PREEMPTED", so it cannot be used anymore.')
        finally:
            resource.save()
    if verb == "ssh":
        ssh(flags)
    else:
        storage(verb, words)


def refuse_for_a_while(command):
    failing = read("failing.json", [])
    for entry in failing:
        words, times, message = entry
        if times and all(part in command for part in words.split("|")):
            entry[1] -= 1
            (FAKE / "failing.json").write_text(json.dumps(failing))
            fail(message)


def queued(verb, resource, flags):
    now = resource.now
    if verb == "create":
        if now["exists"]:
            fail("ALREADY_EXISTS: Resource already exists")
        now |= {"created": now["created"] + 1, "exists": True, "looks": 0, "at": 0, "kind": flags["accelerator-type"]}
        if resource.state.startswith("refuse"):
            now["exists"] = False
            fail(resource.state)
        return
    if not now["exists"]:
        fail("NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/q' was not found")
    if verb == "delete":
        if "force" not in flags and resource.state not in ("FAILED", "SUSPENDED"):
            fail("FAILED_PRECONDITION: it has a node")
        now["exists"] = False
        vanish()
        return
    state, _, message = resource.look().partition(": ")
    shown = {"state": "ACTIVE" if state == "broken" else state}
    if message:
        code, _, message = message.partition(" ")
        shown["failedData"] = {"error": {"code": int(code), "message": message}}
    node = {"acceleratorType": now["kind"]}
    print(json.dumps({"name": "q", "state": shown, "tpu": {"nodeSpec": [{"nodeId": "q", "node": node}]}}))


def ssh(flags):
    worker = flags["worker"]
    workers = range(HOSTS) if worker == "all" else [int(worker)]
    codes = []
    for number in workers:
        home = FAKE / "hosts" / str(number)
        home.mkdir(parents=True, exist_ok=True)
        env = os.environ | {
            "EC_DIT_ROOT": str(home / "ec_dit"),
            "FAKE_HOST": f"w-{number}",
            "EC_DIT_RETRY_SECONDS": "0",
        }
        codes.append(subprocess.run(["bash", "-c", flags["command"]], env=env, check=False).returncode)
    sys.exit(max(codes))


def storage(verb, words):
    if verb == "cp":
        *sources, target = words
        folder = local(target)
        if not target.startswith("gs://") and not folder.is_dir():
            fail(f"Destination URL must name an existing directory. Provided: {target}.")
        for source in sources:
            found = sorted(local(source[:-2]).iterdir()) if source.endswith("/*") else [local(source)]
            for path in found:
                to = folder / path.name if target.endswith("/") or folder.is_dir() else folder
                to.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if path.is_dir() else shutil.copy)(path, to)
        return
    (word,) = words
    if verb == "cat":
        print(local(word).read_text(), end="")
        return
    bucket = FAKE / "gs"
    found = sorted(path for path in bucket.glob(word.removeprefix("gs://").replace("/**", "/**/*")) if path.is_file())
    if not found:
        fail("One or more URLs matched no objects.")
    print("\n".join(f"gs://{path.relative_to(bucket)}" for path in found))


def uv(arguments):
    """Makes an environment whose python is the trainer below."""
    if arguments[0] == "venv":
        python = Path(arguments[-1]) / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" trainer "$@"\n')
        python.chmod(0o755)


def trainer(arguments):
    """Host 0 saves a checkpoint every step and goes on from the last; the others wait for it to end."""
    behaviour, first = read("trainer.json", {}), os.environ["FAKE_HOST"] == "w-0"
    with (FAKE / "trained.jsonl").open("a") as file:
        file.write(json.dumps({"arguments": arguments, "from": newest_step(), "host": os.environ["FAKE_HOST"]}) + "\n")
    workdir = local(next(a for a in arguments if a.startswith("--workdir=")).removeprefix("--workdir="))
    steps = int(next(a for a in arguments if a.startswith("--config.train.steps=")).partition("=")[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    signal.signal(signal.SIGUSR1, lambda *_: trace(workdir))
    while newest_step() < steps:
        if behaviour.get("at") == newest_step():
            print("something went wrong", flush=True)
            sys.exit(behaviour["crash"])
        time.sleep(0.1)
        if first and not behaviour.get("stalls") and not Resource().is_to_go():
            folder = workdir / "checkpoints" / str(newest_step() + 1)
            folder.mkdir(parents=True)
            (folder / "commit_success.txt").touch()
            print(f"step {folder.name}/{steps}", flush=True)


def trace(workdir):
    folder = workdir / "trace" / "plugins" / "profile" / "now"
    folder.mkdir(parents=True)
    (folder / "w-0.xplane.pb").write_text("a trace")


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    if name == "gcloud":
        gcloud(sys.argv[1:])
    elif name == "uv":
        uv(sys.argv[1:])
    elif name == "hostname":
        print(os.environ["FAKE_HOST"])
    else:
        trainer(sys.argv[2:])
