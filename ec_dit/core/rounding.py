"""Shares of whole numbers in exact arithmetic: of 100 tokens, 1 - 0.7 are 30, and not 30.000000000000004."""

from fractions import Fraction

from ec_dit.core.errors import UserError

_SIMPLE = 10**6  # the largest denominator of what people write: 0.7, 1 / 3


def fraction(value: float) -> Fraction:
    """The fraction that a float was written for: 7/10 for 0.7, and 1/3 for the float nearest to a third."""
    simple = Fraction(value).limit_denominator(_SIMPLE)
    return simple if float(simple) == value else Fraction(value)


def kept_tokens(tokens: int, mask_ratio: float, image: str = "an image") -> int:
    """Tokens that training sees of `tokens`.

    Args:
        image: what has so many tokens, for the message.

    Raises:
        UserError: unless they are a whole number, from 1.
    """
    kept = tokens * (1 - fraction(mask_ratio))
    if kept < 1 or kept.denominator != 1:
        raise UserError(
            f"--config.flow.mask_ratio={mask_ratio:g} keeps {float(kept):g} of the {tokens} tokens of {image}, which must be a "
            f"whole number, at least 1. Change the ratio, or leave that shape out."
        )
    return int(kept)
