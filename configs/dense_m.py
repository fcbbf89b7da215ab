"""Dense-M; paper: 8.03 B parameters.

    python -m ec_dit.main --config=configs/dense_m.py --workdir=runs/dense_m --config.data.path=DATA
    python -m ec_dit.main --config=configs/dense_m.py:smoke --workdir=runs/dense_m_smoke    (a few steps on a CPU)

- Structure: width 3072, 46 blocks, 48 heads, 12 key-value heads.
- Topology: v5p:8x8x8, 512 chips as fsdp 64 x data 8.
- Expected parameters, transformer only: 8,151,542,800 in total, 8,151,542,800 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("dense_m")
    return presets.variant(c, arg)
