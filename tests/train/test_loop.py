"""The loop with a made-up step: rates, averages, and the stop on a loss that is not finite."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.train import loop
from ec_dit.train.metrics import MetricWriter

STEPS = 6


def metrics(step, loss, param_norm=1.0):
    return {
        "loss": jnp.float32(loss),
        "grad_norm": jnp.float32(1.0),
        "param_norm": jnp.float32(param_norm),
        "level_sum": jnp.array([1.0, 0.0, 6.0, 2.0]) * step,
        "level_count": jnp.array([1.0, 0.0, 2.0, 1.0]),
        "router/max_experts": jnp.array([step, 2.0]),
        "router/untaken": jnp.array([0.5, 0.25 * step]),
    }


def run(tmp_path, losses, saved, lines, param_norms=(1.0,) * STEPS):
    def step_fn(state, batch):
        return state + 1, metrics(state + 1, losses[state], param_norms[state])

    with MetricWriter(str(tmp_path)) as writer:
        progress = loop.Progress(
            writer,
            lines.append,
            every=3,
            must_fetch=lambda done: done == 4,
            total_steps=STEPS,
            images_per_step=10,
            flops_per_step=1e9,
            peak_flops=1e12,
            describe=lambda tag: f"records {tag}",
            last_good=lambda: f"Last good checkpoint: step {max(saved, default=None)}.",
            schedule=lambda step: 0.1 * step,
        )

        def save(done, state, values, tag, last):
            if done in (2, 4):
                saved.append(done)

        batches = ((None, f"of batch {i}") for i in range(100))
        loop.train(0, step_fn, batches, first_step=0, steps=STEPS, callbacks=[progress, save])


def test_lines_and_averages(tmp_path):
    lines = []
    run(tmp_path, [1.0, 2.0, 6.0, 1.0, 1.0, 4.0], [], lines)
    assert [line.split("  ")[:2] for line in lines] == [["step 3/6", "loss 3.0000"], ["step 6/6", "loss 2.0000"]]
    assert "images/s" in lines[1] and "MFU" in lines[1] and "ETA 0:00:00" in lines[1]
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["step"] == 3
    assert first["learning_rate"] == pytest.approx(0.2)
    assert first["loss_t/0-0.25"] == pytest.approx((1 + 2 + 3) / 3)
    assert first["loss_t/0.5-0.75"] == pytest.approx((6 + 12 + 18) / 6)
    assert "loss_t/0.25-0.5" not in first  # no image fell there
    assert first["router/max_experts/0"] == 3  # a maximum over steps, not a mean
    assert first["router/untaken/1"] == pytest.approx(0.5)
    assert second["images_per_second"] > 0


@pytest.mark.parametrize(("bad", "saved_before"), [(4, [2]), (5, [2, 4])])
def test_a_loss_that_is_not_finite_stops_before_anything_bad_is_saved(tmp_path, bad, saved_before):
    losses, saved = [1.0] * STEPS, []
    losses[bad - 1] = np.nan
    with pytest.raises(loop.NonFiniteLossError) as stop:
        run(tmp_path, losses, saved, [])
    message = str(stop.value)
    assert f"at step {bad}." in message
    assert f"records of batch {bad - 1}" in message
    assert f"Last good checkpoint: step {saved_before[-1]}." in message
    assert saved == saved_before


def test_an_update_that_is_not_finite_is_not_saved_either(tmp_path):
    """The loss of a step is that before its update: without this the last step could save what nobody can use."""
    saved = []
    with pytest.raises(loop.NonFiniteLossError, match="parameter norm inf at step 4"):
        run(tmp_path, [1.0] * STEPS, saved, [], [1.0, 1.0, 1.0, np.inf, np.inf, np.inf])
    assert saved == [2]
