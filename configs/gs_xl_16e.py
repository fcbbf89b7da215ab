"""GS-XL-16E; paper: GenEval 68.00, DSG 73.90.

    python -m ec_dit.main --config=configs/gs_xl_16e.py --workdir=runs/gs_xl_16e --config.data.path=DATA
    python -m ec_dit.main --config=configs/gs_xl_16e.py:smoke --workdir=runs/gs_xl_16e_smoke    (a few steps on a CPU)

- Structure: width 1152, 28 blocks, 18 heads, 6 key-value heads,
  16 experts in every second block, token choice (GShard top-2).
- Topology: v4:4x4x8, 128 chips as expert 16 x fsdp 8.
- Expected parameters, transformer only: 2,955,463,312 in total, 874,564,240 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("gs_xl_16e")
    return presets.variant(c, arg)
