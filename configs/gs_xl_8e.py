"""GS-XL-8E; paper: GenEval 67.82, DSG 73.47.

    python -m ec_dit.main --config=configs/gs_xl_8e.py --workdir=runs/gs_xl_8e --config.data.path=DATA
    python -m ec_dit.main --config=configs/gs_xl_8e.py:smoke --workdir=runs/gs_xl_8e_smoke    (a few steps on a CPU)

- Structure: width 1152, 28 blocks, 18 heads, 6 key-value heads,
  8 experts in every second block, token choice (GShard top-2).
- Topology: v4:4x4x8, 128 chips as expert 8 x fsdp 16.
- Expected parameters, transformer only: 1,766,249,104 in total, 874,435,216 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("gs_xl_8e")
    return presets.variant(c, arg)
