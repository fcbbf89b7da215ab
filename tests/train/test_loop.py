"""The loop with a made-up step: rates, averages, and the stop on a loss that is not finite."""

import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.core import stopping
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
            flops_of=lambda step: 1e9,
            peak_flops=1e12,
            describe=lambda tag: f"records {tag}",
            last_good=lambda: f"Last good checkpoint: step {max(saved, default=None)}.",
            schedule=lambda step: 0.1 * step,
            watch=lambda values: [f"untaken {values['router/untaken/1']:g}"] if values["router/untaken/1"] > 1 else [],
        )

        def save(done, state, values, tag, last):
            if done in (2, 4):
                saved.append(done)

        batches = ((None, f"of batch {i}") for i in range(100))
        loop.train(0, step_fn, batches, first_step=0, steps=STEPS, callbacks=[progress, save])


def test_lines_and_averages(tmp_path):
    lines = []
    run(tmp_path, [1.0, 2.0, 6.0, 1.0, 1.0, 4.0], [], lines)
    told = [
        ["step 3/6", "loss 3.0000"],
        ["step 6/6", "loss 2.0000"],
        ["untaken 1.25"],
    ]  # what watches speaks after the line
    assert [line.split("  ")[:2] for line in lines] == told
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


def simple(steps, callbacks, first_step=0, **options):
    """Steps of a state that counts them; returns what `train` does."""
    batches = ((None, None) for _ in range(100))

    def step_fn(state, batch):
        return state + 1, metrics(state + 1, 1.0)

    return loop.train(0, step_fn, batches, first_step=first_step, steps=steps, callbacks=callbacks, **options)


def test_what_a_helper_died_of_ends_the_run_within_a_step():
    seen, died = [], []

    def check():
        if died:
            raise OSError(28, "No space left on device")

    def callback(done, *_):
        seen.append(done)
        if done == 3:
            died.append("a thread")

    with pytest.raises(OSError, match="No space left on device"):
        simple(STEPS, [callback], checks=[lambda: None, check])
    assert seen == [1, 2, 3]


class Saves:
    """Stands for a Checkpointer."""

    def __init__(self, writer):
        self.saved, self.writer = [], writer

    def save(self, step, state, meta):
        self.saved.append((step, state, meta, self.writer.synced))


class Writer:
    """Stands for a MetricWriter."""

    synced = 0
    values = ()

    def sync(self):
        self.synced += 1

    def scalars(self, step, values):
        self.values = (*self.values, (step, values))


def progress_of(writer, every, **options):
    chosen = {"images_per_step": 10, "flops_of": lambda step: 1e9, "peak_flops": 1e12, "total_steps": STEPS} | options
    return loop.Progress(
        writer,
        lambda line: None,
        every=every,
        must_fetch=lambda done: False,
        describe=str,
        last_good=str,
        schedule=float,
        **chosen,
    )


def test_sigterm_in_a_long_action_cuts_it_short_and_saves_its_step():
    """Validation that takes long: its step is saved, from which it can be done again; what comes next there does not begin."""
    writer = Writer()
    checkpoints, drawn, began = Saves(writer), [], []
    save = loop.SaveEvery(checkpoints, writer, 100, lambda done: {"step": done})
    with stopping.StopSignal() as stop:

        def validate(done, state):
            for batch in stop.between(range(50)):
                drawn.append((done, batch))
                if done == 4 and batch == 2:
                    os.kill(os.getpid(), signal.SIGTERM)

        progress = progress_of(writer, 3)
        actions = [
            loop.Every(2, STEPS, progress, validate),
            loop.Every(4, STEPS, progress, lambda done, state: began.extend(stop.between([done]))),
        ]
        assert simple(STEPS, [progress, save], actions=actions, stop=stop) == (4, 4, False)
    assert drawn == [(2, batch) for batch in range(50)] + [(4, 0), (4, 1), (4, 2)]
    assert began == []
    assert checkpoints.saved == [(4, 4, {"step": 4}, 1)]  # its metrics were brought to their place before
    means = [(step, values["router/untaken/1"]) for step, values in writer.values]
    assert means == [(3, pytest.approx(0.25 * 2)), (4, pytest.approx(0.25 * 4))]  # each step counts once


