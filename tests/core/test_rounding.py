"""Shares of whole numbers, against whole-number arithmetic."""

from fractions import Fraction

import pytest

from ec_dit.core import rounding
from ec_dit.core.errors import UserError
from ec_dit.nn.routing import spec as routing


def test_a_float_is_the_fraction_it_was_written_for():
    for denominator in (1, 3, 7, 10, 49, 100, 1000):
        for numerator in range(3 * denominator):
            assert rounding.fraction(numerator / denominator) == Fraction(numerator, denominator)
    for value in (0.1234567891234, 1e-300, 1e300, 2.0**-40):  # none that was written short
        assert float(rounding.fraction(value)) == value


@pytest.mark.parametrize("tokens", [64, 100, 256, 1024, 1000])
def test_every_whole_share_is_kept_whole(tokens):
    for dropped in range(tokens):
        assert rounding.kept_tokens(tokens, dropped / tokens) == tokens - dropped
    for percent in range(100):
        whole = tokens * (100 - percent) % 100 == 0
        if whole:
            assert rounding.kept_tokens(tokens, percent / 100) == tokens * (100 - percent) // 100
        else:
            with pytest.raises(UserError, match=f"of the {tokens} tokens of an image, which must be a whole number"):
                rounding.kept_tokens(tokens, percent / 100)


def test_none_is_no_share():
    with pytest.raises(UserError, match=r"keeps 0\.001 of the 1 tokens"):
        rounding.kept_tokens(1, 0.999)


def test_capacities_of_odd_factors_are_exact():
    for experts in (2, 3, 6, 8, 10):
        for slots in range(1, 30):
            factor = slots * experts / 30  # 30 tokens, each met so often on average
            if slots <= 30:
                routing.check_capacity(30, experts, factor)
                assert routing.capacity(30, experts, factor) == slots
    assert routing.capacity(10, 1, 0.3) == 3
    assert (
        routing.capacity(10**9, 7, 7 * 0.3000000001) == 300_000_001
    )  # an excess of less than a millionth of a share counts
