"""The objectives by name, and the `objective` section of a config: what is minimised.

An objective with settings declares them in its module, as a dataclass of keys that `ObjectiveSpec` inherits from.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass

from ec_dit.core.settings import key
from ec_dit.objectives.base import Objective
from ec_dit.objectives.denoise import Denoise

OBJECTIVES: MutableMapping[str, type[Objective]] = {"denoise": Denoise}


@dataclass(frozen=True)
class ObjectiveSpec:
    """The `objective` section."""

    name: str = key(
        "denoise",
        "denoise: the network predicts velocity, data or noise (the paper's)",
        choices=lambda: tuple(OBJECTIVES),
    )

    @property
    def kind(self) -> type[Objective]:
        """The class of that name."""
        return OBJECTIVES[self.name]
