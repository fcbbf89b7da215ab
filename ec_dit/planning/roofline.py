"""How long a compiled step takes by its own figures: compute, memory and interconnect, and which of them bounds it.

At a stated share of the data sheet's peaks. Links: a collective uses every torus dimension along which its devices differ, both
directions of each; where it goes all the way round a dimension that closes to a ring, else one direction's worth. Left out: what
a message takes to set up, and that two collectives may want the same links or hide behind the same kernel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ec_dit.core.hardware import EFFICIENCY, Chip
from ec_dit.planning.collectives import Collective
from ec_dit.planning.kernels import Work

Coordinates = Sequence[tuple[int, ...]]  # of every device, in the mesh's flat order


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step.

    Attributes:
        compute_s, hbm_s, ici_s: if nothing else took time.
        kernels_s: of all kernels, each for the longer of its computing and its reading and writing.
        exposed_ici_s: of collectives, less the kernels that the compiler scheduled beside each.
    """

    compute_s: float
    hbm_s: float
    ici_s: float
    kernels_s: float
    exposed_ici_s: float

    @property
    def step_s(self) -> float:
        """Predicted seconds."""
        return max(self.kernels_s + self.exposed_ici_s, self.ici_s)

    @property
    def bound(self) -> str:
        """Which of the three is longest."""
        return max(("compute", self.compute_s), ("hbm", self.hbm_s), ("ici", self.ici_s), key=lambda pair: pair[1])[0]


def roofline(
    chip: Chip, kernels: Sequence[tuple[Work, int]], collectives: Sequence[Collective], coordinates: Coordinates
) -> Roofline:
    """Of one step's kernels and collectives, with how often each runs, per device."""
    times = [(*_seconds(work, chip), count) for work, count in kernels]
    return Roofline(
        compute_s=sum(compute * count for compute, _, count in times),
        hbm_s=sum(memory * count for _, memory, count in times),
        ici_s=sum(c.count * collective_seconds(c, chip, coordinates) for c in collectives),
        kernels_s=sum(max(compute, memory) * count for compute, memory, count in times),
        exposed_ici_s=sum(c.count * exposed_seconds(c, chip, coordinates) for c in collectives),
    )


def _seconds(work: Work, chip: Chip) -> tuple[float, float]:
    """(computing, reading and writing)."""
    return work.flops / (chip.flops * EFFICIENCY["compute"]), work.bytes / (chip.hbm_bandwidth * EFFICIENCY["hbm"])


def exposed_seconds(collective: Collective, chip: Chip, coordinates: Coordinates) -> float:
    """What is left of one run when the kernels beside it are done."""
    beside = sum(max(_seconds(work, chip)) for work in collective.hidden)
    return max(0.0, collective_seconds(collective, chip, coordinates) - beside)


def collective_seconds(collective: Collective, chip: Chip, coordinates: Coordinates) -> float:
    """One run of a collective."""
    group = collective.groups[0] if collective.groups else tuple(range(len(coordinates)))
    if len(group) < 2:
        return 0.0
    whole = [len(set(values)) for values in zip(*coordinates, strict=True)]
    spans = [len(set(values)) for values in zip(*(coordinates[i] for i in group), strict=True)]
    speeds = [chip.link_bandwidth * EFFICIENCY["ici"] * number for number in chip.directions(spans, whole)]
    used = [(span, speed) for span, speed in zip(spans, speeds, strict=True) if span > 1]
    if not used:  # devices of one host without coordinates of their own
        used = [(len(group), chip.link_bandwidth * EFFICIENCY["ici"])]
    size, share = collective.bytes, (len(group) - 1) / len(group)
    if collective.kind in ("all-to-all", "ragged-all-to-all"):
        # Along a ring of k a byte travels k / 4 links on average, and a device has two, one each way.
        return max(size * span / (4 * speed) for span, speed in used)
    if collective.kind == "collective-permute":
        return size / min(speed for _, speed in used)
    passes = 2 if collective.kind == "all-reduce" else 1
    return passes * share * size / math.fsum(speed for _, speed in used)
