"""What an evaluation suite is: its options, the pictures or losses that it asks for, and how it scores them.

A suite is a module (or a package) of this folder with a class `Suite`. It knows no model: pictures and losses come to its
evaluator as they are made.
"""

import abc
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.core.settings import COUNT, key
from ec_dit.judges.moments import Moments
from ec_dit.layouts.base import Layout, Prompt, numbered
from ec_dit.layouts.flat import Flat
from ec_dit.nn.routing.spec import Routed

T = TypeVar("T")
Figures = Mapping[str, "float | Mapping[str, float]"]


@dataclass(frozen=True)
class Example:
    """A picture of the run's data set, uint8 (rows, columns, 3) as the model is to draw it, its caption, and facts about it."""

    caption: str
    image: np.ndarray
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """Real pictures that others are compared with, and where they come from.

    Attributes:
        captions: of the pictures, where they have any; () elsewhere.
        images: reads them, uint8 (rows, columns, 3), anew at every call; None where only their `moments` are known.
        moments: reads these, of features of a number of numbers; None where there are pictures.
        facts: what they are, for the file of the score; complete when the pictures were read.
    """

    captions: Sequence[str]
    images: Callable[[], Iterator[np.ndarray]] | None
    moments: Callable[[int], Moments] | None
    facts: MutableMapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The pictures that a suite scores: `num` of every prompt, in the order of the prompts.

    Attributes:
        name: of them, by which suites share them and their folder is called.
        prompts: None: any pictures there are, which only a folder of pictures has.
        layout: how they lie in a folder.
        most: of any pictures, the first so many; 0 = all.
    """

    name: str
    prompts: Sequence[Prompt] | None
    num: int = 1
    layout: Layout = field(default_factory=Flat)
    most: int = 0

    @classmethod
    def of(cls, name: str, texts: Sequence[str]) -> "Wanted":
        """Wants a picture of each text; of one that comes twice two different ones."""
        return cls(name, numbered(texts))

    @property
    def facts(self) -> dict[str, Any]:
        """Tells which pictures they are."""
        if self.prompts is None:
            return {"prompts": None}
        text = json.dumps([[prompt.id, prompt.text] for prompt in self.prompts])
        known = {"layout": type(self.layout).__name__, "prompts": len(self.prompts), "num": self.num}
        return {**known, "prompts_sha256": hashlib.sha256(text.encode()).hexdigest()}

    @property
    def each(self) -> list[Prompt]:
        """Lists the prompt of every picture."""
        return [prompt for prompt in self.prompts or () for _ in range(self.num)]


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a suite.

    Attributes:
        score: the headline.
        parts: the other figures, by name, or by the names of a group and of its members.
        table: all of them, for people.
        error: standard error of the score; NaN: not known.
        count: pictures, or examples, that it is of.
        rows: of every picture or prompt: its "id", "prompt" and "value", by which two scores are compared, the "group" within
            which values are averaged first, and what else was found.
        choices: everything else that the figures depend on.
        sheet: some of the pictures with their prompts.
    """

    score: float
    parts: Figures
    table: str
    error: float = math.nan
    count: int = 0
    rows: Sequence[Mapping[str, Any]] = ()
    choices: Mapping[str, Any] = field(default_factory=dict)
    sheet: Image.Image | None = None


class RunFacts(Protocol):
    """What a suite may know of what it scores. All processes of a run ask for the same."""

    @property
    def mesh(self) -> Mesh:
        """Gives the devices, for networks of a suite's own."""
        ...

    @property
    def draws(self) -> bool:
        """Tells whether a model draws the pictures; else they lie in a folder."""
        ...

    @property
    def source(self) -> str:
        """Names what made the data set: a word of data.source, 'synthetic' where there is none."""
        ...

    @property
    def splits(self) -> Sequence[str]:
        """Names the splits of the data set, 'train' among them; () where there is none."""
        ...

    def size(self, split: str) -> int:
        """Counts the examples of a split of the data set, of all shapes."""
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

    def reference(self, name: str, count: int) -> Reference:
        """Gives real pictures.

        Args:
            name: a split of the run's data set; or the path of a prepared data set, FOLDER or FOLDER:SPLIT, of a folder of
                pictures, or of a statistics file; '' = the validation split, or else 'train'.
            count: pictures at most; 0 = all.

        Raises:
            UserError: there are none.
        """
        ...


class Evaluator(abc.ABC):
    """A suite made ready for a run.

    Attributes:
        wanted: the pictures it needs; None: it needs none.
    """

    wanted: Wanted | None

    @abc.abstractmethod
    def score(self, images: Iterator[np.ndarray]) -> Evaluation:
        """Scores pictures, uint8 (rows, columns, 3), which come one by one in the order of `wanted.each`."""


class LossEvaluator(abc.ABC):
    """A suite that needs the losses of a model, and no pictures of it."""

    @abc.abstractmethod
    def measure(self, losses: "Losses") -> Evaluation:
        """Makes figures of losses."""


class Losses(Protocol):
    """Computes losses of what is scored."""

    def __call__(self, split: str, count: int, times: Sequence[float], routed: Routed = "sampling") -> np.ndarray:
        """Computes the loss of examples of a split at fixed times.

        Args:
            count: examples at most.
            times: t; example i is taken at times[i mod their number].
            routed: how the tokens of sparse models are: as those of an image that is drawn, or in training's groups.

        Returns:
            float64, one an example.
        """
        ...


@dataclass(frozen=True)
class Suite(abc.ABC):
    """The options of a suite, each declared by `core.settings.key`; its name is its module's.

    Attributes:
        sources: the data sets whose models it can score, by what made them; () = all.
    """

    sources: ClassVar[tuple[str, ...]] = ()

    every: int = key(0, "steps between scores while a run trains; 0 = only at its end", at_least=0, at_most=COUNT)

    ema: bool = key(True, "scores the moving average, not the raw parameters, while a run trains")

    @property
    def variant(self) -> str:
        """Gives a word for options that make its figures another quantity; '' for the ordinary one."""
        return ""

    @property
    def name(self) -> str:
        """Names the suite."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def label(self) -> str:
        """Names its figures and files."""
        return "_".join(filter(None, (self.name, self.variant, "" if self.ema else "raw")))

    def check_split(self, split: str, facts: RunFacts) -> None:
        """Raises UserError unless the run's data have the split."""
        if split not in facts.splits:
            there = f"it has {', '.join(facts.splits)}" if facts.splits else "there is no data set"
            raise UserError(f"suite {self.label}: no split {split!r} in the run's data; {there}.")

    @abc.abstractmethod
    def make(self, facts: RunFacts) -> Evaluator | LossEvaluator:
        """Prepares the suite for a run, before it trains.

        Raises:
            UserError: the run, or its data, do not fit.
        """
