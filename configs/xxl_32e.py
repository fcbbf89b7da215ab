"""EC-DiT-XXL-32E; paper: 13.47 B parameters, 2.71 B activated; GenEval 70.86, DSG 75.93, FID 15.78, 82.2 hours.

    python -m ec_dit.main --config=configs/xxl_32e.py --workdir=runs/xxl_32e --config.data.path=DATA
    python -m ec_dit.main --config=configs/xxl_32e.py:smoke --workdir=runs/xxl_32e_smoke    (a few steps on a CPU)

- Structure: width 1536, 38 blocks, 24 heads, 6 key-value heads,
  32 experts in every second block, expert choice.
- Topology: v5p:4x8x8 (the paper's), 256 chips as expert 32 x fsdp 8.
- Expected parameters, transformer only: 12,821,755,408 in total, 2,063,365,648 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("xxl_32e")
    return presets.variant(c, arg)
