"""EC-DiT-XXL-16E; paper: GenEval 69.43, DSG 75.63.

    python -m ec_dit.main --config=configs/xxl_16e.py --workdir=runs/xxl_16e --config.data.path=DATA
    python -m ec_dit.main --config=configs/xxl_16e.py:smoke --workdir=runs/xxl_16e_smoke    (a few steps on a CPU)

- Structure: width 1536, 38 blocks, 24 heads, 6 key-value heads,
  16 experts in every second block, expert choice.
- Topology: v5p:4x8x8, 256 chips as expert 16 x fsdp 16.
- Expected parameters, transformer only: 7,083,480,592 in total, 2,062,898,704 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("xxl_16e")
    return presets.variant(c, arg)
