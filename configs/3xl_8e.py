"""EC-DiT-3XL-8E: compared in the paper, which prints no figures of it.

    python -m ec_dit.main --config=configs/3xl_8e.py --workdir=runs/3xl_8e --config.data.path=DATA
    python -m ec_dit.main --config=configs/3xl_8e.py:smoke --workdir=runs/3xl_8e_smoke    (a few steps on a CPU)

- Structure: width 2304, 42 blocks, 36 heads, 6 key-value heads,
  8 experts in every second block, expert choice.
- Topology: v5p:4x8x8, 256 chips as expert 8 x fsdp 32.
- Expected parameters, transformer only: 10,389,033,232 in total, 5,038,149,904 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("3xl_8e")
    return presets.variant(c, arg)
