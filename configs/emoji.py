"""EC-DiT on some 3,600 real emoji with their English names; validation holds out combinations never trained on.

    python -m ec_dit.main --config=configs/emoji.py --workdir=runs/emoji

Needs a colour emoji font (Debian: fonts-noto-color-emoji, libraqm0) and `pip install -e '.[emoji]'`. Half an hour on two CPU
cores gives what docs/results.md shows; give an accelerator more steps, for example --config.train.steps=100000.
"""

from ml_collections import ConfigDict

from ec_dit import config, presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = config.default()
    c.name = "emoji"
    c.model.update(width=160, num_blocks=4, num_heads=5, num_kv_heads=5, head_dim=32, patch=6)
    c.model.update(qk_norm=True, position_scale=0.5)
    c.moe.update(routing="expert_choice", num_experts=8, group_size="512")  # 8 images
    c.text.update(encoder="tower", width=160, length=20, tower_blocks=2, tower_heads=5)
    c.data.update(source="emoji", path="data/emoji", space="pixels", size=48, channels=3)
    c.flow.update(prediction="data", time_mean=1.0, mask_ratio=0.0)
    c.optimizer.update(name="muon", learning_rate=1e-2, adam_learning_rate=1e-3, warmup_steps=100, schedule="cosine")
    c.optimizer.update(momentum=0.95, decay=0.95, ema_decay=0.999)
    c.train.update(steps=1800, batch_size=64)
    c.checkpoint.every = 300
    c.log.update(every=50, validate_every=300, validate_images=256, sample_every=600)
    c.sample.update(steps=30, sampler="heun", guidance=1.75, time_shift=2.0, batch_size=32)
    return presets.variant(c, arg)
