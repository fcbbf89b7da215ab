"""Pictures drawn while a model trains, beside real ones with the same captions."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ec_dit.config import RunConfig, specs
from ec_dit.core import hub, processes
from ec_dit.core.stopping import StopSignal
from ec_dit.data import images
from ec_dit.data.batch import Text
from ec_dit.data.dataset import Dataset
from ec_dit.data.sheet import contact_sheet
from ec_dit.sampling.settings import SampleSettings
from ec_dit.system.model import System
from ec_dit.system.painter import Painter, autoencoder_path
from ec_dit.train.metrics import MetricWriter
from ec_dit.train.state import TrainState

_PICTURES = 16  # in a grid
_BATCH = 4  # of them at a time, between which a run may be told to stop


class SampleGrid:
    """Draws fixed prompts with the moving average; for validation captions the real picture stands beside each.

    Of encoded data the captions' embeddings are those that are stored, so that no text encoder is loaded for them.

    Attributes:
        NAME: of the pictures, in files and in TensorBoard.
    """

    NAME = "samples"

    def __init__(
        self,
        system: System,
        data: Dataset,
        writer: MetricWriter,
        stop: StopSignal,
        say: Callable[[str], None],
    ):
        self._writer, self._stop, self._say = writer, stop, say
        config = system.config
        self._seed, self._prompts = config.seed, list(config.log.prompts)
        self._real: list[np.ndarray] = []
        if self._prompts:
            self._generator = Painter(system).generator(_settings(config))
            return
        split = data["validation" if "validation" in data.splits else "train"]
        part = max(split.parts, key=lambda part: part.size)
        records = [split[part.start + i] for i in range(min(_PICTURES, part.size))]
        self._prompts = [record.caption for record in records]
        if data.encoding is None:
            self._real = [images.center_crop(images.decode(record.image), config.data.size) for record in records]
            self._generator = Painter(system).generator(_settings(config))
            return
        means_BYXZ = np.stack([record.latents[0][0] for record in records]).astype(np.float32)
        null_text = system.null_text()
        known = {record.caption: Text(np.float32(record.text_TM()), record.texts[0][1]) for record in records}

        def encode(captions: Sequence[str]) -> Text:
            found = [known.get(caption, null_text) for caption in captions]  # '' fills batches up
            return Text(np.stack([text.tokens for text in found]), np.stack([text.mask_BT for text in found]))

        painter = Painter(system, encode)
        self._real = list(images.to_uint8(painter.autoencoder.decode(means_BYXZ)))
        self._generator = painter.generator(_settings(config, part.shape), part.shape)

    @classmethod
    def make(
        cls,
        system: System,
        data: Dataset,
        writer: MetricWriter,
        stop: StopSignal,
        say: Callable[[str], None],
    ) -> "SampleGrid | None":
        """None, and why, where the autoencoder of the latents is not at hand: training goes on without pictures."""
        if data.encoding is not None:
            path = autoencoder_path(system)
            if not processes.everywhere(hub.is_there(path)):
                say(f"no sample grids: not every process finds the autoencoder {path}; see --config.data.autoencoder")
                return None
        return cls(system, data, writer, stop, say)

    def __call__(self, done: int, state: TrainState) -> None:
        """Draws, and writes the grid. Raises Stopped between two batches where the run is told to stop."""
        self._generator.made = self._generator.broken = 0
        batches = self._generator.batches(state.ema, self._prompts, [0] * len(self._prompts), self._seed)
        made = np.concatenate([pictures for _, pictures in self._stop.between(batches)])
        if warning := self._generator.warning:
            self._say(f"samples of step {done}: {warning}")
        pairs = zip(self._prompts, self._real, made, strict=True) if self._real else ()
        shown = [picture for _, real, drawn in pairs for picture in (real, drawn)] or list(made)
        captions = [t for p in self._prompts for t in (f"{p} (real)", f"{p} (ours)")] if self._real else self._prompts
        self._writer.image(done, self.NAME, contact_sheet(shown, captions, columns=8, smooth=True))


def _settings(config: RunConfig, shape: specs.Shape | None = None) -> SampleSettings:
    return dataclasses.replace(specs.sample_settings(config, shape), batch_size=_BATCH)
