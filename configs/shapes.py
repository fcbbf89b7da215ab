"""EC-DiT on the embedded shapes: the first thing to run, minutes on two CPU cores.

python -m ec_dit.main --config=configs/shapes.py --workdir=runs/shapes
"""

from ml_collections import ConfigDict

from ec_dit import config, presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = config.default()
    c.name = "shapes"
    c.model.update(width=128, num_blocks=4, num_heads=4, num_kv_heads=2, head_dim=32, patch=12)
    c.model.update(qk_norm=True, position_scale=0.25)
    c.moe.update(routing="expert_choice", num_experts=8, group_size="32")
    c.text.update(encoder="tower", width=128, length=16, tower_blocks=2, tower_heads=4)
    c.data.update(source="shapes", path="data/shapes", space="pixels", size=48, channels=3)
    c.data.options = ConfigDict({"image_size": 48, "cells": 4, "train": 20_000})
    c.flow.update(prediction="data", time_mean=2.0, mask_ratio=0.0)
    c.optimizer.update(name="muon", learning_rate=1e-2, adam_learning_rate=1e-3, warmup_steps=100, schedule="cosine")
    c.optimizer.update(momentum=0.95, decay=0.95, ema_decay=0.999)
    c.train.update(steps=1000, batch_size=128)
    c.checkpoint.every = 250
    c.log.update(every=25, validate_every=250, validate_images=256, sample_every=250)
    c.sample.update(steps=20, sampler="euler", guidance=2.0, time_shift=5.0, batch_size=48)
    c.eval.suites = ("shapes",)
    return presets.variant(c, arg)
