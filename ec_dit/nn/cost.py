"""What a layer costs by formula: its parameters, and the FLOPs of one forward pass for one image.

A layer's `cost` stands beside its constructor and takes the same sizes; a model sums those of its layers
(`models/sizes.py`), and tests hold every formula to what is built and traced. FLOPs count matrix products only, two for
a multiply-add; norms, activations, gathers and recomputation (remat) count nothing, as in model FLOPs utilisation.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce


@dataclass(frozen=True)
class Cost:
    """The cost of a layer, or of several.

    Attributes:
        params: all parameters.
        activated: those that work on a token on average (the paper's Algorithm 2).
        flops: of one forward pass for one image.
    """

    params: int = 0
    activated: int = 0
    flops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.params + other.params, self.activated + other.activated, self.flops + other.flops)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.params * times, self.activated * times, self.flops * times)


@dataclass(frozen=True)
class Load:
    """What one image brings to a model.

    Attributes:
        tokens: S, image tokens that enter it: the kept ones in training, all of them in sampling.
        text_tokens: T, padding included, since it is multiplied too.
        capacity_factor: f_c, feed-forward layers per token in a sparse block; every slot counts, filled or not.
        reads_text: whether keys, values and projections of the text are made too, which sampling does once for all its steps.
    """

    tokens: int
    text_tokens: int
    capacity_factor: float
    reads_text: bool = True

    @property
    def read_tokens(self) -> int:
        """Text tokens of which keys, values and projections are made."""
        return self.text_tokens if self.reads_text else 0


def always(params: int, flops: int = 0) -> Cost:
    """Gives the cost of parameters that work on every token."""
    return Cost(params, params, flops)


def linear(inputs: int, outputs: int, rows: int = 1, *, bias: bool = False) -> Cost:
    """Gives the cost of a linear map of `rows` vectors."""
    return always(inputs * outputs + (outputs if bias else 0), 2 * rows * inputs * outputs)


def total(costs: Iterable[Cost]) -> Cost:
    """Sums costs."""
    return reduce(Cost.__add__, costs, Cost())
