"""A trained run in memory, to draw with, to look into and to score: what `import ec_dit` gives, and what entry points share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from ec_dit import cli
from ec_dit.config import KEYS, RunConfig, checks, specs
from ec_dit.core import settings
from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.evaluators import registry
from ec_dit.evaluators.base import Figures
from ec_dit.runs.evaluation import Scorer
from ec_dit.runs.references import References
from ec_dit.runs.subjects import RunSubject
from ec_dit.runs.workdir import Workdir
from ec_dit.sampling.generator import Generator
from ec_dit.sampling.routes import Routes, RouteTracer
from ec_dit.sampling.settings import SampleSpec
from ec_dit.system.captions import Captions
from ec_dit.system.model import System
from ec_dit.system.painter import Painter, load_autoencoder

_Made = tuple[Generator, list[RouteTracer]]
_KEPT = 16  # compiled programs of other shapes and settings; the oldest goes


class Run:
    """A run whose parameters are loaded; `load` makes it.

    Pictures depend on prompt, seed, index and settings alone: they are those of `python -m ec_dit.sample`.

    Attributes:
        workdir: its folder.
        config: its config, with the changes it was loaded with.
        system: its model on the mesh.
        params: its parameters, in the dtype in which sampling holds them.
        step: at which they were saved.
        ema: whether they are the moving average.
        captions: reads prompts.
    """

    def __init__(self, workdir: Workdir, system: System, params: Any, step: int, *, ema: bool):
        self.workdir, self.system, self.params, self.step, self.ema = workdir, system, params, step, ema
        self.config = system.config
        autoencoder = load_autoencoder(system)
        self.captions = Captions(system)
        self._painter = Painter(system, self.captions, autoencoder)
        self._made: dict[tuple[SampleSpec, specs.Shape], _Made] = {}

    @property
    def factor(self) -> int:
        """Pixels along a side of what the model denoises: 1, or the autoencoder's."""
        return self._painter.autoencoder.factor

    def draw(
        self,
        prompts: str | Sequence[str],
        *,
        num: int = 1,
        seed: int = 0,
        shape: tuple[int, int] | None = None,
        **sampling: object,
    ) -> np.ndarray:
        """Draws `num` pictures of every prompt.

        Args:
            prompts: one, or several.
            num: pictures of each, which stand together in the order of their index.
            seed: of the starting noise.
            shape: rows and columns in pixels; None: the square that the run was trained on.
            sampling: keys of the config's `sample` section with other values: steps, sampler, guidance, ...

        Returns:
            uint8 (N, Y, X, 3), N = prompts x num. A batch is always filled up to `batch_size` pictures: for one or two, give
            a small one, which may change a picture by a rounding.

        Raises:
            UserError: the settings are none, or do not fit the model.
        """
        texts = [text for text in _listed(prompts) for _ in range(num)]
        return self.generator(shape, **sampling)(self.params, texts, [i % num for i in range(len(texts))], seed)

    def routing(
        self, prompt: str, *, index: int = 0, seed: int = 0, shape: tuple[int, int] | None = None, **sampling: object
    ) -> Routes:
        """Draws picture `index` of a prompt as `draw` does, to a rounding, and tells which experts its tokens went to.

        Args:
            prompt, index, seed, shape, sampling: as `draw` has them.

        Returns:
            NumPy arrays: the picture, and for every sparse block, evaluation of the network, row and column of patches, and
            expert, whether it took the patch and with which weight. See `Routes`.

        Raises:
            UserError: as `draw` does, and for a model without experts.
        """
        generator, tracers = self._made_for(shape, sampling)
        if not tracers:
            tracers.append(RouteTracer(generator))
        return tracers[0](self.params, prompt, index, seed)

    def evaluate(self, suite: str = "shapes", *, seed: int = 0) -> Figures:
        """Scores the run by a suite, as `python -m ec_dit.evaluate` does, and leaves the files that it leaves.

        Args:
            suite: its name, with options as a config has them: "shapes:novel=true".
            seed: of the starting noise.

        Returns:
            The figures; 'score' is the headline.

        Raises:
            UserError: for an unknown suite or option, or one that does not fit the run's data.
        """
        subject = RunSubject(References(self.system, self.workdir), self.workdir.path / "eval")
        score = Scorer(dataclasses.replace(registry.parse(suite), ema=self.ema), subject, self.workdir.path, cli.say)
        return score(subject.at(self.params, self.step, seed=seed, ema=self.ema))

    def generator(self, shape: tuple[int, int] | None = None, **sampling: object) -> Generator:
        """Makes, once for each shape and settings, what draws batch by batch; arguments as `draw` has them."""
        return self._made_for(shape, sampling)[0]

    def _made_for(self, shape: tuple[int, int] | None, sampling: Mapping[str, object]) -> _Made:
        config = changed(self.config, settings.prefixed("sample", sampling))
        latent = specs.square(config) if shape is None else latent_shape(shape, self.factor, config.model.patch)
        key = (config.sample, latent)
        if key not in self._made:
            if len(self._made) >= _KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = self._painter.generator(specs.sample_settings(config, latent), latent), []
        return self._made[key]


def load(
    workdir: str,
    *,
    ema: bool = True,
    step: int | None = None,
    changes: Mapping[str, object] = MappingProxyType({}),
    say: Callable[[str], None] = cli.say,
) -> Run:
    """Loads a run, and what reads its prompts and decodes its latents.

    Args:
        workdir: folder of a run or of a converted model, on a disk or in a bucket.
        ema: the moving average of the parameters instead of the raw ones.
        step: of the checkpoint; None: the newest that is whole.
        changes: dotted config keys with other values, such as {"sample.steps": 20, "mesh.expert": 8}.
        say: prints a line for people.

    Raises:
        UserError: there is no run, no such checkpoint or key, or encoders are missing.
    """
    place = Workdir(workdir)
    system, params, at = place.load(changed(place.config(), changes), ema=ema, step=step, say=say)
    return Run(place, system, params, at, ema=ema)


def changed(config: RunConfig, changes: Mapping[str, object]) -> RunConfig:
    """Gives a run's config with other values of some dotted keys, checked.

    Raises:
        UserError: naming a key that there is not, that has no such value, or that does nothing in this config.
    """
    for name in changes.keys() - KEYS.keys():
        raise UserError(f"there is no key {name}{did_you_mean(name, KEYS)}.")
    try:
        fitting = {name: KEYS[name].fit(value) for name, value in changes.items()}
    except ValueError as error:
        raise UserError(f"--config.{error}.") from error
    new = settings.changed(config, fitting)
    checks.validate(new)
    checks.check_use(new, config)
    return new


def latent_shape(pixels: tuple[int, int], factor: int, patch: int) -> specs.Shape:
    """Gives rows and columns of the latents of pictures.

    Args:
        pixels: rows and columns of the pictures.
        factor: pixels along a side of a latent pixel.
        patch: latent pixels along a side of a token.

    Raises:
        UserError: for sides that tokens do not divide.
    """
    step = factor * patch  # pixels per side of a token
    rows, columns = pixels
    if rows % step or columns % step:
        near = "x".join(str(max(1, round(side / step)) * step) for side in pixels)
        raise UserError(
            f"pictures of {rows}x{columns}: both sides must be multiples of {step} pixels (autoencoder {factor} x patch "
            f"{patch}); the nearest is {near}"
        )
    return rows // factor, columns // factor


def _listed(prompts: str | Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise UserError("nothing to draw: give at least one prompt.")
    return texts
