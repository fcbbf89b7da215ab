"""EC-DiT-3XL-16E: compared in the paper, which prints no figures of it.

    python -m ec_dit.main --config=configs/3xl_16e.py --workdir=runs/3xl_16e --config.data.path=DATA
    python -m ec_dit.main --config=configs/3xl_16e.py:smoke --workdir=runs/3xl_16e_smoke    (a few steps on a CPU)

- Structure: width 2304, 42 blocks, 36 heads, 6 key-value heads,
  16 experts in every second block, expert choice.
- Topology: v5p:4x8x8, 256 chips as expert 16 x fsdp 16.
- Expected parameters, transformer only: 17,523,931,408 in total, 5,038,536,976 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("3xl_16e")
    return presets.variant(c, arg)
