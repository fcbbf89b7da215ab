"""The `fd_dino` suite: Fréchet distance of DINOv2 features between drawn and real pictures (Stein et al. 2023)."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ec_dit.core.settings import key
from ec_dit.encoders import dino, pixels
from ec_dit.encoders.features import Features
from ec_dit.evaluators import compared
from ec_dit.evaluators.base import Evaluator, RunFacts
from ec_dit.evaluators.frechet import FrechetEvaluator

_SIDE = 224  # pixels of the published figures


@dataclass(frozen=True)
class Suite(compared.ComparedSuite):
    """Compares pictures, bicubic to 224 pixels whatever their aspect, by the class token of DINOv2 ViT-L/14."""

    dino: str = key("", "the DINOv2, such as facebook/dinov2-large: a folder or a name")
    bootstrap: int = key(10, "replicates for the standard error; 0 = none", at_least=0, at_most=1000)
    write: str = key("", "file for the statistics of the reference; '' = none")

    def make(self, facts: RunFacts) -> Evaluator:
        """Loads the network and finds the reference."""
        path = compared.needed(self.dino, "dino", "a DINOv2, such as facebook/dinov2-large,")
        spec, network = dino.load(path, facts.mesh, jnp.float32)
        features = Features(network, prepare, facts.mesh, self.batch_size)
        reference = self.real(facts)
        wanted = self.wanted_or_captions(facts, reference)
        choices = {"dino": compared.network_facts(path), "reference": reference.facts}
        real = compared.RealFeatures(reference, features, spec.width)
        return FrechetEvaluator("FD-DINOv2", wanted, features, real, choices, self)


def prepare(image_YXZ: np.ndarray) -> np.ndarray:
    """Makes of a picture, uint8 (Y, X, 3), what dgm-eval's DINOv2 reads: float32 (224, 224, 3), normalised as ImageNet is."""
    square = Image.fromarray(image_YXZ).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    mean_Z, std_Z = np.array(pixels.DINO.mean, np.float32), np.array(pixels.DINO.std, np.float32)
    return (np.asarray(square, np.float32) / np.float32(255) - mean_Z) / std_Z
