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
    presets.pod(c, "v5p:4x8x8", expert=8, fsdp=-1)  # an expert of every sparse block a chip, in parts over fsdp
    c.sample.batch_size = 256  # an image a chip
    return presets.variant(c, arg)
