"""Runs of the trainer as real processes: alone or several together, killed or told to stop."""

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from ec_dit.train.metrics import read_metrics
from tests import forks, xla

ROOT = Path(__file__).parents[1]
STEPS = 20
SETTINGS = f"""
from ec_dit import config, presets


def get_config(arg=""):
    c = config.default()
    c.moe.update(routing="expert_choice", num_experts=8)
    c = presets.smoke(c)
    c.model.update(width=32, num_blocks=2, num_heads=2, num_kv_heads=2, head_dim=16)
    c.optimizer.update(name="adamw", learning_rate=1e-3)
    c.train.update(steps={STEPS}, batch_size=16)
    c.moe.group_size = "64"  # 8 groups a batch, one for each device
    c.checkpoint.update(every=2, keep=2)
    c.log.update(every=1, validate_every=0, sample_every=0)
    return c
"""


def folder(tmp_path_factory, name):
    """A folder with a config file; the first run prepares its data beside it."""
    place = tmp_path_factory.mktemp(name)
    (place / "tiny.py").write_text(SETTINGS)
    return place


SMALL_FILES = (
    "sh",
    "-c",
    'ulimit -f 600; exec "$@"',
    "sh",
)  # before a command: no file of it grows beyond 307,200 bytes


def unbroken(tmp_path_factory):
    """A folder with that config, of which `unbroken` is the workdir of a run that nothing stopped, and what it said last.

    One process with one device; made once for all workers of pytest-xdist.
    """
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "oracle"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = place / "told.json"
        if not told.exists():
            (place / "tiny.py").write_text(SETTINGS)
            told.write_text(json.dumps(finish(start(place, place / "unbroken"))))
        return place, *json.loads(told.read_text())


def call(place, module, *arguments, devices=1, variables=(), prefix=()):
    """An entry point as a process; conftest.py keeps compiled programs for all of them."""
    env = (
        os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla.flags(devices),
        }
        | dict(variables)
    )
    words = [f"ec_dit.{module}", *arguments]
    if sys.platform == "linux" and not prefix and "LC_ALL" not in variables:
        return forks.start(words, place, env)
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "tests.entry_point", *words],
        cwd=place,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a signal to the group reaches the loader's workers too
    )


def start(place, workdir, *arguments, **options):
    """The trainer as one process."""
    return call(place, "main", "--config=tiny.py", f"--workdir={workdir}", *arguments, **options)


def call_several(place, module, count, *arguments, devices=8, heartbeat=10):
    """An entry point as `count` processes that share `devices`; they find each other by flags."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    where = [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--heartbeat_seconds={heartbeat}"]
    return [
        call(place, module, *arguments, *where, f"--process_id={i}", devices=devices // count) for i in range(count)
    ]


def srun(place, workdir, count, *arguments, devices=8):
    """The trainer as `count` processes with the variables that SLURM's srun gives its tasks."""
    job = next(j for j in range(os.getpid(), os.getpid() + 4096) if _is_free(61_440 + j % 4096))
    step = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": str(count)}
    command = ("main", "--config=tiny.py", f"--workdir={workdir}", *arguments)
    return [
        call(place, *command, devices=devices // count, variables=step | {"SLURM_PROCID": str(i)}) for i in range(count)
    ]


def _is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("localhost", port))
        except OSError:
            return False
    return True


def start_several(place, workdir, count, *arguments, **options):
    """The trainer as `count` processes."""
    return call_several(place, "main", count, "--config=tiny.py", f"--workdir={workdir}", *arguments, **options)


def finish(process):
    """(fingerprint, losses by step, as printed) of a run that ends by itself."""
    ((code, output),) = end([process])
    assert code == 0, output
    last = output.strip().splitlines()[-1]
    found = re.search(r"params_fingerprint=([0-9a-f]{64})$", last)
    assert found, output
    return found.group(1), dict(re.findall(r"^step (\d+)/\d+  loss (\S+)", output, re.MULTILINE))


def end(processes, seconds=400):
    """[(exit code, output)] of processes that end by themselves, in time."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:  # what hangs would hold the machine
        for process in processes:
            if process.poll() is None:
                process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def read_until(process, step, sign=r"step (\d+)/"):
    """Reads the output up to the line of `step` or a later one, or another sign, and returns it."""
    output = ""
    for line in process.stdout:
        output += line
        found = re.match(sign, line)
        if found and int(found[1] or 0) >= step:
            return output
    raise AssertionError(f"the run ended before step {step}:\n{output}")


def losses(workdir):
    """Loss by step, in full precision; of a step run twice, the later."""
    return {values["step"]: values["loss"] for values in read_metrics(str(workdir)) if "loss" in values}


def saved_steps(workdir):
    """Steps of the finished checkpoints."""
    return sorted(int(entry.name) for entry in (workdir / "checkpoints").iterdir() if entry.name.isdigit())
