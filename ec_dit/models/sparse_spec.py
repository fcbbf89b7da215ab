"""Which blocks have experts, what those are made of, and how they route in training: the `moe` section."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from ec_dit.core.settings import COUNT, SIZE, key, only, unless
from ec_dit.nn.routing.spec import IMAGE, RouterInput, RoutingKind, RoutingSpec

_SPARSE = unless("moe.routing", "dense")
# Instead of what decides more than memory.
MEMORY = (
    "with fewer devices, or less memory, give model.remat=full instead, and more of them to mesh.fsdp or mesh.expert than "
    "to mesh.data"
)


def _factors(value: tuple[object, ...]) -> str | None:
    good = all(isinstance(f, int | float) and not isinstance(f, bool) and 0 < f <= SIZE for f in value)
    return None if good else "give a number above 0 for each sparse block, such as (4.0, 2.0, 2.0)"


@dataclass(frozen=True)
class SparseSpec:
    """Which blocks are sparse, and what they are made of. num_experts = 0: a dense model.

    Attributes:
        record: as of `RoutingSpec`.
        thresholds, predictor, biases: what the rule needs (`nn/routing/rules.py`); no keys of a config.

    Block i is sparse when first <= i < stop and (i - first) is a multiple of every: the paper's 1, 3, 5, ...
    """

    num_experts: int = key(0, "E, experts of a sparse block; 0: none", at_least=0, at_most=SIZE, params="shape")
    first: int = key(1, "index of the first sparse block", at_least=0, at_most=SIZE, use=_SPARSE, params="shape")
    every: int = key(2, "a sparse block every so many", at_least=1, at_most=SIZE, use=_SPARSE, params="shape")
    stop: int = key(
        0,
        "index of the block from which on none is sparse; 0 = no such block",
        at_least=0,
        at_most=SIZE,
        use=_SPARSE,
        params="shape",
    )
    expert_width: int = key(
        0,
        "inner width of an expert; 0 = that of a dense block; more and narrower experts at equal compute (DSMoE)",
        at_least=0,
        at_most=SIZE,
        use=_SPARSE,
        params="shape",
    )
    shared_width: int = key(
        0,
        "inner width of an expert that works on every token beside the others (several are one of their width); 0 = none",
        at_least=0,
        at_most=SIZE,
        use=_SPARSE,
        params="shape",
    )
    router_input: RouterInput = key(
        "modulated",
        "what routers read: modulated, what the experts get (the paper's); normed_time, that without modulation, and the time "
        "embedding (Nucleus-Image); start, the normalised tokens that enter the block",
        use=_SPARSE,
        params="shape",
    )

    capacity_factors: tuple[float, ...] = key(
        (),
        "f_c of each sparse block, in their order; () = moe.capacity_factor in all",
        check=_factors,
        use=_SPARSE,
        params="shape",
    )

    record: bool = False
    thresholds: bool = False
    predictor: bool = False
    biases: bool = False

    def is_sparse(self, block: int) -> bool:
        """Tells whether the block of that index has experts."""
        within = block >= self.first and (not self.stop or block < self.stop)
        return bool(self.num_experts) and within and (block - self.first) % self.every == 0


def _schedule(value: tuple[Any, ...]) -> str | None:
    good = len(value) % 2 == 0 and all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in value
    )
    if good:
        ends, factors = value[::2], value[1::2]
        whole = all(n == int(n) and 0 < n <= COUNT for n in ends)
        good = whole and list(ends) == sorted(set(ends)) and all(0 < f <= SIZE for f in factors)
    return None if good else "give rising steps, each with a factor above 0, such as (10000, 4.0, 20000, 3.0)"


def _group_size(value: str) -> str | None:
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 12 else 0
    return None if value == IMAGE or 1 <= number <= COUNT else f"give a number of tokens, or {IMAGE}"


@dataclass(frozen=True)
class MoESpec(RoutingSpec, SparseSpec):
    """The `moe` section: where sparse blocks are, and how they route in training."""

    routing: RoutingKind = key(
        "dense",
        "expert_choice; token_choice: GShard top-2; top_k: moe.top_k experts; expert_race; diffmoe; dense: no experts",
        params="shape",
    )
    group_size: int | str = key(
        "1024",
        "tokens routed together in training: a number, or 'image'",
        check=_group_size,
        use=_SPARSE,
        because=f"it decides which tokens compete for an expert; {MEMORY}",
    )
    capacity_until: tuple[float, ...] = key(
        (),
        "other capacity factors at first, as pairs of (step, factor): (10_000, 4.0, 20_000, 3.0) is 4 before step 10,000, 3 "
        "before step 20,000, then moe.capacity_factor, which sampling has; a step is compiled for each",
        check=_schedule,
        use=_SPARSE,
    )
    group_times: Literal["mixed", "sorted"] = key(
        "mixed",
        "of the images that are routed together in training: as they are drawn, or sorted, so that those of a group are alike",
        use=_SPARSE,
    )
    aux_weight: float = key(
        0.01, "of the load-balancing loss", at_least=0, use=only("moe.routing", "token_choice", "top_k")
    )
