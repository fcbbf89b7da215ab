"""The embedded shapes with a router that was published after the paper, at the activated compute of configs/shapes.py.

    python -m ec_dit.main --config=configs/shapes_router.py:race --workdir=runs/shapes_race

Behind the colon: race (Expert Race), diffmoe, nucleus, promoe, dsmoe, hidream; matched and sorted are expert choice as in
configs/shapes.py, sampled with capacities matched to training, and trained with images of similar times routed together.
docs/routers.md has their formulas.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "race") -> ConfigDict:
    """The run with the router that arg names; NAME,smoke shrinks it."""
    return presets.router(presets.shapes(), arg or "race")
