"""Real emoji with a router that was published after the paper, at the activated compute of configs/emoji.py.

    python -m ec_dit.main --config=configs/emoji_router.py:race --workdir=runs/emoji_race

Behind the colon stands what configs/shapes_router.py lists. Needs what configs/emoji.py needs.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "race") -> ConfigDict:
    """The run with the router that arg names; NAME,smoke shrinks it."""
    return presets.router(presets.emoji(), arg or "race")
