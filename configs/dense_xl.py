"""Dense-XL; paper: 1.47 B parameters.

    python -m ec_dit.main --config=configs/dense_xl.py --workdir=runs/dense_xl --config.data.path=DATA
    python -m ec_dit.main --config=configs/dense_xl.py:smoke --workdir=runs/dense_xl_smoke    (a few steps on a CPU)

- Structure: width 1152, 28 blocks, 18 heads, 6 key-value heads.
- Topology: v4:4x4x8, 128 chips as fsdp 32 x data 4.
- Expected parameters, transformer only: 725,670,544 in total, 725,670,544 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("dense_xl")
    return presets.variant(c, arg)
