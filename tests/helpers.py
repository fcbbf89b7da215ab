"""A tiny system for tests that need the whole model: no data set on disk, a tokenizer of letters."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ec_dit import config
from ec_dit.config import checks
from ec_dit.core import settings
from ec_dit.data.batch import Batch, Text
from ec_dit.evaluators.base import Evaluation, Evaluator, Suite, Wanted
from ec_dit.system import model as systems
from ec_dit.system import step as training_step

LENGTH = 8


@dataclass(frozen=True)
class PlainSuite(Suite):
    """Draws its prompts and finds nothing in the pictures."""

    prompts: tuple[str, ...] = settings.key(("a",), "to draw")

    def make(self, facts):
        return PlainEvaluator(self.prompts)


class PlainEvaluator(Evaluator):
    def __init__(self, prompts):
        self.wanted = Wanted.of("plain", prompts)

    def score(self, images):
        made = list(images)
        return Evaluation(0.0, {}, "a table", sheet=Image.fromarray(made[0]))


class LetterTokenizer:
    """Stands in for a trained sentencepiece model: ids are letters."""

    vocab_size = 32

    def encode(self, captions, length):
        ids_BT = np.zeros((len(captions), length), np.int32)
        mask_BT = np.zeros((len(captions), length), bool)
        for row, caption in enumerate(captions):
            ids = [ord(letter) % 31 for letter in caption[: length - 1]] + [31]
            ids_BT[row, : len(ids)] = ids
            mask_BT[row, : len(ids)] = True
        return ids_BT, mask_BT


def tiny_config(routing="expert_choice", **overrides):
    """Two blocks of width 32 on 8 x 8 pixels, 16 tokens an image, 8 kept; `overrides` take dotted keys with __ for dots."""
    c = config.default()
    c.model.update(width=32, num_blocks=2, num_heads=4, num_kv_heads=2, head_dim=16, patch=2, qk_norm=True)
    c.moe.update(routing=routing, num_experts=0 if routing == "dense" else 8, group_size="16")
    c.text.update(encoder="tower", width=32, length=LENGTH, tower_blocks=1, tower_heads=2)
    c.data.update(source="shapes", space="pixels", size=8, channels=3)
    c.optimizer.update(warmup_steps=0, learning_rate=1e-2)
    c.train.update(steps=100, batch_size=16)
    c.sample.update(steps=3, sampler="heun", batch_size=8)
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        c[section][name] = value
    c = config.typed(c)
    checks.validate(c)
    return c


def change(c, **overrides):
    """A config with other values of keys, dotted with __ for dots."""
    return settings.changed(c, {name.replace("__", "."): value for name, value in overrides.items()})


def make_system(c, devices=None):
    return systems.make_system(c, LetterTokenizer(), devices)


def start(system):
    """(optimizer, shapes, shardings) of a system's training state."""
    tx = training_step.optimizer(system)
    return tx, *training_step.abstract_state(system, tx)


def batch(c, step=0):
    """Random pictures with captions, as a loader gives them."""
    rng = np.random.default_rng(step)
    size = c.train.batch_size
    captions = ["".join(rng.choice(list("abcdef"), 5)) for _ in range(size)]
    text = Text(*LetterTokenizer().encode(captions, c.text.length))
    image_BYXZ = rng.uniform(-1, 1, (size, c.data.size, c.data.size, 3)).astype(np.float32)
    return Batch(image_BYXZ, text, np.arange(size))


def assert_drawn(folder, expected):
    """The first pictures of prompts in a folder of samples are the expected ones, (N, Y, X, 3) in 0..1, to a rounding."""
    for number, image in enumerate(expected):
        ours = np.asarray(Image.open(folder / f"{number:05d}_0000.png"), np.float32)
        assert ours.std() > 5
        assert np.abs(ours - 255 * image).max() < 1.01  # rounded to bytes, perhaps the other way
    assert np.abs(expected[0] - expected[1]).max() > 0.05
