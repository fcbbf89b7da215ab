"""What accelerators there are and what they can do, from the vendors' data sheets: the one table of metrics, planning and launch.

TPU figures, slices and runtimes: cloud.google.com/tpu/docs (v4, v5p, v5e, v6e, runtimes); links as "How to Scale Your Model"
(jax-ml.github.io/scaling-book) gives them: bytes per second of one link in one direction, two links per torus dimension. A v4 or
v5p chip is one JAX device (megacore).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")
_CUBES = tuple("2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16".split())
_SQUARES = tuple("1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16".split())


@dataclass(frozen=True)
class Chip:
    """Peaks of one JAX device.

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

    def directions(self, spans: Sequence[int], whole: Sequence[int]) -> list[int]:
        """Counts the links of a device that serve along each side of a box: both where it closes to a ring, else one.

        Args:
            spans: sides of the box.
            whole: sides of the slice that it is a part of.
        """

        def closes(side: int) -> bool:
            return all(n % self.ring == 0 for n in (whole if len(whole) == 3 else [side]))

        return [2 if span == side and closes(side) else 1 for span, side in zip(spans, whole, strict=True)]


@dataclass(frozen=True)
class Tpu:
    """A generation of TPUs: its chip, its slices, and its machines in Google Cloud.

    Attributes:
        chip: what one can do.
        device_kinds: how the names begin that JAX gives its devices.
        prefix: of accelerator types.
        cores: by which an accelerator type counts each chip.
        shapes: that an accelerator type stands for, one for each number of chips.
        most_chips: of the largest slice.
        cubes: whether slices are three-dimensional, and every box of whole cubes is one too.
        runtime: version of the machines' software.
        alone: chips that a machine may have, where a slice is one machine; in larger slices each has 4.
        shape_by_name: whether gcloud takes a slice's shape in place of an accelerator type.
        compiler_name: what its compiler calls a chip, where it does not find that by itself.
    """

    chip: Chip
    device_kinds: tuple[str, ...]
    prefix: str
    cores: int
    shapes: tuple[str, ...]
    most_chips: int
    cubes: bool
    runtime: str
    alone: tuple[int, ...] = (4,)
    shape_by_name: bool = False
    compiler_name: str = ""


TPUS: dict[str, Tpu] = {
    "v4": Tpu(
        Chip(275e12, 32e9, 1.23e12, 4.5e10, ring=4),
        ("TPU v4",),
        prefix="v4",
        cores=2,
        shapes=_CUBES,
        most_chips=4096,
        cubes=True,
        runtime="tpu-ubuntu2204-base",
        shape_by_name=True,
        compiler_name="megacore",
    ),
    "v5p": Tpu(
        Chip(459e12, 95e9, 2.77e12, 9e10, ring=4),
        ("TPU v5", "TPU v5p"),
        prefix="v5p",
        cores=2,
        shapes=_CUBES,
        most_chips=8960,
        cubes=True,
        runtime="v2-alpha-tpuv5",
    ),
    "v5e": Tpu(
        Chip(197e12, 16e9, 8.2e11, 4.5e10, ring=16),
        ("TPU v5 lite", "TPU v5e"),
        prefix="v5litepod",
        cores=1,
        shapes=_SQUARES,
        most_chips=256,
        cubes=False,
        runtime="v2-alpha-tpuv5-lite",
        alone=(1, 4, 8),
    ),
    "v6e": Tpu(
        Chip(918e12, 32e9, 1.64e12, 9e10, ring=16),
        ("TPU v6 lite", "TPU v6e"),
        prefix="v6e",
        cores=1,
        shapes=_SQUARES,
        most_chips=256,
        cubes=False,
        runtime="v2-alpha-tpuv6e",
        alone=(1, 4, 8),
    ),
}
# Shares of the peaks that well-tuned programs reach. Assumed, not measured: public dense-transformer trainers report 55-70 % of
# the FLOP/s over whole steps on v4 and v5p; streaming kernels and large collectives reach some 80 % of the bandwidths.
EFFICIENCY = {"compute": 0.65, "hbm": 0.8, "ici": 0.8}

EMULATED = Chip(1e11, 16e9, 2e10, 1e9, ring=1)  # a CPU core, to try planning; its times mean nothing

GPU_FLOPS: dict[str, float] = {  # dense bfloat16 FLOP/s, by how the names begin that JAX gives them
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def host_bytes() -> int:
    """Gives the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def tpu(device_kind: str) -> Tpu | None:
    """Finds the generation of a device by the name that JAX gives it; None for what is no TPU of the table."""
    return _longest({start: each for each in TPUS.values() for start in each.device_kinds}, device_kind)


def known_flops(device_kind: str) -> float | None:
    """Looks up the peak FLOP/s of a device by the name that JAX gives it; None for what is not in the table."""
    known = tpu(device_kind)
    return known.chip.flops if known else _longest(GPU_FLOPS, device_kind)


def _longest(table: Mapping[str, _T], name: str) -> _T | None:
    fitting = [start for start in table if name.startswith(start)]
    return table[max(fitting, key=len)] if fitting else None
