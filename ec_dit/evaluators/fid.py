"""The `fid` suite: Fréchet distance of Inception features between drawn and real pictures (Heusel et al. 2017)."""

from dataclasses import dataclass
from typing import Literal

from ec_dit.core.settings import key
from ec_dit.encoders.inception import WIDTH
from ec_dit.evaluators import compared
from ec_dit.evaluators.base import Evaluator, RunFacts
from ec_dit.evaluators.frechet import FrechetEvaluator

Resize = Literal["pytorch_fid", "clean"]


@dataclass(frozen=True)
class Suite(compared.ComparedSuite):
    """Draws the prompts, or the captions of the reference, and compares the pictures with it."""

    inception: str = key("", "FID's Inception: a safetensors file in pytorch-fid's layout")
    resize: Resize = key("pytorch_fid", "the tool whose way of resizing is used")
    bootstrap: int = key(10, "replicates for the standard error; 0 = none", at_least=0, at_most=1000)
    write: str = key("", "file for the statistics of the reference, as pytorch-fid writes them; '' = none")

    @property
    def variant(self) -> str:
        """Keeps figures of clean-fid's resizing apart."""
        return "clean" if self.resize == "clean" else ""

    def make(self, facts: RunFacts) -> Evaluator:
        """Loads the network and finds the reference."""
        features = compared.inception_features(self.inception, self.resize, facts, self.batch_size)
        reference = self.real(facts)
        wanted = self.wanted_or_captions(facts, reference)
        choices = {"inception": compared.network_facts(self.inception), "resize": self.resize}
        real = compared.RealFeatures(reference, features, WIDTH)
        return FrechetEvaluator("FID", wanted, features, real, {**choices, "reference": reference.facts}, self)
