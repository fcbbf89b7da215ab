"""A harder world for an accelerator: objects anywhere, of any size, on textured ground, and small patches.

python -m ec_dit.main --config=configs/shapes_hard.py --workdir=runs/shapes_hard
"""

from ml_collections import ConfigDict

from ec_dit import config, presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = config.default()
    c.name = "shapes_hard"
    c.model.update(width=384, num_blocks=12, num_heads=6, num_kv_heads=2, head_dim=64, patch=4, qk_norm=True)
    c.moe.update(routing="expert_choice", num_experts=16, group_size="1024")  # 8 masked images, as in the paper
    c.text.update(encoder="tower", width=256, length=12, tower_blocks=4, tower_heads=4)
    c.data.update(source="shapes", path="data/shapes_hard", space="pixels", size=64, channels=3)
    c.data.options = ConfigDict({"image_size": 64, "cells": 3, "placement": "free", "ground": "textured"})
    c.data.options.update(object_size=(0.55, 0.85), train=200_000, validation=600, novel=300, seed=0)
    c.flow.update(time_mean=0.5)
    c.optimizer.update(name="muon", learning_rate=1e-2, adam_learning_rate=1e-3, warmup_steps=500, schedule="cosine")
    c.optimizer.update(momentum=0.95, decay=0.95, ema_decay=0.9995)
    c.train.update(steps=30_000, batch_size=256)
    c.log.update(every=50, validate_every=1000, validate_images=256, sample_every=2000)
    c.sample.update(guidance=2.0, time_shift=3.0)
    c.eval.suites = ("shapes",)
    return presets.variant(c, arg)
