"""A model on its way from one layout to another."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from ec_dit import build, specs
from ec_dit import config as config_lib
from ec_dit.core.name_map import Table
from ec_dit.core.tree import named_leaves
from ec_dit.data.encoding import Encoding
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.models import native
from ec_dit.train.checkpoint import abstract_like

Say = Callable[[str], None]


def _default_mesh() -> dict[str, int]:
    return config_lib.default().mesh.to_dict()


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

    system: build.System
    params: Any
    step: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    mesh: dict[str, int] = field(default_factory=_default_mesh)
    attention: str = "xla"

    def config(self) -> ConfigDict:
        """As it is to be written."""
        config = config_lib.from_json(config_lib.to_json(self.system.config))
        config.mesh.update(self.mesh)
        config.model.attention = self.attention
        return config


def make_system(config: ConfigDict, tokenizer: Tokenizer | None, encoding: Encoding | None = None) -> build.System:
    """The system of a config on the devices that are here."""
    config.model.attention = "xla"  # the same function, on whatever devices are here
    return build.make_system(config, tokenizer, encoding=encoding)


def abstract_params(system: build.System) -> Any:
    """Shapes of the parameters, with their shardings."""
    return abstract_like(*system.abstract_state(system.optimizer())).params


def native_table(system: build.System, params: Any) -> Table:
    """Where the parameters stand in a file of ours."""
    names = [name for name, _ in named_leaves(params)]
    return native.entries(names, specs.dit_spec(system.config), specs.tower_spec(system.config, system.tokenizer))
