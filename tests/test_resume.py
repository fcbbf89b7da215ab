"""Killed at any moment, a run ends in the very parameters of an unbroken one. These tests start real processes."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 40  # many more than pass between a line and the kill that it calls for
SETTINGS = f"""
from ec_dit import config


def get_config(arg=""):
    c = config.default()
    c.moe.update(routing="expert_choice", num_experts=8)
    c = config.smoke(c)
    c.model.update(width=32, num_blocks=2, num_heads=2, num_kv_heads=2, head_dim=16)
    c.optimizer.update(name="adamw", learning_rate=1e-3)
    c.train.update(steps={STEPS}, batch_size=16)
    c.moe.group_size = "64"  # 8 groups a batch, one for each device
    c.checkpoint.update(every=2, keep=2)
    c.log.update(every=1, validate_every=0, sample_every=0)
    return c
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a config file; the first run prepares its data beside it."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "tiny.py").write_text(SETTINGS)
    return folder


def start(place, workdir, *arguments, devices=1):
    """The trainer as a process; compiled programs are kept between them."""
    env = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "ec_dit.main", "--config=tiny.py", f"--workdir={workdir}", *arguments]
    return subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    """(fingerprint, losses by step) of a run that ends by itself."""
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    last = output.strip().splitlines()[-1]
    found = re.search(r"params_sha256=([0-9a-f]{64})$", last)
    assert found, output
    return found.group(1), dict(re.findall(r"^step (\d+)/\d+  loss (\S+)", output, re.MULTILINE))


def kill_after(process, step, delay):
    """SIGKILL, `delay` seconds after the first line of `step` or a later one."""
    output = ""
    for line in process.stdout:
        output += line
        found = re.match(r"step (\d+)/", line)
        if found and int(found[1]) >= step:
            break
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"the run ended before it was killed:\n{output}"


def kill_inside_save(process, workdir):
    """SIGKILL while a checkpoint is being written."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if any(".orbax-checkpoint-tmp" in name for name in _entries(workdir / "checkpoints")):
            process.kill()
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before a save was seen"


def _entries(folder):
    try:
        return [entry.name for entry in os.scandir(folder)]
    except FileNotFoundError:
        return []


@pytest.fixture(scope="module")
def unbroken(place):
    return finish(start(place, place / "unbroken"))


@pytest.mark.slow
def test_killed_five_times_it_ends_in_the_same_parameters(place, unbroken):
    rng = random.Random(7)  # the moments; a fixed seed, so that a failure can be repeated
    workdir = place / "killed"
    kill_inside_save(start(place, workdir), workdir)
    torn = _entries(workdir / "checkpoints")
    for first, last in ((1, 4), (8, 12), (16, 20), (24, 28)):
        kill_after(start(place, workdir), rng.randint(first, last), rng.uniform(0, 0.2))
    fingerprint, losses = finish(start(place, workdir))
    assert any(".orbax-checkpoint-tmp" in name for name in torn)
    assert fingerprint == unbroken[0]
    assert all(unbroken[1][step] == loss for step, loss in losses.items())


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_continues_on_four_and_on_one(place):
    rows = {}
    steps = "--config.train.steps=12"
    for devices in (8, 4, 1):
        workdir = place / f"from8_on{devices}"
        first = start(place, workdir, steps, "--config.mesh.data=1", "--config.mesh.expert=8", devices=8)
        kill_after(first, 7, 0.0)
        expert = f"--config.mesh.expert={devices}"
        rows[devices] = finish(start(place, workdir, steps, "--config.mesh.data=1", expert, devices=devices))[1]
    assert rows[4] and rows[1]
    for devices in (4, 1):
        for step, loss in rows[devices].items():
            if step in rows[8]:
                assert float(loss) == pytest.approx(float(rows[8][step]), rel=1e-4)


@pytest.mark.slow
def test_another_config_in_the_same_workdir_is_refused(place, unbroken):
    process = start(place, place / "unbroken", "--config.optimizer.learning_rate=0.5")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "optimizer.learning_rate: 0.001 -> 0.5" in output
    assert "Traceback" not in output
