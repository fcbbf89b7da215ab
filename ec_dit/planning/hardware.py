"""What a chip can do, from the vendors' data sheets; one JAX device each.

TPU figures: cloud.google.com/tpu/docs (v4, v5p, v5e, v6e), links as "How to Scale Your Model" (jax-ml.github.io/scaling-book)
gives them: bytes per second of one link in one direction, two links per torus dimension. A v4 or v5p chip is one device
(megacore).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Peaks of one device.

    Attributes:
        flops: dense bfloat16 FLOP/s.
        hbm_bytes: memory.
        hbm_bandwidth: bytes/s.
        link_bandwidth: bytes/s of one interconnect link in one direction.
        ring: a dimension of a slice closes to a ring where it is a multiple of this (of three: where all are).
    """

    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    ring: int


V4 = Chip(275e12, 32e9, 1.23e12, 4.5e10, 4)
V5P = Chip(459e12, 95e9, 2.77e12, 9e10, 4)
V5E = Chip(197e12, 16e9, 8.2e11, 4.5e10, 16)
V6E = Chip(918e12, 32e9, 1.64e12, 9e10, 16)
EMULATED = Chip(1e11, 16e9, 2e10, 1e9, 1)  # a CPU core, to try the tool; its times mean nothing

CHIPS: dict[str, Chip] = {"v4": V4, "v5p": V5P, "v5e": V5E, "v6e": V6E, "cpu": EMULATED}
