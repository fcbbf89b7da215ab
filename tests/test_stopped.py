"""SIGTERM while a run does what takes long beside its steps: it ends between two batches, with nothing half written."""

import os
import signal

import jax
import numpy as np
import pytest

from ec_dit.core.stopping import Stopped, StopSignal
from ec_dit.runs import feed, training
from ec_dit.runs.evaluation import Scorer
from ec_dit.runs.grid import SampleGrid
from ec_dit.runs.references import References
from ec_dit.runs.subjects import RunSubject
from ec_dit.runs.workdir import Workdir
from ec_dit.sampling.generator import Generator
from tests import helpers


def sigterm_at(calls, number):
    """Counts a call, and tells this process to stop at that of this number."""
    calls.append(None)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGTERM)


class Writer:
    """Stands for a MetricWriter that must not be written to."""

    def scalars(self, step, values):
        raise AssertionError(f"figures of a validation that was cut short: {values}")

    def image(self, step, name, image):
        raise AssertionError("a grid that was cut short")


class State:
    ema = None


@pytest.fixture
def drawing(monkeypatch):
    """(a system that draws noise in batches of four, the batches it has begun); SIGTERM comes in the first."""
    batches = []

    def draw(self, params, prompts, indices, seed):
        for start in range(0, len(prompts), 4):
            sigterm_at(batches, 1)
            part = slice(start, min(start + 4, len(prompts)))
            yield part, np.zeros((part.stop - part.start, 8, 8, 3), np.uint8)

    monkeypatch.setattr(Generator, "batches", draw)
    c = helpers.tiny_config("dense", log__prompts=tuple("abcdefghij"))
    return helpers.make_system(c, jax.devices()[:1]), batches


def test_a_sample_grid_ends_between_two_batches(drawing, tmp_path):
    system, batches = drawing
    with StopSignal() as stop:
        grid = SampleGrid(References(system, Workdir(str(tmp_path))), Writer(), stop, print)
        with pytest.raises(Stopped):
            grid(10, State)
    assert len(batches) == 1  # of three


def test_a_suite_ends_between_two_batches(drawing, tmp_path):
    system, batches = drawing
    with StopSignal() as stop:
        suite = helpers.PlainSuite(prompts=tuple("abcdefghij"))
        subject = RunSubject(References(system, Workdir(str(tmp_path))), tmp_path / "pictures", stop)
        score = Scorer(suite, subject, tmp_path, print)
        with pytest.raises(Stopped):
            score(subject.at(None, 7))
    assert len(batches) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]  # the pictures so far, and no figure
    assert sorted(path.name for path in (tmp_path / "pictures/plain").iterdir()) == [
        f"0000{i}_0000.png" for i in range(4)
    ]


def test_validation_ends_between_two_batches(tmp_path):
    """In its second split, of which there are two batches; the first has three."""
    c = helpers.tiny_config("dense", train__batch_size=2, data__path=str(tmp_path / "data"), log__validate_images=6)
    c = helpers.change(c, data__options={"image_size": 48, "train": 7, "validation": 4, "novel": 2})
    data, batches = feed.open_data(c, print), []

    def loss(params, batch):
        sigterm_at(batches, 4)
        assert batch[0].shape == (2, 8, 8, 3)
        return np.float32(1), np.int32(2)

    system = helpers.make_system(c, jax.devices()[:1])
    with StopSignal() as stop, pytest.raises(Stopped):
        training._validate(system, data, Writer(), stop, print, loss, 10, State)
    assert len(batches) == 4
