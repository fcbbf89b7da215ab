"""EC-DiT on the embedded shapes: the first thing to run, minutes on two CPU cores.

    python -m ec_dit.main --config=configs/shapes.py --workdir=runs/shapes

Scenes are easy on purpose: one object fills one cell of a 4 x 4 grid, and one cell is one token. The network predicts the
clean image (flow.prediction=data), because a patch of 16 x 16 x 3 numbers does not fit through a width of 128, and times
lean to noise, where layout and number of objects are decided.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.shapes()
    return presets.variant(c, arg)
