import itertools
import math

import pytest

from ec_dit.core.errors import UserError
from ec_dit.preparation.resolution import buckets, nearest, square


def test_square():
    assert square(256) == ((256, 256),)


def test_buckets_by_hand():
    # In units of 64: at most 16 of them. Rows 2, 3, 4 take 8, 5, 4 columns; columns 5, 6, 7, 8 take 3, 2, 2, 2 rows.
    expected = [(8, 2), (7, 2), (6, 2), (5, 3), (4, 4), (3, 5), (2, 6), (2, 7), (2, 8)]
    assert buckets(256, 64, max_aspect=4) == tuple((64 * y, 64 * x) for y, x in expected)
    assert buckets(256, 64) == ((320, 192), (256, 256), (192, 320))
    assert buckets(256, 64, max_aspect=1) == ((256, 256),)
    assert buckets(32, 32, max_aspect=100) == ((32, 32),)
    assert buckets(64, 32, max_aspect=math.inf) == ((128, 32), (96, 32), (64, 64), (32, 96), (32, 128))


def test_buckets_are_those_of_the_field():
    shapes = buckets(1024, 64)
    assert len(shapes) == 13
    assert {(1024, 1024), (1152, 896), (832, 1216), (1280, 768), (768, 1344), (704, 1408)} <= set(shapes)


@pytest.mark.parametrize(
    ("resolution", "step", "max_aspect"), list(itertools.product((96, 256, 512), (16, 32), (1, 1.15, 2, 2.5)))
)
def test_buckets_keep_their_promises(resolution, step, max_aspect):
    shapes = buckets(resolution, step, max_aspect)
    assert len(set(shapes)) == len(shapes)
    assert (resolution, resolution) in shapes
    assert {(x, y) for y, x in shapes} == set(shapes)
    aspects = [x / y for y, x in shapes]
    assert aspects == sorted(aspects)
    assert 1 / max_aspect <= min(aspects) and max(aspects) <= max_aspect
    for y, x in shapes:
        assert y % step == x % step == 0
        assert y * x <= resolution**2
        assert y * (x + step) > resolution**2 or (y + step) * x > resolution**2  # One side is the longest there is.


def test_the_limit_of_aspect_is_included():
    assert 2.3 * 50 < 115 and 115 / 50 == 2.3  # In floats.
    assert buckets(76, 1, max_aspect=2.3)[0] == (115, 50)
    assert (115, 50) not in buckets(76, 1, max_aspect=2.2999)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((250, 64), "resolution is 250; it must be a multiple of 64, such as 256"),
        ((20, 64), "resolution is 20; it must be a multiple of 64, such as 64"),
        ((0, 64), "resolution is 0; it must be at least 1"),
        ((64, 0), "step is 0; it must be at least 1"),
        ((64, 64, 0.5), "max_aspect is 0.5; it must be at least 1"),
        ((64, 64, math.nan), "max_aspect is nan; it must be at least 1"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        buckets(*arguments)


def test_square_needs_a_side():
    with pytest.raises(UserError, match=r"^resolution is 0; it must be at least 1$"):
        square(0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 500), (256, 256)),
        ((1, 1), (256, 256)),
        ((512, 128), (128, 512)),
        ((128, 512), (512, 128)),
        ((100_000, 1), (128, 512)),
        ((1, 100_000), (512, 128)),
        ((640, 480), (192, 320)),  # 1.33 is a factor 1.33 from 1 and 1.25 from 1.67.
        ((480, 640), (320, 192)),
        ((1290, 1000), (256, 256)),  # The limit is the root of 5/3, 1.2910.
        ((1292, 1000), (192, 320)),
    ],
)
def test_nearest_by_the_factor_between_aspects(size, expected):
    assert nearest(buckets(256, 64, 4), *size) == expected


def test_ties_do_not_depend_on_the_order():
    for order in itertools.permutations([(2, 4), (4, 2), (1, 2), (2, 1)]):
        assert nearest(order, 7, 7) == (2, 4)  # All a factor 2 away: the largest, and of those the fewest rows.
        assert nearest(order, 30, 10) == (2, 4)
        assert nearest(order, 10, 30) == (4, 2)
    for order in itertools.permutations([(4, 4), (1, 9)]):
        assert nearest(order, 3, 1) == (4, 4)  # A factor 3 from both, which logarithms in floats may see otherwise.
