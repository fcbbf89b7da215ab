"""EC-DiT-M-64E; paper: 97.21 B parameters, 8.27 B activated; GenEval 71.68, DSG 76.40, 100 hours.

    python -m ec_dit.main --config=configs/m_64e.py --workdir=runs/m_64e --config.data.path=DATA
    python -m ec_dit.main --config=configs/m_64e.py:smoke --workdir=runs/m_64e_smoke    (a few steps on a CPU)

- Structure: width 3072, 38 blocks, 48 heads, 12 key-value heads,
  64 experts in every second block, expert choice.
- Topology: v5p:8x8x8 (the paper's), 512 chips as expert 64 x fsdp 8.
- Expected parameters, transformer only: 97,113,173,008 in total, 8,177,150,992 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("m_64e")
    return presets.variant(c, arg)
