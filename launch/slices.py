"""What Google Cloud calls a slice: v5p:8x8x8 is accelerator type v5p-1024 with runtime v2-alpha-tpuv5.

Names and shapes: cloud.google.com/tpu/docs/v4, /v5p, /v5e, /v6e; runtimes: cloud.google.com/tpu/docs/runtimes.
"""

import math
from dataclasses import dataclass

from ec_dit.core.errors import UserError

_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16".split()
_SQUARES = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16".split()


@dataclass(frozen=True)
class Generation:
    """A kind of TPU.

    Attributes:
        prefix: of accelerator types.
        cores: by which an accelerator type counts each chip.
        runtime: version of the software on its hosts.
        shapes: that an accelerator type stands for, one for each number of chips.
        one_host: chips that one host may have, where a slice is one host; larger slices have 4 on each.
    """

    prefix: str
    cores: int
    runtime: str
    shapes: tuple[str, ...]
    one_host: tuple[int, ...] = (4,)


GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", tuple(_CUBES)),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", tuple(_CUBES)),
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", tuple(_SQUARES), (1, 4, 8)),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", tuple(_SQUARES), (1, 4, 8)),
}
GENERATIONS["v5litepod"] = GENERATIONS["v5e"]


@dataclass(frozen=True)
class Slice:
    """What a queued resource asks for.

    Attributes:
        kind: gcloud's arguments that name it.
        runtime: version of the hosts' software.
        chips, hosts: how many it has; hosts are the processes of a run.
    """

    kind: tuple[str, ...]
    runtime: str
    chips: int
    hosts: int

    @property
    def accelerator_type(self) -> str:
        """Such as v5p-1024; empty where the slice is named by its shape."""
        return self.kind[0].removeprefix("--accelerator-type=") if len(self.kind) == 1 else ""


def find(topology: str) -> Slice:
    """The slice of a config's topology, such as v5p:8x8x8.

    Raises:
        UserError: for one that Google Cloud does not offer by an accelerator type.
    """
    name, _, shape = topology.partition(":")
    if name not in GENERATIONS:
        raise UserError(f"topology {topology!r}: write it as v5p:8x8x8; known are {', '.join(GENERATIONS)}.")
    generation = GENERATIONS[name]
    sides = shape.split("x")
    if len(sides) != len(generation.shapes[0].split("x")) or not all(s.isdigit() and int(s) for s in sides):
        raise UserError(f"topology {topology!r}: {name} has shapes such as {', '.join(generation.shapes[:4])}.")
    chips = math.prod(map(int, sides))
    hosts = 1 if chips in generation.one_host else math.ceil(chips / 4)
    kind: tuple[str, ...]
    if shape in generation.shapes:
        kind = (f"--accelerator-type={generation.prefix}-{chips * generation.cores}",)
    elif name == "v4":  # the only one whose shapes gcloud takes
        kind = ("--type=v4", f"--topology={shape}")
    else:
        raise UserError(
            f"topology {topology!r}: accelerator types of {name} stand for {', '.join(generation.shapes)}. For another shape "
            f"create the queued resource yourself, and give its name to launch.run or launch.watch."
        )
    return Slice(kind, generation.runtime, chips, hosts)
