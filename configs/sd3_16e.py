"""Stable Diffusion 3 medium with experts: 16 in the image's feed-forward layer of every second block, by expert choice.

    python -m ec_dit.main --config=configs/sd3_16e.py:256 --workdir=runs/sd3_16e --config.data.path=DATA
    python -m ec_dit.main --config=configs/sd3_16e.py:smoke --workdir=runs/sd3_16e_smoke    (a few steps on a CPU)

- Structure: that of configs/sd3_medium.py; the text's feed-forward layers stay dense (as in HiDream).
- From published weights: python -m ec_dit.convert --from=sd3 --path=stabilityai/stable-diffusion-3-medium-diffusers
  --upcycle --experts=16 --out=runs/sd3_up, then --config=configs/from_run.py:runs/sd3_up, whose gates make it start as SD3.
- Topology: v5p:4x4x4, 64 chips as expert 16 x fsdp 4.
- Chosen here, as the paper has no such model: the paper's sparse pattern and capacity factor 2; the rest as sd3_medium.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg is a size in pixels, `smoke` shrinks it."""
    c = presets.published("sd3_medium", "sd3_16e")
    c.moe.update(routing="expert_choice", num_experts=16, group_size="image")
    c.optimizer.update(name="adamw", learning_rate=1e-4, warmup_steps=1000)
    c.train.batch_size = 1024
    c.model.remat = "full"
    presets.pod(c, "v5p:4x4x4", expert=16, fsdp=-1)
    return presets.sized(c, arg)
