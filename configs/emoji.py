"""EC-DiT on some 3,600 real emoji with their English names; validation holds out combinations never trained on.

    python -m ec_dit.main --config=configs/emoji.py --workdir=runs/emoji

Needs a colour emoji font (Debian: fonts-noto-color-emoji, libraqm0) and `pip install -e '.[emoji]'`. Half an hour on two CPU
cores gives what docs/results.md shows; give an accelerator more steps, for example --config.train.steps=100000.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.emoji()
    return presets.variant(c, arg)
