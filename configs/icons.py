"""EC-DiT on emoji in several artists' hands, some 20,000 pictures of 32 x 32; validation holds out pairs of thing and artist.

    npm install @iconify-json/{noto,noto-v1,twemoji,openmoji,emojione,fluent-emoji-flat,fluent-emoji-high-contrast}
    python -m ec_dit.main --config=configs/icons.py --workdir=runs/icons

Needs `pip install -e '.[icons]'`. The packages are read from node_modules/@iconify-json; another place is
--config.data.options.path=DIR. Each has a licence of its own (Apache-2.0, CC BY 4.0, CC BY-SA 4.0, MIT).
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.icons()
    return presets.variant(c, arg)
