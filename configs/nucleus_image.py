"""Nucleus-Image (2604.12163) at its published size: 17 B parameters, about 2 B activated; weights at Hugging Face.

    python -m ec_dit.convert --from=nucleus --path=NucleusAI/Nucleus-Image --out=runs/nucleus
    python -m ec_dit.main --config=configs/nucleus_image.py --workdir=runs/nucleus_tuned
        --config.data.path=DATA --config.train.init_from=runs/nucleus
    python -m ec_dit.main --config=configs/nucleus_image.py:smoke --workdir=runs/nucleus_smoke    (a few steps on a CPU)

- Structure: width 2048, 32 blocks joint_kv, 16 heads, 4 key-value heads, RoPE; 64 experts of width 1344 and a shared one from
  the fourth block on; expert choice in groups of one image, capacity factor 4 in two blocks, then 2.
- Size of pictures: :1024 (the default), :512 or :256. Its training went up these; capacity came down, which is not set here.
- Topology: v5p:4x4x8, 128 chips as expert 64 x fsdp 2.
- Chosen here, where the paper is not known to us in full: batch 512, rates of Muon, constant schedule.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg is a size in pixels, `smoke` shrinks it."""
    c = presets.published("nucleus_image", "nucleus_image")
    c.flow.caption_dropout = 0.1
    c.optimizer.update(name="muon", learning_rate=3e-4, adam_learning_rate=1e-4, momentum=0.95, decay=0.95)
    c.train.batch_size = 512
    c.model.remat = "full"
    presets.pod(c, "v5p:4x4x8", expert=64, fsdp=-1)
    return presets.sized(c, arg)
