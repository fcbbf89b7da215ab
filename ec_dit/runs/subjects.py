"""What suites score: a run at a step, whose pictures are drawn and kept, or a folder of pictures that anybody made."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from etils import epath
from jax.sharding import Mesh

from ec_dit.config import specs
from ec_dit.config.data import SYNTHETIC
from ec_dit.core import digests, paths, processes
from ec_dit.core.errors import UserError
from ec_dit.core.fingerprints import fingerprint
from ec_dit.core.stopping import StopSignal
from ec_dit.core.terminal import Progress
from ec_dit.evaluators.base import Example, Losses, Reference, RunFacts, Wanted
from ec_dit.layouts import files as layout_files
from ec_dit.layouts.base import PictureFile
from ec_dit.runs import real, timed_losses
from ec_dit.runs.gallery import Gallery
from ec_dit.runs.pictures import describe
from ec_dit.runs.references import References
from ec_dit.sampling.generator import Generator
from ec_dit.system.painter import autoencoder_path

T = TypeVar("T")


class Scored(Protocol):
    """What a suite scores now."""

    def images(self, wanted: Wanted) -> Iterator[np.ndarray]:
        """Yields the pictures, uint8 (rows, columns, 3), in the order of `wanted.each`."""
        ...

    @property
    def losses(self) -> Losses:
        """Computes its losses. Raises UserError where it has none."""
        ...

    @property
    def choices(self) -> Mapping[str, Any]:
        """Lists what its pictures depend on, and what is known of them."""
        ...

    @property
    def warning(self) -> str:
        """Tells people what they should know of the pictures so far; '' where all is well."""
        ...


class RunSubject:
    """A run, whose parameters come with every call of `at`.

    Args:
        folder: for its pictures.
        stop: asked between the batches of pictures; None: nobody stops it.
        replace: pictures of other steps, settings and parameters are removed, not refused.
    """

    def __init__(
        self,
        references: References,
        folder: epath.Path,
        stop: StopSignal | None = None,
        *,
        replace: bool = False,
    ):
        self.facts: RunFacts = references
        self._references, self._stop = references, stop
        self.folder, self.replace = folder, replace
        self.system, self.drawing, self.laid_out = references.system, references.drawing, references.laid_out

    def check_losses(self) -> None:
        """Does nothing: a run has losses."""

    def prepare(self, wanted: Wanted) -> None:
        """Loads what is needed to draw pictures, so that what is missing shows now.

        Raises:
            UserError: the model's encoders or autoencoder are not at hand.
        """
        assert wanted.prompts is not None
        self._references.read([prompt.text for prompt in wanted.prompts])
        _ = self.generator

    @functools.cached_property
    def generator(self) -> Generator:
        """What draws, for all suites."""
        return self._references.painter.generator(specs.sample_settings(self.drawing.config))

    def at(self, params: Any, step: int, *, seed: int = 0, ema: bool = True) -> "RunAt":
        """Gives the run with its parameters of a step.

        Args:
            seed: of the starting noise.
            ema: whether they are the moving average.
        """
        at = {"step": step, "seed": seed, "weights": "ema" if ema else "params"}
        return RunAt(self, params, {**at, "params_fingerprint": fingerprint(params)})

    def between(self, batches: Iterator[T]) -> Iterator[T]:
        """Yields the batches; raises Stopped between two where the run is told to stop."""
        return batches if self._stop is None else self._stop.between(batches)

    @property
    def losses(self) -> timed_losses.MakeLosses:
        """Makes what computes losses of parameters."""
        return functools.partial(timed_losses.make, self.system, self._references, self.between)


class RunAt:
    """A run at a step; `RunSubject.at` makes it, and has the arguments. Implements `Scored`."""

    def __init__(self, run: RunSubject, params: Any, at: Mapping[str, Any]):
        self._run, self._params, self._at = run, params, at
        self._gallery: Gallery | None = None

    def images(self, wanted: Wanted) -> Iterator[np.ndarray]:
        """Implements `Scored`: draws what is not in the folder yet."""
        run, generator = self._run, self._run.generator
        known = describe(run.drawing, generator.settings)
        made_by = {name: known.pop(name) for name in ("devices", "mesh", "versions", "batch_size")}
        encoders = {"text_encoder": run.system.config.text.path, "autoencoder": autoencoder_path(run.system)}
        facts = {"config": run.system.config.name, **self._at, **encoders, "shape": list(generator.shape_YXZ), **known}
        self._gallery = Gallery(run.folder / wanted.name, wanted, facts, made_by, replace=run.replace)

        def draw(prompts: Sequence[str], indices: Sequence[int]) -> Iterator[np.ndarray]:
            if not prompts:
                return
            batches = generator.batches(run.laid_out(self._params), prompts, indices, int(self._at["seed"]))
            with Progress(f"drawing {wanted.name}", None, "images", shown=processes.is_first()) as progress:
                for part, batch in run.between(batches):
                    progress.reach(part.stop, len(prompts))
                    yield from batch

        return self._gallery.images(draw)

    @property
    def losses(self) -> Losses:
        """Implements `Scored`: of no pictures, so that there is nothing to say of any."""
        self._gallery = None
        return self._run.losses(self._params)

    @property
    def choices(self) -> Mapping[str, Any]:
        """Implements `Scored`."""
        found = {"config": self._run.system.config.name, **self._at}
        if self._gallery is None:
            return found
        drawn = describe(self._run.drawing, self._run.generator.settings)
        return {**found, **drawn, "images_plain_grey": self._gallery.grey}

    @property
    def warning(self) -> str:
        """Implements `Scored`."""
        if self._gallery is None or not self._gallery.grey:
            return ""
        return (
            f"{self._gallery.grey} of {self._gallery.count} pictures are plain grey: a model that is hardly trained draws such; "
            "or their numbers are not finite, since it has diverged (an earlier one may be sound) or is guided too strongly."
        )


@dataclass(frozen=True)
class NoRun:
    """What is known where pictures lie in a folder. Implements `RunFacts`."""

    mesh: Mesh
    draws: bool = False
    source: str = SYNTHETIC
    splits: Sequence[str] = ()

    def source_options(self, kind: type[T]) -> T:
        """Has none: UserError."""
        raise UserError(
            f"pictures of a folder have no options of {kind.__name__}: this suite scores a run, --workdir=DIR."
        )

    def examples(self, split: str, count: int) -> Sequence[Example]:
        """Has none: UserError."""
        raise UserError("pictures of a folder have no data set: this suite scores a run, --workdir=DIR.")

    def size(self, split: str) -> int:
        """Has none: UserError."""
        raise UserError("pictures of a folder have no data set: this suite scores a run, --workdir=DIR.")

    def reference(self, name: str, count: int) -> Reference:
        """Implements `RunFacts`: what lies at a path."""
        if not name:
            raise UserError("pictures of a folder are compared with nothing by themselves: give --reference=PATH.")
        return real.at_path(name, count)


class NoSubject:
    """Neither a run nor pictures: for suites that need none. Implements `Scored`."""

    def __init__(self, mesh: Mesh):
        self.facts: RunFacts = NoRun(mesh)
        self.choices: Mapping[str, Any] = {}
        self.warning = ""

    def check_losses(self) -> None:
        """Raises UserError: it has none."""
        raise UserError("this suite needs the model itself: give --workdir=DIR.")

    def prepare(self, wanted: Wanted) -> None:
        """Raises UserError: it has none."""
        raise UserError("give either --workdir=DIR, the folder of a run, or --images=DIR, a folder of pictures")

    def images(self, wanted: Wanted) -> Iterator[np.ndarray]:
        """Implements `Scored`: there are none."""
        return iter(())

    @property
    def losses(self) -> Losses:
        """Implements `Scored`; `check_losses` came before."""
        raise AssertionError


class FolderSubject(NoSubject):
    """A folder of pictures. Implements `Scored`.

    Args:
        any_size: pictures may be of different sizes.
    """

    def __init__(self, folder: str, mesh: Mesh, *, any_size: bool = False):
        super().__init__(mesh)
        self._folder, self._any_size = paths.at(folder), any_size
        self._notes: dict[str, Any] = {"images": str(self._folder)}
        self.choices = self._notes  # complete when the pictures were read

    def prepare(self, wanted: Wanted) -> None:
        """Counts the pictures.

        Raises:
            UserError: the folder has not exactly the pictures that are wanted.
        """
        self._files(wanted)

    def _files(self, wanted: Wanted) -> list[PictureFile]:
        if wanted.prompts is None:
            return layout_files.pictures_below(self._folder)[: wanted.most or None]
        files, there = wanted.layout.files(wanted.prompts, wanted.num), layout_files.names(self._folder)
        layout_files.check_all_there(self._folder, there, files)
        beside = wanted.layout.beside(wanted.prompts)
        layout_files.check_beside(self._folder, beside)
        layout_files.check_no_others(self._folder, there, {file.name for file in files} | beside.keys(), "--images")
        return files

    def images(self, wanted: Wanted) -> Iterator[np.ndarray]:
        """Implements `Scored`: reads them."""
        return digests.of_passing(self._read(wanted), self._notes)

    def _read(self, wanted: Wanted) -> Iterator[np.ndarray]:
        files = self._files(wanted)
        first: tuple[int, ...] = ()
        with Progress(f"scoring {self._folder.name}", len(files), "images", shown=processes.is_first()) as progress:
            for file, pictures in zip(files, layout_files.read_all(self._folder, files), strict=True):
                for picture in pictures:
                    first = first or picture.shape
                    if picture.shape != first and not self._any_size:
                        raise UserError(
                            f"{self._folder} holds pictures of different sizes: {files[0].name} has {_size(first)} pixels, "
                            f"{file.name} {_size(picture.shape)}. Are they of several runs? If it is meant so: --any_size."
                        )
                    yield picture
                progress.update()


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"


Subject = RunSubject | NoSubject
Say = Callable[[str], None]
