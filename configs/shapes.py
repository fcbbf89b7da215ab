"""EC-DiT on the embedded shapes: the first thing to run, minutes on two CPU cores.

    python -m ec_dit.main --config=configs/shapes.py --workdir=runs/shapes

Scenes are easy on purpose: one object fills one cell of a 4 x 4 grid, and one cell is one token. The network predicts the
clean image (flow.prediction=data), because a patch of 16 x 16 x 3 numbers does not fit through a width of 128, and times
lean to noise, where layout and number of objects are decided.
"""

from ml_collections import ConfigDict

from ec_dit import config, presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg `smoke` shrinks it."""
    c = config.default()
    c.name = "shapes"
    c.model.update(width=128, num_blocks=4, num_heads=4, num_kv_heads=4, head_dim=32, patch=16)
    c.model.update(qk_norm=True, position_scale=0.25)
    c.moe.update(routing="expert_choice", num_experts=8, group_size="32")
    c.text.update(encoder="tower", width=128, length=12, tower_blocks=2, tower_heads=4)
    c.data.update(source="shapes", path="data/shapes", space="pixels", size=64, channels=3)
    c.data.options = ConfigDict({"image_size": 64, "cells": 4, "placement": "cell", "ground": "plain"})
    c.data.options.update(train=20_000, validation=600, novel=300, seed=0)
    c.flow.update(prediction="data", time_mean=2.3, mask_ratio=0.0)
    c.optimizer.update(name="muon", learning_rate=1e-2, adam_learning_rate=1e-3, warmup_steps=100, schedule="cosine")
    c.optimizer.update(momentum=0.95, decay=0.95, ema_decay=0.999)
    c.train.update(steps=2500, batch_size=64)
    c.checkpoint.every = 500
    c.log.update(every=50, validate_every=500, validate_images=256, sample_every=500)
    c.sample.update(steps=20, sampler="euler", guidance=1.5, time_shift=8.0, batch_size=48)
    c.eval.suites = ("shapes",)
    return presets.variant(c, arg)
