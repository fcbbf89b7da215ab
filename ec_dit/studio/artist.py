"""Draws pictures of several runs on the same noise, one request after another, and says how far it is."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from ec_dit.config import checks, specs
from ec_dit.core.errors import UserError
from ec_dit.models.spec import DiTSpec
from ec_dit.runs import loaded
from ec_dit.runs.loaded import Run
from ec_dit.runs.workdir import Workdir
from ec_dit.sampling.generator import Generator
from ec_dit.sampling.routes import Routes, RouteTracer, without_gates
from ec_dit.sampling.settings import SampleSpec
from ec_dit.studio.viewer import Panel

MOST_LETTERS, MOST_STEPS, MOST_PICTURES, MOST_GUIDANCE = 1000, 250, 4, 30.0
_MOST_BYTES = 2 * 2**30  # of the routes of one picture, on the devices
_LOADED, _PROGRAMS = 2, 6  # runs in memory, and compiled programs of each; the one that was used longest ago goes
Reach = Callable[[int, int], None]  # (evaluations of the network so far, of how many)


class StoppedError(Exception):
    """Whoever asked does not want the pictures any more."""


@dataclass
class Request:
    """What somebody wants drawn.

    Attributes:
        runs: names of one run or more; their pictures stand side by side.
        prompt: what to draw.
        num: pictures of each run.
        seed: of the starting noise, the same for all of them.
        sampling: keys of the config's `sample` section with other values.
        stopped: set by whoever asked, when the pictures are not wanted any more.
    """

    runs: Sequence[str]
    prompt: str
    num: int = 1
    seed: int = 0
    sampling: Mapping[str, object] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)

    def check_wanted(self) -> None:
        """Raises StoppedError where nobody waits for it any more."""
        if self.stopped.is_set():
            raise StoppedError

    def check(self) -> None:
        """Raises UserError for what would take too long, or is nothing to draw."""
        if not self.prompt.strip():
            raise UserError("Nothing to draw: write a prompt.")
        if len(self.prompt) > MOST_LETTERS:
            raise UserError(f"The prompt has {len(self.prompt):,} letters; {MOST_LETTERS:,} at most.")
        if any("\ud800" <= letter <= "\udfff" for letter in self.prompt):
            raise UserError("The prompt is no valid Unicode.")
        if not 1 <= self.num <= MOST_PICTURES:
            raise UserError(f"pictures: from 1 to {MOST_PICTURES}.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed: from 0 to {2**32 - 1}.")
        for name, most in (("steps", MOST_STEPS), ("guidance", MOST_GUIDANCE)):
            value = self.sampling.get(name, 1)
            if not isinstance(value, int | float) or not 0 <= value <= most:
                raise UserError(f"{name}: from 0 to {most:g}.")


class _Ear:
    """What a compiled program calls. JAX keeps it for good, so it holds nothing but who listens now."""

    def __init__(self) -> None:
        self.heard: Callable[[], None] | None = None

    def __call__(self, _: Any) -> None:
        if (heard := self.heard) is not None:
            heard()


class _Program:
    """What draws one picture of a run by some settings, with routes where it has experts.

    Raises:
        UserError: where the routes of one picture would fill the memory.
    """

    def __init__(self, generator: Generator, spec: DiTSpec):
        self._ear = _Ear()
        settings = generator.settings
        self.evaluations = int(settings.integrator.evaluations(settings.grid.times).size)
        self._drawer: Generator | RouteTracer
        if settings.routing.routing == "dense":
            self._drawer = generator.telling(self._ear)
        else:
            tokens = math.prod(generator.shape_YXZ[:2]) // spec.patch**2
            size = 4 * self.evaluations * spec.num_sparse * tokens * spec.sparse.num_experts
            if size > _MOST_BYTES:
                raise UserError(
                    f"The routes of {self.evaluations} evaluations take {size / 2**30:.1f} GiB; there is room for "
                    f"{_MOST_BYTES / 2**30:.0f}: ask for fewer steps."
                )
            self._drawer = RouteTracer(generator, tell=self._ear)

    def draw(
        self, run: Run, request: Request, index: int, heard: Callable[[], None]
    ) -> tuple[np.ndarray, Routes | None]:
        """Draws picture `index` of a request, uint8 (Y, X, 3), and its routes; `heard` is called at every evaluation."""
        self._ear.heard = heard
        try:
            if isinstance(self._drawer, Generator):
                return self._drawer(run.params, [request.prompt], [index], request.seed)[0], None
            routes = without_gates(self._drawer(run.params, request.prompt, index, request.seed))
            return routes.image_YXZ, routes
        finally:
            jax.effects_barrier()
            self._ear.heard = None


class Artist:
    """Loads runs when they are first asked for, and draws for one request at a time.

    Args:
        workdirs: folders of runs, by the names that requests give.
        ema: the moving average of the parameters.
        changes: keys of the runs' configs with other values.
        say: prints a line for whoever started the page.
    """

    def __init__(
        self,
        workdirs: Mapping[str, str],
        *,
        ema: bool = True,
        changes: Mapping[str, object] = MappingProxyType({}),
        say: Callable[[str], None],
    ):
        self.workdirs, self._ema, self._changes, self._say = dict(workdirs), ema, changes, say
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._programs: dict[str, OrderedDict[Any, _Program]] = {}
        self._busy = threading.Lock()

    def draw(self, request: Request, reach: Reach | None = None) -> list[Panel]:
        """Draws all pictures of a request: of each index those of all runs, which share their noise.

        Raises:
            UserError: for what cannot be drawn, with words for people.
            StoppedError: where it is not wanted any more.
        """
        request.check()
        if unknown := [name for name in request.runs if name not in self.workdirs]:
            raise UserError(f"There is no run {unknown[0]}; there are {', '.join(self.workdirs)}.")
        with self._busy:
            runs, programs = dict[str, Run](), dict[str, _Program]()
            for name in request.runs:
                request.check_wanted()
                try:
                    runs[name] = self._run(name)
                    programs[name] = self._program(name, runs[name], request.sampling)
                except UserError as error:
                    raise UserError(f"{name}: {error}") from error
            total = request.num * sum(program.evaluations for program in programs.values())
            done, counting = 0, threading.Lock()

            def heard() -> None:
                nonlocal done
                with counting:
                    done += 1
                if reach is not None:
                    reach(min(done, total), total)

            panels = []
            for index in range(request.num):
                for name, run in runs.items():
                    request.check_wanted()
                    image_YXZ, routes = programs[name].draw(run, request, index, heard)
                    facts = {
                        "seed": f"{request.seed}",
                        "picture": f"{index + 1} of {request.num}",
                        "step": f"{run.step:,}",
                    }
                    facts |= {key: f"{value}" for key, value in request.sampling.items()}
                    panels.append(Panel(name, request.prompt, facts, image_YXZ, routes))
            return panels

    def settings(self, name: str) -> SampleSpec:
        """Gives a run's own settings of sampling."""
        return loaded.changed(Workdir(self.workdirs[name]).config(), self._changes).sample

    def _run(self, name: str) -> Run:
        if name not in self._runs:
            if not Workdir(self.workdirs[name]).has_begun():
                raise UserError("it has no checkpoint yet.")  # before another run makes room
            while len(self._runs) >= _LOADED:
                gone, _ = self._runs.popitem(last=False)
                self._programs.pop(gone, None)
            self._runs[name] = loaded.load(self.workdirs[name], ema=self._ema, changes=self._changes, say=self._say)
        self._runs.move_to_end(name)
        return self._runs[name]

    def _program(self, name: str, run: Run, sampling: Mapping[str, object]) -> _Program:
        """Finds or makes the program of some settings; keys that a run has no use for are left out."""
        unused = checks.unused(run.config)
        keys = {key: value for key, value in sampling.items() if f"sample.{key}" not in unused}
        generator = run.generator(None, **keys, batch_size=1)
        own = self._programs.setdefault(name, OrderedDict())
        key = tuple(sorted(keys.items()))
        if key not in own:
            while len(own) >= _PROGRAMS:
                own.popitem(last=False)
            own[key] = _Program(generator, specs.dit_spec(run.config))
        own.move_to_end(key)
        return own[key]
