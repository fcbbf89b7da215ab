"""Whether routers do well while a run trains: what looks wrong is said once, with what helps, and again when it comes back."""

import math
from collections.abc import Mapping

_MANY = 0.5  # of tokens without an expert, or of requests without a slot
_SURE = 0.02  # entropy of a token's scores over that of equal ones, below which a router is sure of one expert alone
_WELL = 0.8  # of what is too much: a trouble is over when so little of it is left


class RouterHealth:
    """Reads the figures of sparse blocks, `router/NAME/BLOCK`.

    Args:
        experts: of a block.
        score: 'softmax' or another; only of the first an entropy near 0 means that a router has collapsed.
        by_tokens: whether tokens choose experts; who chooses decides what helps.
    """

    def __init__(self, experts: int, score: str = "softmax", *, by_tokens: bool = False):
        self._most_entropy = math.log(max(experts, 2))
        self._kinds = {"untaken", "dropped"} | ({"gate_entropy"} if score == "softmax" else set())
        self._by_tokens = by_tokens
        self._told: set[str] = set()

    def __call__(self, values: Mapping[str, float]) -> list[str]:
        """Gives a line for each trouble that was not there at the last call."""
        lines = list[str]()
        for name, value in sorted(values.items()):
            room, _, rest = name.partition("/")
            kind, _, block = rest.rpartition("/")
            if room != "router" or kind not in self._kinds or not block.isdecimal():
                continue
            share = value / self._most_entropy if kind == "gate_entropy" else value
            trouble = _SURE / max(share, 1e-12) if kind == "gate_entropy" else share / _MANY  # above 1 is too much
            if trouble > 1 and name not in self._told:
                self._told.add(name)
                lines.append(f"warning: sparse block {block}: {self._words(kind, share)}")
            elif trouble < _WELL:
                self._told.discard(name)
        return lines

    def _words(self, kind: str, share: float) -> str:
        if kind == "dropped":
            return (
                f"{share:.0%} of tokens' requests find no slot, as few experts get most of them. A stronger balance helps, by a "
                "larger moe.aux_weight or moe.bias_rate; so does a larger moe.capacity_factor."
            )
        if kind == "untaken" and self._by_tokens:
            return (
                f"{share:.0%} of tokens get no expert: the experts they ask for are full. A larger moe.aux_weight or "
                "moe.capacity_factor helps."
            )
        if kind == "untaken":
            return (
                f"no expert takes {share:.0%} of the tokens, while others have several. A lower optimizer.learning_rate, a "
                "moe.z_weight of 1e-3, or a larger moe.capacity_factor helps; look at maps by python -m ec_dit.routing."
            )
        return (
            f"the router gives nearly all weight of a token to one expert (entropy {share:.1%} of the largest). A moe.z_weight "
            "of 1e-3 or a lower optimizer.learning_rate keeps its scores apart from 0 and 1."
        )
