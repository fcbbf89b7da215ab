"""What Google Cloud calls a slice: v5p:8x8x8 is accelerator type v5p-1024 with runtime v2-alpha-tpuv5.

Which slices, machines and runtimes there are stands in ec_dit/core/hardware.py.
"""

import math
from dataclasses import dataclass

from ec_dit.core import topology
from ec_dit.core.errors import UserError
from ec_dit.core.hardware import TPUS


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
    """Gives the slice of a topology such as v5p:8x8x8.

    Raises:
        UserError: for one that Google Cloud does not offer by an accelerator type.
    """
    found = topology.parse(text, cpus=False)
    generation = TPUS[found.name]
    hosts = 1 if found.chips in generation.alone else math.ceil(found.chips / 4)
    kind: tuple[str, ...]
    if found.shape in generation.shapes:
        kind = (f"--accelerator-type={found.accelerator_type}",)
    elif generation.shape_by_name:
        kind = (f"--type={found.name}", f"--topology={found.shape}")
    else:
        raise UserError(
            f"topology {found}: accelerator types of {found.name} stand for {', '.join(generation.shapes)}. For another shape "
            f"create the queued resource yourself, and give its name to launch.run or launch.watch."
        )
    return Slice(kind, generation.runtime, found.chips, hosts)
