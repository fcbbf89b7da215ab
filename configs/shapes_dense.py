"""The dense twin of configs/shapes.py, at equal activated compute.

    python -m ec_dit.main --config=configs/shapes_dense.py --workdir=runs/shapes_dense

With f_c = 2, the two sparse blocks of four cost two feed-forward layers each, six in all; the dense twin spends them as
feed-forward layers half as wide again, ffn_factor 6 instead of 4.
"""

from ml_collections import ConfigDict

from ec_dit import config, presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.shapes()
    c.name = "shapes_dense"
    c.model.ffn_factor = 6
    c.moe.update(routing="dense", num_experts=0, group_size=config.default().moe.group_size)
    return presets.variant(c, arg)
