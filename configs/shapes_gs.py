"""The token-choice twin of configs/shapes.py: GShard top-2 with its load-balancing loss, at equal activated compute.

python -m ec_dit.main --config=configs/shapes_gs.py --workdir=runs/shapes_gs
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.shapes()
    c.name = "shapes_gs"
    c.moe.routing = "token_choice"
    return presets.variant(c, arg)
