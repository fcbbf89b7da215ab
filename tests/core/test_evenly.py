"""Some of many, at even distances."""

import pytest

from ec_dit.core.evenly import evenly


@pytest.mark.parametrize(
    ("count", "most", "wanted"),
    [
        (0, 4, []),
        (1, 4, [0]),
        (3, 4, [0, 1, 2]),
        (9, 6, [0, 2, 3, 5, 6, 8]),
        (19, 8, [0, 3, 5, 8, 10, 13, 15, 18]),
        (50, 1, [0]),
        (50, 2, [0, 49]),
        (5, 0, []),
    ],
)
def test_the_first_the_last_and_some_between(count, most, wanted):
    assert evenly(count, most) == wanted
