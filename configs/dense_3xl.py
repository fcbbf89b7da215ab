"""Dense-3XL; paper: 4.50 B parameters; GenEval 69.92, DSG 75.00, FID 16.82.

    python -m ec_dit.main --config=configs/dense_3xl.py --workdir=runs/dense_3xl --config.data.path=DATA
    python -m ec_dit.main --config=configs/dense_3xl.py:smoke --workdir=runs/dense_3xl_smoke    (a few steps on a CPU)

- Structure: width 2304, 42 blocks, 36 heads, 6 key-value heads.
- Topology: v5p:4x8x8, 256 chips as fsdp 32 x data 8.
- Expected parameters, transformer only: 4,145,948,944 in total, 4,145,948,944 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("dense_3xl")
    return presets.variant(c, arg)
