"""GS-XL-32E; paper: GenEval 68.52, DSG 74.07.

    python -m ec_dit.main --config=configs/gs_xl_32e.py --workdir=runs/gs_xl_32e --config.data.path=DATA
    python -m ec_dit.main --config=configs/gs_xl_32e.py:smoke --workdir=runs/gs_xl_32e_smoke    (a few steps on a CPU)

- Structure: width 1152, 28 blocks, 18 heads, 6 key-value heads,
  32 experts in every second block, token choice (GShard top-2).
- Topology: v4:4x4x8, 128 chips as expert 32 x fsdp 4.
- Expected parameters, transformer only: 5,333,891,728 in total, 874,822,288 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("gs_xl_32e")
    return presets.variant(c, arg)
