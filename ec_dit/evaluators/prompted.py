"""Options of suites whose prompts come from a file, or are the captions of real pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ec_dit.core.errors import UserError
from ec_dit.core.settings import COUNT, key
from ec_dit.evaluators.base import Reference, RunFacts, Suite, Wanted
from ec_dit.layouts.base import Prompt, numbered
from ec_dit.layouts.registry import LAYOUTS


@dataclass(frozen=True)
class PromptedSuite(Suite):
    """Scores pictures of prompts, of which a file has those of a benchmark."""

    prompts: str = key("", "file of prompts, as the layout has it; '' = captions of the reference")
    layout: str = key(
        "flat", "of prompt file and pictures: a tool's, or our own, a line each", choices=lambda: tuple(LAYOUTS)
    )
    num: int = key(0, "pictures of each prompt; 0 = as many as the layout's tool wants", at_least=0, at_most=9_999)
    most: int = key(0, "prompts at most, the first ones; 0 = all", at_least=0, at_most=COUNT)

    def wanted(self) -> Wanted:
        """Reads the prompt file.

        Raises:
            UserError: there is none, or it is none of the layout's.
        """
        layout = LAYOUTS[self.layout]
        return self.chosen(f"{Path(self.prompts).stem}-{self.layout}", layout.read(self.prompts))

    def wanted_or_captions(self, facts: RunFacts, reference: Reference) -> Wanted:
        """Reads the prompt file; where none is given, a run draws the captions of the reference, and a folder is taken whole.

        Raises:
            UserError: as `wanted`; or the reference has no captions to draw.
        """
        if self.prompts:
            return self.wanted()
        if not facts.draws and self.num:
            raise UserError(f"suite {self.label}: num counts the pictures of each prompt: give --prompts=FILE too.")
        if not facts.draws:
            return Wanted("pictures", None, most=self.most)
        if not reference.captions:
            raise UserError(
                f"suite {self.label}: the reference has no captions, so that nobody knows what to draw: give --prompts=FILE."
            )
        split = reference.facts.get("split", "captions")
        return self.chosen(split, numbered(reference.captions))

    def chosen(self, name: str, prompts: Sequence[Prompt]) -> Wanted:
        """Wants pictures of as many of the prompts as are asked for. Raises UserError where the layout cannot name them."""
        layout = LAYOUTS[self.layout]
        prompts, num = prompts[: self.most or None], self.num or layout.NUM
        layout.files(prompts, num)  # says what is wrong before anything is drawn
        return Wanted(f"{name}-{len(prompts)}x{num}", prompts, num, layout)
