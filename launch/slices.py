"""What Google Cloud calls a slice: v5p:8x8x8 is accelerator type v5p-1024 with runtime v2-alpha-tpuv5.

Which slices there are stands in ec_dit/core/topology.py; runtimes: cloud.google.com/tpu/docs/runtimes.
"""

import math
from dataclasses import dataclass

from ec_dit.core import topology
from ec_dit.core.errors import UserError


@dataclass(frozen=True)
class Hosts:
    """The machines of a kind of TPU.

    Attributes:
        runtime: version of their software.
        alone: chips that one may have, where a slice is one machine; in larger slices each has 4.
    """

    runtime: str
    alone: tuple[int, ...] = (4,)


_HOSTS = {
    "v4": Hosts("tpu-ubuntu2204-base"),
    "v5p": Hosts("v2-alpha-tpuv5"),
    "v5e": Hosts("v2-alpha-tpuv5-lite", (1, 4, 8)),
    "v6e": Hosts("v2-alpha-tpuv6e", (1, 4, 8)),
}


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


def find(text: str) -> Slice:
    """The slice of a topology such as v5p:8x8x8.

    Raises:
        UserError: for one that Google Cloud does not offer by an accelerator type.
    """
    found = topology.parse(text, cpus=False)
    generation, machines = topology.GENERATIONS[found.name], _HOSTS[found.name]
    hosts = 1 if found.chips in machines.alone else math.ceil(found.chips / 4)
    kind: tuple[str, ...]
    if found.shape in generation.shapes:
        kind = (f"--accelerator-type={found.accelerator_type}",)
    elif found.name == "v4":  # the only one whose shapes gcloud takes
        kind = ("--type=v4", f"--topology={found.shape}")
    else:
        raise UserError(
            f"topology {found}: accelerator types of {found.name} stand for {', '.join(generation.shapes)}. For another shape "
            f"create the queued resource yourself, and give its name to launch.run or launch.watch."
        )
    return Slice(kind, machines.runtime, found.chips, hosts)
