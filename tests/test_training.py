"""What a run does with its helpers when it ends, well or not."""

import pytest

from ec_dit import training


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
