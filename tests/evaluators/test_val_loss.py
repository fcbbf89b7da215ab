"""Loss at fixed times: means by hand, and the losses of a run's examples, whatever batches they come in."""

import types

import jax
import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.evaluators import registry
from ec_dit.evaluators.val_loss import TimedLoss
from ec_dit.runs import feed, timed_losses
from ec_dit.runs.references import References
from ec_dit.runs.workdir import Workdir
from tests import helpers


def test_the_score_is_the_mean_of_the_times_means():
    """Times with different numbers of examples count alike."""
    asked = []

    def losses(split, count, times, routed):
        asked.append((split, count, times, routed))
        return np.array([1.0, 10.0, 3.0, 20.0, 5.0])

    found = TimedLoss("validation", 5, (0.25, 0.75)).measure(losses)
    assert asked == [("validation", 5, (0.25, 0.75), "sampling")]
    assert found.score == pytest.approx((3.0 + 15.0) / 2)
    assert found.parts == {"times": {"t=0.25": 3.0, "t=0.75": 15.0}}
    assert found.error == pytest.approx(np.sqrt(4 / 3 + 50 / 2) / 2)
    assert found.count == 5 and [row["value"] for row in found.rows] == [1, 10, 3, 20, 5]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(references, parameters) of a model with random ones, and a data set of 11 held-out scenes."""
    path = str(tmp_path_factory.mktemp("val_loss") / "data")
    options = {"image_size": 48, "train": 16, "validation": 11, "novel": 2}
    c = helpers.tiny_config("dense", model__num_blocks=1, data__path=path, data__workers=0, data__options=options)
    data = feed.open_data(c, print)
    system = helpers.make_system(c)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: (0.3 * rng.normal(size=a.shape)).astype(np.float32), system.shapes())
    return References(system, Workdir(str(tmp_path_factory.mktemp("run"))), data), params


def test_losses_are_of_their_examples_and_times_whatever_is_asked_for(run):
    """One time alone gives the losses that it gives among others; the first of all records are those of fewer."""
    references, params = run
    losses = timed_losses.make(references.system, references, iter, params)
    both = losses("validation", 11, (0.25, 0.75))
    assert both.shape == (11,) and np.isfinite(both).all() and both.std() > 0.01
    late = losses("validation", 11, (0.75,))
    np.testing.assert_allclose(both[1::2], late[1::2], rtol=1e-5)
    assert (np.abs(both[::2] - late[::2]) > 1e-4).all()
    np.testing.assert_allclose(losses("validation", 10_000, (0.75,)), late, rtol=1e-5)


def test_a_suite_asks_for_a_split_that_there_is():
    facts = types.SimpleNamespace(splits=("train", "validation", "novel"), draws=True, size=lambda split: 5)
    assert registry.parse("val_loss:times=(0.5,),most=3").make(facts)
    for options in ("", "times=(0.25,0.75),most=1"):
        with pytest.raises(UserError, match=r"there are [51] examples of split validation, fewer than the [82] times"):
            registry.parse(f"val_loss:{options}" if options else "val_loss").make(facts)
    with pytest.raises(UserError, match="suite val_loss needs the model itself: give --workdir=DIR"):
        registry.parse("val_loss").make(types.SimpleNamespace(splits=(), draws=False))
    with pytest.raises(UserError, match=r"no split 'hidden' in the run's data; it has train, validation, novel"):
        registry.parse("val_loss:split=hidden").make(facts)
    with pytest.raises(UserError, match=r"give times from 0, data, to 1, noise"):
        registry.parse("val_loss:times=(0.5,2)")
