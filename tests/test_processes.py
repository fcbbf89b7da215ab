"""Several processes train, stop, die, sample and prepare as one. These tests start real processes on one machine."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ec_dit.core.processes import STOPPED
from tests import runs

pytestmark = pytest.mark.xdist_group("processes")  # they share a run that takes its time

EXPERTS = ("--config.mesh.data=1", "--config.mesh.expert=8")  # an expert on each device: tokens cross between processes
SHORT = ("--config.train.steps=6", "--config.log.validate_every=6")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return runs.folder(tmp_path_factory, "processes")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Losses by step of one process with one device."""
    return runs.losses(runs.unbroken(tmp_path_factory)[0] / "unbroken")


@pytest.fixture(scope="module")
def pair(place):
    """The workdir of a short run of two processes of one device each, which also prepare the data, with its outputs."""
    halves = ("--config.mesh.data=1", "--config.mesh.expert=2")  # of the experts
    ends = runs.end(runs.start_several(place, place / "pair", 2, *halves, *SHORT, devices=2))
    assert [code for code, _ in ends] == [0, 0], ends
    return place / "pair", [output for _, output in ends]


def assert_close(losses, expected, steps):
    assert list(losses) == list(steps)
    np.testing.assert_allclose([losses[s] for s in steps], [expected[s] for s in steps], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one(pair, unbroken):
    workdir, (first, second) = pair
    assert_close(runs.losses(workdir), unbroken, range(1, 7))
    assert "2 x cpu in 2 processes" in first
    assert "validation loss  train" in first
    assert "step 1/" not in second  # one process prints
    assert runs.saved_steps(workdir) == [4, 6]


@pytest.mark.exhaustive
def test_four_tasks_of_slurm_train_as_one(place, unbroken):
    mesh = ("--config.mesh.data=2", "--config.mesh.expert=2", "--config.mesh.tensor=2")
    ends = runs.end(runs.srun(place, place / "four", 4, *mesh, *SHORT))
    assert [code for code, _ in ends] == [0] * 4, ends
    assert_close(runs.losses(place / "four"), unbroken, range(1, 7))


@pytest.mark.exhaustive
def test_sigterm_to_one_stops_both_at_one_step(place, unbroken):
    workdir = place / "stopped"
    both = runs.start_several(place, workdir, 2, *EXPERTS)
    output = runs.read_until(both[0], 5)
    both[1].send_signal(signal.SIGTERM)
    time.sleep(0.3)
    both[1].send_signal(signal.SIGTERM)  # tears nothing
    ends = runs.end(both)
    assert [code for code, _ in ends] == [STOPPED, STOPPED], ends
    saved = runs.saved_steps(workdir)[-1]
    assert f"stopped by SIGTERM after step {saved} of {runs.STEPS}" in output + ends[0][1]
    assert 5 <= saved < runs.STEPS - 5
    again = runs.start_several(place, workdir, 2, *EXPERTS)
    runs.read_until(again[0], 0, r"resuming at step ()")
    again[1].send_signal(signal.SIGTERM)  # while it restores and compiles
    time.sleep(3)
    again[1].send_signal(signal.SIGTERM)
    ends = runs.end(again)
    assert [code for code, _ in ends] == [STOPPED, STOPPED], ends
    last = runs.saved_steps(workdir)[-1]
    assert saved < last < runs.STEPS
    assert_close(runs.losses(workdir), unbroken, range(1, last + 1))


@pytest.mark.exhaustive
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_brings_down_the_other_in_time(place, unbroken, victim):
    workdir, heartbeat = place / f"killed{victim}", 5
    both = runs.start_several(place, workdir, 2, *EXPERTS, heartbeat=heartbeat)
    runs.read_until(both[0], 5)
    both[victim].kill()
    since = time.monotonic()
    ends = runs.end(both)
    assert time.monotonic() - since < heartbeat + 15  # the bound, and time to report on a busy machine
    code, output = ends[1 - victim]
    assert code not in (0, STOPPED)
    assert "another task died" in output or "if another process did before, look there first" in output
    if victim == 0:
        resumed = runs.start(place, workdir, *EXPERTS, devices=8)
        assert resumed.communicate(timeout=400) and resumed.returncode == 0
        assert_close(runs.losses(workdir), unbroken, range(1, runs.STEPS + 1))


IMPATIENT = """
import sys
from ec_dit.core import rendezvous
rendezvous.meet.__kwdefaults__["patience"] = 1  # 30 s otherwise
rendezvous._ANSWER = 1
from ec_dit import main
sys.exit(main.main(sys.argv))
"""


@pytest.mark.slow
def test_a_port_that_another_program_has_ends_all_soon_with_one_message(tmp_path):
    """JAX by itself would end the first by a crash, and let the others wait for ten minutes."""
    (tmp_path / "tiny.py").write_text(runs.SETTINGS)
    with socket.create_server(("", 0)) as stranger:  # which says nothing
        where = f"localhost:{stranger.getsockname()[1]}"
        arguments = ["--config=tiny.py", "--workdir=run", f"--coordinator={where}", "--num_processes=2"]
        both = [
            subprocess.Popen(
                [sys.executable, "-c", IMPATIENT, *arguments, f"--process_id={i}"],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(runs.ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i in (0, 1)
        ]
        ends = runs.end(both, seconds=60)
    assert [code for code, _ in ends] == [STOPPED, STOPPED], ends
    (_, first), (_, second) = (output.splitlines() for _, output in ends)  # they say first that they wait
    assert first.startswith(
        f"main: process 0: port {where.partition(':')[2]}, where the others would find it, cannot be"
    )
    assert second.startswith(f"main: process 1 of 2: whatever is at {where} is not process 0 of this run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mistake_of_all_is_told_by_all(place, pair):
    ends = runs.end(runs.start_several(place, pair[0], 2, *SHORT, "--config.seed=1", devices=2))
    assert [code for code, _ in ends] == [2, 2], ends
    for i, (_, output) in enumerate(ends):
        assert f"main [process {i} of 2]:" in output
        assert "seed: 0 -> 1" in output
        assert "Traceback" not in output


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image, int)


@pytest.mark.exhaustive
def test_two_processes_draw_and_score_as_one(place, pair):
    workdir, _ = pair
    common = (f"--workdir={workdir}", "--mesh=1,1,8,1")
    draw = ("--prompt=a red circle", "--num=3", "--steps=2")
    assert runs.end([runs.call(place, "sample", *common, *draw, "--out=one", devices=8)])[0][0] == 0
    ends = runs.end(runs.call_several(place, "sample", 2, *common, *draw, "--out=two"))
    assert [code for code, _ in ends] == [0, 0], ends
    for index in range(3):
        one, two = (pixels(place / name / f"00000_{index:04d}.png") for name in ("one", "two"))
        assert np.abs(one - two).max() <= 1
    ends = runs.end(runs.call_several(place, "evaluate", 2, *common, "--suite=shapes:images_per_task=1"))
    assert [code for code, _ in ends] == [0, 0], ends
    assert (workdir / "eval_shapes.json").exists()
    assert "mean" in ends[0][1] and "mean" not in ends[1][1]


@pytest.mark.slow
def test_three_processes_prepare_the_same_bytes_as_one(place, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(20):
        Image.new("RGB", (20, 20 + index), (10 * index, 0, 0)).save(images / f"{index}.png")
        if index % 7:
            (images / f"{index}.txt").write_text(f"picture {index}")
    (images / "bad.png").write_bytes(b"no picture")
    arguments = ("--source=folder", f"--path={images}", "--max_skipped_share=0.5", "--validation_share=0.3")
    outs = [tmp_path / "one", tmp_path / "three"]
    one = runs.end([runs.call(place, "prepare", *arguments, f"--out={outs[0]}")])
    three = runs.end(runs.call_several(place, "prepare", 3, *arguments, f"--out={outs[1]}", devices=3))
    assert [code for code, _ in one + three] == [0] * 4, three
    files = [{path.name: path.read_bytes() for path in out.iterdir()} for out in outs]
    assert files[0] == files[1]
    assert "skipped, no caption" in three[0][1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["images", "one", "three"]
    again = runs.end(runs.call_several(place, "prepare", 2, *arguments, f"--out={outs[1]}", devices=2))
    assert [code for code, _ in again] == [2, 2]
    assert "already holds a data set" in again[1][1]


@pytest.mark.exhaustive
def test_two_processes_convert_as_one(place, pair, tmp_path):
    """A run to safetensors, and those to a workdir, with experts and weights that lie across the processes."""
    workdir, _ = pair
    mesh = "--mesh=1,2,4,1"
    there = ("--from=workdir", f"--path={workdir}", "--to=safetensors", mesh)
    one = runs.end([runs.call(place, "convert", *there, f"--out={tmp_path / 'one'}", devices=8)])
    two = runs.end(runs.call_several(place, "convert", 2, *there, f"--out={tmp_path / 'two'}"))
    assert [code for code, _ in one + two] == [0, 0, 0], two
    for name in ("model.safetensors", "tokenizer.model", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    back = ("--from=safetensors", f"--path={tmp_path / 'two'}", mesh, f"--out={tmp_path / 'back'}")
    ends = runs.end(runs.call_several(place, "convert", 2, *back))
    assert [code for code, _ in ends] == [0, 0], ends
    again = ("--from=workdir", f"--path={tmp_path / 'back'}", "--to=safetensors", f"--out={tmp_path / 'again'}")
    assert runs.end([runs.call(place, "convert", *again)])[0][0] == 0
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "again" / "model.safetensors"
    ).read_bytes()