@pytest.mark.parametrize("cut", ["before", "within"])
def test_sigterm_at_the_last_step_leaves_a_run_that_is_not_complete(cut):
    saved, drawn = [], []
    with stopping.StopSignal() as stop:

        def draw(done, state):
            for batch in stop.between(range(3)):
                drawn.append(batch)
                os.kill(os.getpid(), signal.SIGTERM)

        def step_callback(done, state, values, tag, last):
            if last:
                saved.append(done)
            if cut == "before" and done == STEPS - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        actions = [loop.Every(STEPS, STEPS, progress_of(Writer(), 1), draw)]
        assert simple(STEPS, [step_callback], actions=actions, stop=stop) == (STEPS, STEPS, False)
    assert (saved, drawn) == ([STEPS], [] if cut == "before" else [0])


def test_without_actions_sigterm_at_the_last_step_takes_nothing_away():
    assert simple(2, [], stop=iter([False, True]).__next__) == (2, 2, True)


def test_a_run_that_goes_on_makes_up_for_what_is_missing_of_its_first_step():
    acted = []

    def every(steps, name, recorded):
        return loop.Every(
            steps, 9, progress_of(Writer(), 1), lambda done, state: acted.append((done, name, state)), lambda: recorded
        )

    actions = [every(2, "missing", False), every(2, "there", True), every(3, "not due", False)]
    for first_step in (0, 4, 9):
        assert simple(first_step, [], first_step=first_step, actions=actions) == (0, first_step, True)
    assert acted == [(4, "missing", 0), (9, "missing", 0), (9, "not due", 0)]
    acted.clear()
    simple(6, [], first_step=4, actions=actions)
    assert acted == [(4, "missing", 0), (6, "missing", 2), (6, "there", 2), (6, "not due", 2)]


def test_sigterm_while_it_makes_up_ends_the_run_before_its_first_step():
    def draw(done, state):
        raise stopping.Stopped

    actions = [loop.Every(2, STEPS, progress_of(Writer(), 1), draw, lambda: False)]
    assert simple(STEPS, [lambda *_: 1 / 0], first_step=4, actions=actions) == (0, 4, False)


def test_a_crash_in_a_callback_comes_after_the_checkpoint_of_its_step():
    writer = Writer()
    checkpoints = Saves(writer)
    save = loop.SaveEvery(checkpoints, writer, 3, lambda done: {})
    draw = loop.Every(3, STEPS, progress_of(writer, 1), lambda done, state: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        simple(STEPS, [save], actions=[draw])
    assert checkpoints.saved == [(3, 3, {}, 1)]


def test_rates_leave_out_validation_and_compilation(monkeypatch):
    """A step takes 2 s, the first 100 s, validation after steps 2 and 4 takes 50 s: 10 images and 1e9 FLOPs in 2 s."""
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    writer = Writer()
    progress, lines = progress_of(writer, 3), []
    monkeypatch.setattr(progress, "_say", lines.append)

    def step(done, *_):
        clock[0] += 100 if done == 1 else 2

    def validate(done, state):
        clock[0] += 50

    simple(STEPS, [step, progress], actions=[loop.Every(2, STEPS, progress, validate)])
    assert [step for step, _ in writer.values] == [3, 6]
    assert [line.partition("ETA ")[2] for line in lines] == ["0:00:06", "0:00:00"]
    for _, values in writer.values:
        assert values["images_per_second"] == pytest.approx(10 / 2)
        assert values["mfu"] == pytest.approx(1e9 / 2 / 1e12)


def test_actions_fall_on_their_steps_and_on_the_last_but_not_on_a_stop():
    acted = []
    every = loop.Every(2, 5, progress_of(Writer(), 1), lambda done, state: acted.append(done))
    assert simple(5, [], actions=[every]) == (5, 5, True)
    assert acted == [2, 4, 5]
    answers = iter([False, True])  # told to stop at step 2, where the action would be due
    assert simple(5, [], actions=[every], stop=lambda: next(answers)) == (2, 2, False)
    assert acted == [2, 4, 5]


@pytest.mark.parametrize(("seconds", "shown"), [(59.6, "0:01:00"), (3725.4, "1:02:05"), (360_000, "100:00:00")])
def test_times_are_hours_minutes_and_seconds(seconds, shown):
    assert loop._clock(seconds) == shown
