"""Dense-XXL; paper: 2.35 B parameters.

    python -m ec_dit.main --config=configs/dense_xxl.py --workdir=runs/dense_xxl --config.data.path=DATA
    python -m ec_dit.main --config=configs/dense_xxl.py:smoke --workdir=runs/dense_xxl_smoke    (a few steps on a CPU)

- Structure: width 1536, 38 blocks, 24 heads, 6 key-value heads.
- Topology: v5p:4x8x8, 256 chips as fsdp 32 x data 8.
- Expected parameters, transformer only: 1,703,818,768 in total, 1,703,818,768 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("dense_xxl")
    return presets.variant(c, arg)
