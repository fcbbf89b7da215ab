"""The `cmmd` suite: Gaussian-kernel distance of CLIP embeddings between drawn and real pictures (Jayasumana et al. 2024)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ec_dit.core.settings import key
from ec_dit.encoders import clip_vision, pixels
from ec_dit.encoders.clip_pair import unit
from ec_dit.encoders.features import Features, Prepare
from ec_dit.evaluators import compared
from ec_dit.evaluators.base import Evaluation, Evaluator, RunFacts, Wanted
from ec_dit.judges import distances


@dataclass(frozen=True)
class Suite(compared.ComparedSuite):
    """Compares a few thousand pictures; the published figures are of CLIP ViT-L/14 with 336 pixels."""

    clip: str = key("", "the CLIP, such as openai/clip-vit-large-patch14-336: a folder or a name")

    def make(self, facts: RunFacts) -> Evaluator:
        """Loads the CLIP and finds the reference."""
        path = compared.needed(self.clip, "clip", "a CLIP, such as openai/clip-vit-large-patch14-336,")
        spec, network = clip_vision.load(path, facts.mesh, jnp.float32)
        processor = pixels.Processor.load(path, replace(pixels.CLIP, shorter=spec.size, crop=spec.size))
        features = Features(network, cropped(processor), facts.mesh, self.batch_size)
        reference = self.real(facts)
        wanted = self.wanted_or_captions(facts, reference)
        choices = {"clip": compared.network_facts(path), "reference": reference.facts}
        real = compared.RealFeatures(reference, features, spec.projection or spec.width)
        real.check_pictures()
        return CmmdEvaluator(wanted, features, real, choices)


def cropped(processor: pixels.Processor) -> Prepare:
    """Makes what brings pictures to CLIP as the published code does: the middle square, bicubic to CLIP's size, normalised."""
    mean_Z, std_Z = np.array(processor.mean, np.float32), np.array(processor.std, np.float32)

    def prepare(image_YXZ: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image_YXZ)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        square = square.resize((processor.crop, processor.crop), Image.Resampling.BICUBIC)
        return (np.asarray(square, np.float32) / np.float32(255) - mean_Z) / std_Z

    return prepare


class CmmdEvaluator(Evaluator):
    """Holds the embeddings of all pictures, a few KB each."""

    def __init__(self, wanted: Wanted, features: Features, real: compared.RealFeatures, choices: Mapping[str, Any]):
        self.wanted = wanted
        self._features, self._real, self._choices = features, real, choices

    def score(self, images: Iterator[np.ndarray]) -> Evaluation:
        """Computes the distance; its error is not estimated."""
        real_BD = unit(self._real.all())
        made_BD = unit(np.concatenate(list(self._features(images))))
        value = distances.cmmd(real_BD, made_BD)
        table = f"CMMD {value:.4f} ({len(made_BD):,} pictures against {len(real_BD):,})"
        return Evaluation(value, {}, table, count=len(made_BD), choices=self._choices)
