"""Killed at any moment, a run ends in the very parameters of an unbroken one. These tests start real processes."""

import os
import random
import re
import shutil
import signal
import time

import pytest

from ec_dit.core.processes import STOPPED
from tests import runs
from tests.runs import finish, start

pytestmark = pytest.mark.xdist_group("resume")  # they share a run that takes its time


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return runs.folder(tmp_path_factory, "resume")


def kill_after(process, step, delay):
    """SIGKILL, `delay` seconds after the first line of `step` or a later one."""
    output = runs.read_until(process, step)
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
def unbroken(tmp_path_factory):
    """Fingerprint and losses, as printed, of a run that nothing stopped."""
    return runs.unbroken(tmp_path_factory)[1:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("in_save", "windows"),  # whether it is killed inside a save first; steps, within each of which it is killed then
    [(True, []), pytest.param(False, [(1, 3), (7, 9), (11, 13)], marks=pytest.mark.exhaustive)],
)
def test_killed_again_and_again_it_ends_in_the_same_parameters(place, unbroken, in_save, windows):
    rng = random.Random(7)  # the moments; a fixed seed, so that a failure can be repeated
    workdir = place / f"killed{len(windows)}"
    if in_save:
        kill_inside_save(start(place, workdir), workdir)
        assert any(".orbax-checkpoint-tmp" in name for name in _entries(workdir / "checkpoints"))
    for first, last in windows:
        kill_after(start(place, workdir), rng.randint(first, last), rng.uniform(0, 0.1))
    fingerprint, losses = finish(start(place, workdir))
    assert fingerprint == unbroken[0]
    assert all(unbroken[1][step] == loss for step, loss in losses.items())


@pytest.mark.exhaustive  # tests/train/test_loop.py shows it within one process
@pytest.mark.parametrize("workers", [2, 0])
def test_sigterm_stops_with_a_checkpoint_and_a_code_of_its_own(place, unbroken, workers):
    workdir = place / f"stopped{workers}"
    process = start(place, workdir, f"--config.data.workers={workers}")
    output = runs.read_until(process, 5)
    os.killpg(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    ((code, rest),) = runs.end([process])
    assert code == STOPPED, rest
    (*_, last) = runs.saved_steps(workdir)
    assert f"stopped by SIGTERM after step {last} of {runs.STEPS}" in output + rest
    assert finish(start(place, workdir))[0] == unbroken[0]


@pytest.mark.exhaustive
def test_a_full_disk_ends_a_run_that_goes_on_with_room(place, unbroken):
    """Also where the locale is C and the workdir's name is not of it."""
    workdir, options = place / "é犬", {"variables": {"LC_ALL": "C"}}
    ((code, output),) = runs.end([start(place, workdir, **options, prefix=runs.SMALL_FILES)])
    assert code == STOPPED, output
    (told,) = [line for line in output.splitlines() if not re.match(r"(devices|parameters|peak): |step \d", line)]
    assert told.startswith("main: ") and f"{place}/" in told and "/checkpoints/" in told and "File too large" in told
    assert told.endswith("Make room there, or raise the limit, and start the same command again.")
    assert f"step {runs.STEPS}/" not in output and not runs.saved_steps(workdir)
    assert finish(start(place, workdir, **options))[0] == unbroken[0]


@pytest.mark.exhaustive
def test_a_checkpoint_of_eight_devices_continues_on_four_and_on_one(place):
    rows, killed = {}, place / "from8"
    steps = "--config.train.steps=12"
    kill_after(start(place, killed, steps, "--config.mesh.data=1", "--config.mesh.expert=8", devices=8), 7, 0.0)
    for devices in (8, 4, 1):
        workdir = place / f"from8_on{devices}"
        shutil.copytree(killed, workdir)
        expert = f"--config.mesh.expert={devices}"
        rows[devices] = finish(start(place, workdir, steps, "--config.mesh.data=1", expert, devices=devices))[1]
    assert rows[4] and rows[1]
    for devices in (4, 1):
        for step, loss in rows[devices].items():
            if step in rows[8]:
                assert float(loss) == pytest.approx(float(rows[8][step]), rel=1e-4)


@pytest.mark.slow
def test_another_config_in_the_same_workdir_is_refused(tmp_path_factory):
    place, *_ = runs.unbroken(tmp_path_factory)
    process = start(place, place / "unbroken", "--config.optimizer.learning_rate=0.5")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "optimizer.learning_rate: 0.001 -> 0.5" in output
    assert "Traceback" not in output
