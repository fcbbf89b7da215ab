"""Checkpoints that many tests copy."""

import pytest

from ec_dit.train.checkpoint import Checkpointer
from tests.train.checkpoints import state


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """A folder with checkpoints 1 and 2, as it was left."""
    folder = tmp_path_factory.mktemp("two") / "c"
    checkpoints = Checkpointer(str(folder), asynchronous=False)
    for step in (1, 2):
        checkpoints.save(step, state(step), {"name": f"x{step}"})
    checkpoints.close()
    return folder
