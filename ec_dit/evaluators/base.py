"""What an evaluation suite is: its options, the prompts that it has for a run, and how it scores the pictures drawn from them.

A suite is a module (or a package) of this folder with a class `Suite`. It knows no model: pictures come to its evaluator as they
are drawn.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import numpy as np
from PIL import Image

from ec_dit.core.settings import COUNT, key

T = TypeVar("T")
Figures = Mapping[str, "float | Mapping[str, float]"]


@dataclass(frozen=True)
class Example:
    """A picture of the run's data set, uint8 (rows, columns, 3) as the model is to draw it, and its caption."""

    caption: str
    image: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a suite.

    Attributes:
        mean: the headline.
        figures: the others, by name, or by the names of a group and of its members.
        table: all of them, for people.
        sheet: some of the pictures with their prompts.
    """

    mean: float
    figures: Figures
    table: str
    sheet: Image.Image


class RunFacts(Protocol):
    """What a suite may know of the run that it scores. All processes of a run ask for the same."""

    @property
    def source(self) -> str:
        """Names what made the data set: a word of data.source, 'synthetic' where there is none."""
        ...

    @property
    def splits(self) -> Sequence[str]:
        """Names the splits of the data set, 'train' among them; () where there is none."""
        ...

    def source_options(self, kind: type[T]) -> T:
        """Gives the options with which the source made the data set; DamageError where they are not of this kind."""
        ...

    def examples(self, split: str, count: int) -> Sequence[Example]:
        """Gives the first `count` examples of a split, fewer where there are no more.

        Raises:
            UserError: there is no data set, or no such split, or it is not where the run left it.
        """
        ...


class Evaluator(Protocol):
    """A suite made ready for a run.

    Attributes:
        prompts: of the pictures it needs, one each; of a prompt that comes twice there are two different pictures.
    """

    prompts: Sequence[str]

    def score(self, images: Iterator[np.ndarray]) -> Evaluation:
        """Scores pictures, uint8 (rows, columns, 3), which come one by one in the order of the prompts."""
        ...


@dataclass(frozen=True)
class Suite(abc.ABC):
    """The options of a suite, each declared by `core.settings.key`; its name is its module's.

    Attributes:
        sources: the data sets whose models it can score, by what made them; () = all.
    """

    sources: ClassVar[tuple[str, ...]] = ()

    every: int = key(0, "steps between scores while a run trains; 0 = only at its end", at_least=0, at_most=COUNT)

    @property
    def variant(self) -> str:
        """Gives a word for options that make its figures another quantity; '' for the ordinary one."""
        return ""

    @property
    def label(self) -> str:
        """Names its figures and files."""
        name = type(self).__module__.rpartition(".")[2]
        return f"{name}_{self.variant}" if self.variant else name

    @abc.abstractmethod
    def make(self, facts: RunFacts) -> Evaluator:
        """Prepares the suite for a run, before it trains.

        Raises:
            UserError: the run, or its data, do not fit.
        """
