"""A model on its way from one layout to another."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ec_dit.config import RunConfig, specs
from ec_dit.core import settings
from ec_dit.core.mesh import MeshSpec
from ec_dit.core.name_map import Table
from ec_dit.core.tree import named_leaves
from ec_dit.data.encoding import Encoding
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.models import native
from ec_dit.system import model as systems
from ec_dit.system.model import System

CONFIG_KEY = "ec_dit"  # in a config.json that we write
Say = Callable[[str], None]


@dataclass(frozen=True)
class Model:
    """Parameters with all that a workdir tells of them.

    Attributes:
        system: config, mesh, structure, tokenizer or encoding.
        params: float32, on the mesh.
        step: at which they were taken from a run; 0 of published weights.
        data: what a workdir's data.json holds; empty where nothing is known.
        origin: where they come from and what was done to them, for conversion.json.
        mesh, attention: config keys as they are to be written; the system has those of the devices that convert.
    """

    system: System
    params: Any
    step: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    mesh: MeshSpec = field(default_factory=MeshSpec)
    attention: str = "xla"

    def config(self) -> RunConfig:
        """As it is to be written."""
        changes = {**settings.prefixed("mesh", asdict(self.mesh)), "model.attention": self.attention}
        return settings.changed(self.system.config, changes)


def make_system(config: RunConfig, tokenizer: Tokenizer | None, encoding: Encoding | None = None) -> System:
    """Makes the system of a config on the devices that are here."""
    config = settings.changed(config, {"model.attention": "xla"})  # the same function, on whatever devices are here
    return systems.make_system(config, tokenizer, encoding=encoding)


def native_table(system: System, params: Any) -> Table:
    """Where the parameters stand in a file of ours."""
    names = [name for name, _ in named_leaves(params)]
    return native.entries(names, specs.dit_spec(system.config), specs.tower_spec(system.config, system.tokenizer))
