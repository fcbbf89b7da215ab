"""Real pictures and their captions beside what draws others: for sample grids and evaluation suites."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from ec_dit.config import specs
from ec_dit.config.data import SYNTHETIC
from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.data.batch import Text, stack_texts
from ec_dit.data.dataset import Dataset
from ec_dit.evaluators.base import Example, Reference
from ec_dit.runs import real
from ec_dit.runs.workdir import Workdir
from ec_dit.system import layout
from ec_dit.system.captions import Captions
from ec_dit.system.model import System
from ec_dit.system.painter import Painter

T = TypeVar("T")
_HELD_BYTES = 2**30  # of prompts' embeddings
_DECODED = 16  # pictures that are decoded at a time


class References:
    """What a run is compared with: examples of its data set, and a painter that knows their captions.

    Of encoded data a caption's embeddings are those that are stored, so that no text encoder is loaded for it. It is what
    `evaluators.base.RunFacts` asks for.

    Args:
        data: the run's data set; None: the workdir knows where it is, and it is opened when it is needed.
        drawing: the model as it lies to be drawn with; None: as it does.

    Attributes:
        system, workdir, drawing: as given.
    """

    def __init__(self, system: System, workdir: Workdir, data: Dataset | None = None, drawing: System | None = None):
        self.system, self.workdir, self._data = system, workdir, data
        self.drawing = drawing or system
        self._texts: dict[str, Text] = {}  # of captions, where published encoders made their embeddings
        self._stored: dict[str, tuple[str, int]] = {}  # captions, and where the data set holds their embeddings

    @property
    def mesh(self) -> Mesh:
        """Gives the devices of the run."""
        return self.system.mesh

    @property
    def draws(self) -> bool:
        """Tells that the model draws the pictures."""
        return True

    @functools.cached_property
    def data(self) -> Dataset:
        """The data set. Raises UserError where it cannot be opened."""
        return self._data or self.workdir.dataset()

    @property
    def source(self) -> str:
        """Names what made the data set; 'synthetic' where there is none."""
        return str(self.workdir.data_report().get("source", SYNTHETIC))

    @property
    def splits(self) -> Sequence[str]:
        """Names the splits of the data set; () where there is none."""
        return () if self.source == SYNTHETIC else self.data.splits

    def size(self, split: str) -> int:
        """Counts the examples of a split of the data set, of all shapes."""
        return len(self.data[split])

    def source_options(self, kind: type[T]) -> T:
        """Gives the options with which the source made the data set; DamageError where they are not of this kind."""
        return self.workdir.data_options(kind)

    @functools.cached_property
    def painter(self) -> Painter:
        """What turns captions and latents into pictures. Raises UserError where the autoencoder is not at hand."""
        return Painter(self.drawing, self._encode)

    def laid_out(self, params: Any) -> Any:
        """Lays parameters out as the painter draws with them."""
        return params if self.drawing is self.system else layout.laid_out(params, self.drawing)

    @functools.cached_property
    def _captions(self) -> Captions:
        return Captions(self.system)

    def examples(self, split: str, count: int, shape: specs.Shape | None = None) -> list[Example]:
        """Reads the first examples of a split, fewer than `count` where there are no more.

        Args:
            shape: of encoded data, the latents' rows and columns; None: the square of the config.

        Raises:
            UserError: no such split, or no latents of that shape in it, or no autoencoder to decode them.
        """
        records, numbers = self.data[split], self._numbers(split, count, shape)
        chosen = [records[i] for i in numbers]
        self._remember(split, numbers, [record.caption for record in chosen])
        pictures = self._pictures(chosen)
        return [Example(each.caption, image, each.meta) for each, image in zip(chosen, pictures, strict=True)]

    def reference(self, name: str, count: int) -> Reference:
        """Gives real pictures (`evaluators.base.RunFacts`); those of the run's own data set are as the model is to draw them."""
        if name and name not in self.splits:
            return real.at_path(name, count)
        if not self.splits:
            raise UserError(
                "this run has no data set to be compared with: give a reference, a folder or a statistics file."
            )
        split = name or real.preferred(self.splits)
        numbers = self._numbers(split, count or None)
        what = f"cropped in the middle to {self.system.config.data.size} pixels"
        if self.data.encoding is not None:
            what = "decoded from latents of {} x {}".format(*specs.square(self.system.config))
        facts = {
            "data": str(self.data.path),
            "split": split,
            "images": len(numbers),
            "fingerprint": self.data.fingerprint,
        }
        captions = [self.data[split][i].caption for i in numbers]
        self._remember(split, numbers, captions)
        told = {**facts, "pictures": what, "captions": "the first of each"}
        return Reference(captions, lambda: self._real(split, numbers), None, told)

    def _remember(self, split: str, numbers: Sequence[int], captions: Sequence[str]) -> None:
        """Notes of encoded records where the embeddings of their first captions are."""
        if self.data.encoding is not None:
            self._texts[""] = self.system.null_text()
            self._stored |= {caption: (split, i) for caption, i in zip(captions, numbers, strict=True)}

    def _real(self, split: str, numbers: range) -> Iterator[np.ndarray]:
        """Reads pictures of a split, some at a time."""
        records = self.data[split]
        for start in range(0, len(numbers), _DECODED):
            yield from self._pictures([records[i] for i in numbers[start : start + _DECODED]])

    def _pictures(self, chosen: Sequence[Any]) -> Sequence[np.ndarray]:
        """Makes the pictures of records as the model is to draw them; latents are decoded all at once."""
        if self.data.encoding is None:
            size = self.system.config.data.size
            return [images.center_crop(images.decode(record.image), size) for record in chosen]
        means_BYXZ = np.stack([record.latents[0][0] for record in chosen]).astype(np.float32)
        return list(images.to_uint8(self.painter.autoencoder.decode(means_BYXZ)))

    def _numbers(self, split: str, count: int | None, shape: specs.Shape | None = None) -> range:
        """Numbers the first records of a split, of encoded data those of one shape; None = all.

        Raises:
            UserError: a split has no latents of that shape.
        """
        start, size = 0, len(self.data[split])
        if self.data.encoding is not None:
            shape = shape or specs.square(self.system.config)
            part = next((part for part in self.data[split].parts if part.shape == shape), None)
            if part is None:
                raise UserError(f"split {split} of {self.data.path} holds no latents of {shape[0]} x {shape[1]}.")
            start, size = part.start, part.size
        return range(start, start + (size if count is None else min(count, size)))

    def read(self, prompts: Iterable[str]) -> None:
        """Reads prompts by published encoders, where the model needs them, which are loaded for this and let go.

        Of more prompts than there is room for, the encoders stay, and read them when they are drawn.

        Raises:
            UserError: the config names no encoders, or they are not what the model was made for.
        """
        unknown = [
            prompt for prompt in dict.fromkeys(["", *prompts]) if not (prompt in self._texts or prompt in self._stored)
        ]
        if self.system.tokenizer is not None or not unknown:
            return
        spec = self.system.config.text
        if len(unknown) * spec.length * spec.width * 4 > _HELD_BYTES:
            _ = self._captions  # which reads them batch by batch
            return
        text = Captions(self.system)(unknown)
        self._texts |= {prompt: jax.tree.map(lambda a, i=i: a[i], text) for i, prompt in enumerate(unknown)}

    def _known(self, caption: str) -> Text | None:
        """The embeddings of a caption, where they are at hand or the data set holds them."""
        if (text := self._texts.get(caption)) is not None or caption not in self._stored:
            return text
        split, number = self._stored[caption]
        record = self.data[split][number]
        pooled_M = np.float32(record.pooled[0]) if self.system.config.text.pooled else None
        return Text(np.float32(record.text_TM()), record.texts[0][1], pooled_M)

    def _encode(self, captions: Sequence[str]) -> Text:
        texts = [text for caption in captions if (text := self._known(caption)) is not None]
        if len(texts) < len(captions):
            return self._captions(captions)
        return stack_texts(texts)
