"""Sets and a run that take their time, made once for all tests of this folder."""

import pytest

from tests import encoded_sets as sets

SIDES = ((32, 32), (24, 40), (40, 24))  # in pixels; a quarter of that in the latents
BUCKETS = ("--resolution=16", "--buckets", "--bucket_step=4")
SQUARE = ("--resolution=16",)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with tars of mixed shapes, two pairs of encoders, and the sets `buckets` and `square`."""
    folder = tmp_path_factory.mktemp("encoded_runs")
    sets.write_tars(folder / "tars", SIDES, 3, 16)
    sets.write_encoders(folder / "encoders", **sets.HALF)
    sets.write_encoders(folder / "others", seed=1, **sets.HALF)
    sets.prepared(folder / "tars", folder / "buckets", folder / "encoders", *BUCKETS)
    sets.prepared(folder / "tars", folder / "square", folder / "encoders", *SQUARE)
    return folder


@pytest.fixture(scope="session")
def trained(place):
    """A run of two steps on `square`."""
    assert sets.train(place, place / "run", f"--config.data.path={place / 'square'}", "--config.train.steps=2") == 0
    return place / "run"


@pytest.fixture(scope="session")
def others(place):
    """`square`, made with the other encoders."""
    return sets.prepared(place / "tars", place / "set_of_others", place / "others", *SQUARE)
