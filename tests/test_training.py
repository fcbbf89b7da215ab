"""What a run does with its helpers: it ends when one dies, and ends them when it ends, well or not."""

import jax.numpy as jnp
import pytest

from ec_dit import config, presets
from ec_dit.core.errors import TryAgain
from ec_dit.core.lock import Lock
from ec_dit.flow.loss import LEVELS
from ec_dit.runs import training
from ec_dit.system import step as training_step
from ec_dit.train.checkpoint import Checkpointer
from ec_dit.train.metrics import MetricWriter


class Saving:
    """Stands for a Checkpointer with a save under way."""

    def __init__(self, failure=None):
        self.calls, self.failure = [], failure

    def wait(self):
        self.calls.append("wait")
        if self.failure:
            raise self.failure

    def close(self):
        self.calls.append("close")


@pytest.mark.parametrize("failure", [None, OSError("the disk too")])
def test_a_run_that_fails_finishes_its_save_and_tells_its_own_reason(failure):
    saving = Saving(failure)
    with pytest.raises(ZeroDivisionError), training._closing(saving):
        raise ZeroDivisionError
    assert saving.calls == ["wait"]


def test_a_run_that_ends_well_closes_what_saves():
    saving = Saving()
    with training._closing(saving):
        assert saving.calls == []
    assert saving.calls == ["close"]


def plain_step(system, tx, shardings):
    """A step that computes nothing and compiles nothing."""
    metrics = {name: jnp.float32(1) for name in ("loss", "grad_norm", "param_norm")}
    metrics |= {"level_sum": jnp.zeros(LEVELS), "level_count": jnp.zeros(LEVELS)}
    return lambda state, batch, frozen: (state, metrics)


@pytest.mark.parametrize("helper", [Checkpointer, MetricWriter, Lock])
def test_a_helper_that_dies_ends_the_run_at_that_step_with_its_reason(helper, tmp_path, monkeypatch):
    """Saves, what copies metrics to a bucket, and the lock of the workdir are looked at after every step."""
    steps, said = [], []

    def check(self):
        steps.append(len(steps) + 1)
        if len(steps) == 3:
            raise TryAgain(f"{helper.__name__} died")

    monkeypatch.setattr(helper, "check", check)
    monkeypatch.setattr(training, "peak_flops", lambda device: (1e12, "made up"))
    monkeypatch.setattr(training_step, "init_state", lambda system, tx, shardings: "a state")
    monkeypatch.setattr(training_step, "make_train_step", plain_step)
    c = presets.smoke(config.default())
    c.model.update(num_blocks=1)
    c.moe.update(routing="dense", num_experts=0)
    c.text.update(encoder="cached", width=8)
    c.data.update(source="synthetic", space="latents", size=8, channels=4)
    c.mesh.data = 8
    with pytest.raises(TryAgain, match=rf"^{helper.__name__} died$"):
        training.run(config.typed(c), str(tmp_path / "run"), said.append)
    assert steps == [1, 2, 3]
    assert [line.split()[1] for line in said if line.startswith("step ")] == ["1/10", "2/10"]
    assert not (tmp_path / "run" / ".lock").exists()
