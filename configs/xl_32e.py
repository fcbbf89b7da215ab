"""EC-DiT-XL-32E; paper: 6.08 B parameters, 1.62 B activated; GenEval 69.38, DSG 74.58, 75.6 hours.

    python -m ec_dit.main --config=configs/xl_32e.py --workdir=runs/xl_32e --config.data.path=DATA
    python -m ec_dit.main --config=configs/xl_32e.py:smoke --workdir=runs/xl_32e_smoke    (a few steps on a CPU)

- Structure: width 1152, 28 blocks, 18 heads, 6 key-value heads,
  32 experts in every second block, expert choice.
- Topology: v4:4x4x8 (the paper's), 128 chips as expert 32 x fsdp 4.
- Expected parameters, transformer only: 5,333,891,728 in total, 874,822,288 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("xl_32e")
    return presets.variant(c, arg)
