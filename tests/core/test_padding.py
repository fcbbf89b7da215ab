"""Against the batches written down by hand."""

import pytest

from ec_dit.core.padding import padded


@pytest.mark.parametrize(
    ("count", "batches"),
    [
        (0, []),
        (2, [(slice(0, 2), [0, 1, -1])]),
        (3, [(slice(0, 3), [0, 1, 2])]),
        (4, [(slice(0, 3), [0, 1, 2]), (slice(3, 4), [3, -1, -1])]),
    ],
)
def test_batches_have_one_size_and_the_last_is_filled_up(count, batches):
    assert list(padded(range(count), 3, -1)) == batches
