import os
import signal

import jax
import jax.numpy as jnp
import pytest

from ec_dit.train import loop
from ec_dit.train.trace import TraceOnSignal


@pytest.mark.parametrize("steps", [6, 3])  # the run ends after the trace, or in the middle of it
def test_a_signal_leaves_a_trace_of_the_next_steps(tmp_path, steps):
    lines = []
    jitted = jax.jit(lambda state: state + 1)

    def step_fn(state, batch):
        if batch == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return jitted(state), {}

    before = signal.getsignal(signal.SIGUSR1)
    with TraceOnSignal(str(tmp_path / "trace"), 2, lines.append) as trace:
        loop.train(jnp.zeros(3), step_fn, iter(enumerate(range(steps))), first_step=0, steps=steps, callbacks=[trace])
    assert lines == ["tracing steps 3 to 4", f"trace written: xprof --logdir={tmp_path / 'trace'}"]
    assert list((tmp_path / "trace" / "plugins" / "profile").glob("*/*.xplane.pb"))
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_profiler_that_fails_ends_no_training(tmp_path, monkeypatch):
    """At its start, as where another one runs already; the next signal is tried anew."""

    def fail(folder):
        raise RuntimeError("Only one profile may be run at a time.")

    lines = []
    with TraceOnSignal(str(tmp_path / "trace"), 1, lines.append) as trace:
        monkeypatch.setattr(jax.profiler, "start_trace", fail)
        os.kill(os.getpid(), signal.SIGUSR1)
        trace(1, jnp.zeros(3), {}, None, last=False)
        trace(2, jnp.zeros(3), {}, None, last=False)
        assert lines == ["warning: no trace was begun: Only one profile may be run at a time."]
        monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
        os.kill(os.getpid(), signal.SIGUSR1)
        trace(3, jnp.zeros(3), {}, None, last=False)
        trace(4, jnp.zeros(3), {}, None, last=False)
    assert lines[1:] == ["tracing steps 4 to 4", f"trace written: xprof --logdir={tmp_path / 'trace'}"]
