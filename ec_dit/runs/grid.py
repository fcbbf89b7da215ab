"""Pictures drawn while a model trains, beside real ones with the same captions."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ec_dit.config import RunConfig, specs
from ec_dit.core import hub, processes
from ec_dit.core.stopping import StopSignal
from ec_dit.data.sheet import contact_sheet
from ec_dit.runs.references import References
from ec_dit.sampling.settings import SampleSettings
from ec_dit.system.painter import autoencoder_path
from ec_dit.train.metrics import MetricWriter
from ec_dit.train.state import TrainState

_PICTURES = 16  # in a grid
_BATCH = 4  # of them at a time, between which a run may be told to stop


class SampleGrid:
    """Draws fixed prompts with the moving average; for validation captions the real picture stands beside each.

    Attributes:
        NAME: of the pictures, in files and in TensorBoard.
        generator, prompts, seed: what draws them, and what is drawn.
        laid_out: lays parameters out as the generator has them.
    """

    NAME = "samples"

    def __init__(self, references: References, writer: MetricWriter, stop: StopSignal, say: Callable[[str], None]):
        self._writer, self._stop, self._say = writer, stop, say
        self.laid_out = references.laid_out
        config = references.drawing.config
        self.seed, self.prompts = config.seed, list(config.log.prompts)
        self._real: list[np.ndarray] = []
        shape = None
        if not self.prompts:
            data = references.data
            split = "validation" if "validation" in data.splits else "train"
            shape = max(data[split].parts, key=lambda part: part.size).shape
            examples = references.examples(split, _PICTURES, shape)
            self.prompts = [example.caption for example in examples]
            self._real = [example.image for example in examples]
        self.generator = references.painter.generator(_settings(config, shape), shape)

    @classmethod
    def make(
        cls, references: References, writer: MetricWriter, stop: StopSignal, say: Callable[[str], None]
    ) -> "SampleGrid | None":
        """None, and why, where the autoencoder of the latents is not at hand: training goes on without pictures."""
        if references.data.encoding is not None:
            path = autoencoder_path(references.system)
            if not processes.everywhere(hub.is_there(path)):
                say(f"no sample grids: not every process finds the autoencoder {path}; see --config.data.autoencoder")
                return None
        return cls(references, writer, stop, say)

    def __call__(self, done: int, state: TrainState) -> None:
        """Draws, and writes the grid. Raises Stopped between two batches where the run is told to stop."""
        self.generator.made = self.generator.broken = 0
        params = self.laid_out(state.ema)
        batches = self.generator.batches(params, self.prompts, [0] * len(self.prompts), self.seed)
        made = np.concatenate([pictures for _, pictures in self._stop.between(batches)])
        if warning := self.generator.warning:
            self._say(f"samples of step {done}: {warning}")
        pairs = zip(self.prompts, self._real, made, strict=True) if self._real else ()
        shown = [picture for _, real, drawn in pairs for picture in (real, drawn)] or list(made)
        captions = [t for p in self.prompts for t in (f"{p} (real)", f"{p} (ours)")] if self._real else self.prompts
        self._writer.image(done, self.NAME, contact_sheet(shown, captions, columns=8, smooth=True))


def _settings(config: RunConfig, shape: specs.Shape | None = None) -> SampleSettings:
    return dataclasses.replace(specs.sample_settings(config, shape), batch_size=_BATCH)
