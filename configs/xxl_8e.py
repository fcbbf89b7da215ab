"""EC-DiT-XXL-8E; paper: GenEval 69.11, DSG 75.03.

    python -m ec_dit.main --config=configs/xxl_8e.py --workdir=runs/xxl_8e --config.data.path=DATA
    python -m ec_dit.main --config=configs/xxl_8e.py:smoke --workdir=runs/xxl_8e_smoke    (a few steps on a CPU)

- Structure: width 1536, 38 blocks, 24 heads, 6 key-value heads,
  8 experts in every second block, expert choice.
- Topology: v5p:4x8x8, 256 chips as expert 8 x fsdp 32.
- Expected parameters, transformer only: 4,214,343,184 in total, 2,062,665,232 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("xxl_8e")
    return presets.variant(c, arg)
