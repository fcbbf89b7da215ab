"""What config files share: the start of a paper model's config, and the argument after a config's colon."""

from ml_collections import ConfigDict

from ec_dit import config
from ec_dit.core.errors import UserError
from ec_dit.models.paper import CAPACITY_FACTOR, PAPER


def paper(name: str) -> ConfigDict:
    """The default recipe with the structure and routing of one row of `models.paper.PAPER`."""
    row, c = PAPER[name], config.default()
    c.name = name
    spec = row.spec
    c.model.update(
        width=spec.width, num_blocks=spec.num_blocks, num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads
    )
    c.moe.update(routing=row.routing, num_experts=spec.sparse.num_experts, capacity_factor=CAPACITY_FACTOR)
    return c


def variant(c: ConfigDict, arg: str) -> ConfigDict:
    """The config that `--config=FILE:arg` asks for: as it is without an argument, `smoke` for a few CPU steps.

    Raises:
        UserError: for another argument.
    """
    if arg not in ("", "smoke"):
        raise UserError(
            f"config argument ':{arg}' is unknown. Use --config=configs/{c.name}.py, or :smoke for a short CPU run."
        )
    return config.smoke(c) if arg else c
