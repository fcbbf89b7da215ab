"""GS-XXL-32E; paper: GenEval 69.96, DSG 75.40, FID 16.43.

    python -m ec_dit.main --config=configs/gs_xxl_32e.py --workdir=runs/gs_xxl_32e --config.data.path=DATA
    python -m ec_dit.main --config=configs/gs_xxl_32e.py:smoke --workdir=runs/gs_xxl_32e_smoke    (a few steps on a CPU)

- Structure: width 1536, 38 blocks, 24 heads, 6 key-value heads,
  32 experts in every second block, token choice (GShard top-2).
- Topology: v5p:4x8x8, 256 chips as expert 32 x fsdp 8.
- Expected parameters, transformer only: 12,821,755,408 in total, 2,063,365,648 activated.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = presets.paper("gs_xxl_32e")
    return presets.variant(c, arg)
