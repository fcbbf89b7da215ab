"""Latents and embeddings from runs that are killed, go on, and share the work. These tests start real processes."""

import itertools
import random
import signal
import time

import pytest

from ec_dit import config as config_lib
from ec_dit.config import overrides
from ec_dit.data import dataset
from ec_dit.runs import feed
from ec_dit.system.model import make_system
from tests import encoded_sets as sets
from tests import runs

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("encoded_processes")]  # they share a set that takes its time

SIDES = ((32, 32), (32, 32), (24, 40), (32, 32), (40, 24))  # in pixels; of squares several batches follow each other
BUCKETS = ("--resolution=32", "--buckets", "--bucket_step=8")
TARS, EACH = 12, 24
STEPS = 14


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with tars, encoders and a config."""
    folder = tmp_path_factory.mktemp("encoded_processes")
    sets.write_tars(folder / "tars", SIDES, TARS, EACH)
    sets.write_encoders(folder / "encoders", **sets.QUARTER)
    (folder / "encoded.py").write_text(sets.SETTINGS)
    return folder


def command(place, out):
    return sets.arguments(place / "tars", out, place / "encoders", *BUCKETS, "--flip")


@pytest.fixture(scope="module")
def unbroken(place):
    """The files of a set that one process made in one go."""
    ((code, output),) = runs.end([runs.call(place, "prepare", *command(place, place / "unbroken"))])
    assert code == 0, output
    return sets.contents(place / "unbroken")


def finished(out):
    """When each unit of a set in the making was finished."""
    units = (out.parent / f".{out.name}.incomplete" / "units").glob("*.json")
    return {path.name: path.stat().st_mtime_ns for path in units}


def kill_all(processes, out, count, delay=0.0):
    """SIGKILL to all, `delay` seconds after `count` units are finished; they must not have come to their end."""
    deadline = time.monotonic() + 200
    while len(finished(out)) < count or not (out.parent / f".{out.name}.incomplete").exists():
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.002)
    time.sleep(delay)
    for process in processes:
        process.kill()
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * len(processes), outputs
    assert not out.exists()


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.exhaustive)])
def test_killed_again_and_again_it_ends_in_the_same_bytes(place, unbroken, kills):
    rng = random.Random(11)  # the moments; a fixed seed, so that a failure can be repeated
    out, before = place / f"killed{kills}", {}
    for count in (0, *sorted(rng.sample(range(1, TARS - 2), kills - 1))):
        kill_all([runs.call(place, "prepare", *command(place, out))], out, count, rng.uniform(0, 0.1))
        after = finished(out)
        assert len(after) >= count and before.items() <= after.items()  # nothing is made twice
        before = after
    ((code, output),) = runs.end([runs.call(place, "prepare", *command(place, out))])
    assert code == 0, output
    assert f"going on after {len(before)} of {TARS}" in output
    assert sets.contents(out) == unbroken
    assert not list(place.glob(".*incomplete"))


@pytest.mark.exhaustive  # tests/test_processes.py prepares with three what needs no encoders
def test_two_processes_make_the_same_bytes_as_one(place, unbroken):
    out = place / "two"
    ends = runs.end(runs.call_several(place, "prepare", 2, *command(place, out), devices=2))
    assert [code for code, _ in ends] == [0, 0], ends
    assert sets.contents(out) == unbroken
    assert "kept, train" in ends[0][1] and "kept, train" not in ends[1][1]


@pytest.mark.exhaustive
def test_killed_together_another_number_of_processes_goes_on(place, unbroken):
    out = place / "shared"
    kill_all(runs.call_several(place, "prepare", 2, *command(place, out), devices=2), out, 3)
    kill_all([runs.call(place, "prepare", *command(place, out))], out, 6)
    before = finished(out)
    assert 6 <= len(before) < TARS
    ends = runs.end(runs.call_several(place, "prepare", 3, *command(place, out), devices=3))
    assert [code for code, _ in ends] == [0, 0, 0], ends
    assert sets.contents(out) == unbroken


def train(place, workdir, *more, devices=1):
    where = (
        f"--workdir={place / workdir}",
        f"--config.data.path={place / 'unbroken'}",
        f"--config.train.steps={STEPS}",
    )
    return runs.call(place, "main", "--config=encoded.py", *where, *more, devices=devices)


@pytest.fixture(scope="module")
def whole(place, unbroken):
    """(fingerprint, losses by step) of a run on that set that nothing stopped."""
    fingerprint, _ = runs.finish(train(place, "whole"))
    losses = runs.losses(place / "whole")
    assert list(losses) == list(range(1, STEPS + 1))
    return fingerprint, losses


@pytest.fixture(scope="module")
def shapes(place, unbroken):
    """Of the batches that it trains on."""
    settings = config_lib.typed(overrides.load(place / "encoded.py"))
    data = dataset.open(place / "unbroken")
    loader = feed.make_loader(make_system(settings, None, encoding=data.encoding), data)
    return [batch.image_BYXZ.shape for batch in itertools.islice(loader.batches(), STEPS)]


@pytest.mark.exhaustive
def test_a_run_that_is_stopped_between_two_batches_of_a_bucket_ends_as_an_unbroken_one(place, whole, shapes):
    assert len(set(shapes)) == 3
    stop = next(step for step in range(3, STEPS - 4) if shapes[step - 1] == shapes[step])
    fingerprint, _ = runs.finish(train(place, "broken", f"--config.train.steps={stop}"))
    assert fingerprint != whole[0]
    process = train(place, "broken")
    output = runs.read_until(process, stop + 2)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and f"resuming at step {stop}" in output
    fingerprint, _ = runs.finish(train(place, "broken"))
    assert (fingerprint, runs.losses(place / "broken")) == whole


@pytest.mark.exhaustive
def test_eight_devices_train_as_one(place, whole, shapes):
    assert len(set(shapes[:6])) == 3
    runs.finish(train(place, "on8", "--config.train.steps=6", devices=8))
    losses = runs.losses(place / "on8")
    assert losses == pytest.approx({step: whole[1][step] for step in range(1, 7)}, rel=1e-4)
