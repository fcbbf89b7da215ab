"""Stable Diffusion 3 medium (2403.03206) at its published size, dense: 2 B parameters; weights at Hugging Face.

    python -m ec_dit.convert --from=sd3 --path=stabilityai/stable-diffusion-3-medium-diffusers --out=runs/sd3
    python -m ec_dit.main --config=configs/sd3_medium.py:512 --workdir=runs/sd3_tuned
        --config.data.path=DATA --config.train.init_from=runs/sd3
    python -m ec_dit.main --config=configs/sd3_medium.py:smoke --workdir=runs/sd3_smoke    (a few steps on a CPU)

- Structure: width 1536, 24 blocks mmdit, 24 heads, sines and cosines cut from a grid of 192 x 192; pooled captions.
- Text: CLIP-L, OpenCLIP bigG and T5-XXL, 77 + 256 tokens, padding read.
- Size of pictures: :1024 (the default), :512 or :256, as `data.size` of the prepared latents.
- Topology: v5p:4x4x4, 64 chips as fsdp 16 x data 4.
- Chosen here: batch 1024, AdamW with rate 1e-4 (the paper's), logit-normal times with mean 0.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg is a size in pixels, `smoke` shrinks it."""
    c = presets.published("sd3_medium", "sd3_medium")
    c.optimizer.update(name="adamw", learning_rate=1e-4, warmup_steps=1000)
    c.train.batch_size = 1024
    c.model.remat = "full"
    presets.pod(c, "v5p:4x4x4", fsdp=16, data=-1)
    return presets.sized(c, arg)
