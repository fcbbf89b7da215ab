"""A disk that takes no more ends a run with one message, whoever meets it: here a save in the background, by a limit on files."""

import gc
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from ec_dit import cli
from ec_dit.core.errors import TryAgain, explain
from ec_dit.train.checkpoint import Checkpointer
from ec_dit.train.state import TrainState

pytestmark = pytest.mark.slow


@pytest.fixture
def small_files():
    """No file may grow beyond 100,000 bytes; Python ignores the signal that would end it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = logging.get_verbosity(), sys.unraisablehook
    cli.quiet()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    logging.set_verbosity(before[0])
    sys.unraisablehook = before[1]


def test_a_save_that_fails_in_the_background_is_told_once_and_without_a_traceback(tmp_path, capfd, caplog, small_files):
    rng = np.random.default_rng(0)
    params = {str(i): jnp.asarray(rng.normal(size=(300, 300)), jnp.float32) for i in range(20)}
    state = TrainState(jnp.int32(1), jax.random.key(0), params, params, {})
    checkpointer = Checkpointer(str(tmp_path))

    def save_and_look():
        checkpointer.save(1, state, {"config": {}})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            checkpointer.check()
            time.sleep(0.01)

    with pytest.raises(Exception, match="File too large") as failure:
        save_and_look()
    told = explain(failure.value)
    assert isinstance(told, TryAgain)
    assert str(told).endswith("Make room there, or raise the limit, and start the same command again.")
    del failure
    gc.collect()  # of what the save had begun, as at the end of a run
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text
