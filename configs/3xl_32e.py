"""EC-DiT-3XL-32E; paper: 32.15 B parameters, 5.18 B activated; GenEval 70.91, 96.1 hours.

    python -m ec_dit.main --config=configs/3xl_32e.py --workdir=runs/3xl_32e --config.data.path=DATA
    python -m ec_dit.main --config=configs/3xl_32e.py:smoke --workdir=runs/3xl_32e_smoke    (a few steps on a CPU)

- Structure: width 2304, 42 blocks, 36 heads, 6 key-value heads,
  32 experts in every second block, expert choice.
- Topology: v5p:4x8x8 (the paper's), 256 chips as expert 32 x fsdp 8.
- Expected parameters, transformer only: 31,793,727,760 in total, 5,039,311,120 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("3xl_32e")
    return presets.variant(c, arg)
