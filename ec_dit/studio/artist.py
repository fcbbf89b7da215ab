"""Draws pictures of several runs on the same noise, one request after another, and says how far it is."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ec_dit.config import specs
from ec_dit.core.errors import UserError
from ec_dit.runs import loaded
from ec_dit.runs.loaded import Run
from ec_dit.sampling.generator import Generator, image_noise, sample, telling
from ec_dit.sampling.routes import RouteTracer
from ec_dit.studio.viewer import Panel

MOST_LETTERS, MOST_STEPS, MOST_PICTURES, MOST_GUIDANCE = 1000, 250, 4, 30.0
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


class _Program:
    """What draws one picture of a run by some settings, with routes where it has experts."""

    def __init__(self, generator: Generator):
        self._generator = generator
        self._heard: Callable[[], None] = lambda: None
        settings = generator.settings
        self.evaluations = int(settings.integrator.evaluations(settings.grid.times).size)
        self._tracer: RouteTracer | None = None
        if settings.routing.routing == "dense":
            watch = telling(self._tell)
            self._sample = generator.compile(functools.partial(sample, watch=watch))
        else:
            self._tracer = RouteTracer(generator, tell=self._tell)

    def draw(self, run: Run, request: Request, index: int, heard: Callable[[], None]) -> Panel:
        """Draws picture `index` of a request; `heard` is called at every evaluation."""
        self._heard, routes = heard, None
        if self._tracer is not None:
            routes = self._tracer(run.params, request.prompt, index, request.seed)
            image_YXZ = routes.image_YXZ
        else:
            noise = image_noise(request.seed, request.prompt, index, self._generator.shape_YXZ)
            x_BYXZ = self._sample(run.params, noise[None], [request.prompt])
            image_YXZ = self._generator.decode(np.asarray(x_BYXZ))[0][0]
        return Panel("", request.prompt, {}, image_YXZ, routes)

    def _tell(self, _: Any) -> None:
        self._heard()


class Artist:
    """Loads runs when they are first asked for, and draws for one request at a time.

    Args:
        workdirs: folders of runs, by the names that requests give.
        ema: the moving average of the parameters.
        say: prints a line for whoever started the page.
    """

    def __init__(self, workdirs: Mapping[str, str], *, ema: bool = True, say: Callable[[str], None]):
        self.workdirs, self._ema, self._say = dict(workdirs), ema, say
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
            runs = {name: self._run(name) for name in request.runs}
            programs = {name: self._program(name, run, request.sampling) for name, run in runs.items()}
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
                    if request.stopped.is_set():
                        raise StoppedError
                    drawn = programs[name].draw(run, request, index, heard)
                    facts = {
                        "seed": f"{request.seed}",
                        "picture": f"{index + 1} of {request.num}",
                        "step": f"{run.step:,}",
                    }
                    facts |= {key: f"{value}" for key, value in request.sampling.items()}
                    panels.append(Panel(name, drawn.prompt, facts, drawn.image_YXZ, drawn.routes))
            return panels

    def _run(self, name: str) -> Run:
        if name not in self._runs:
            while len(self._runs) >= _LOADED:
                gone, _ = self._runs.popitem(last=False)
                self._programs.pop(gone, None)
            self._runs[name] = loaded.load(self.workdirs[name], ema=self._ema, say=self._say)
        self._runs.move_to_end(name)
        return self._runs[name]

    def _program(self, name: str, run: Run, sampling: Mapping[str, object]) -> _Program:
        """Finds or makes the program of some settings; keys that a run has no use for are left out."""
        keys = {key: value for key, value in sampling.items() if _is_used(run, key)}
        generator = run.generator(None, **keys, batch_size=1)
        own = self._programs.setdefault(name, OrderedDict())
        key = tuple(sorted(keys.items()))
        if key not in own:
            while len(own) >= _PROGRAMS:
                own.popitem(last=False)
            own[key] = _Program(generator)
        own.move_to_end(key)
        return own[key]


def _is_used(run: Run, key: str) -> bool:
    """Tells whether a key of the `sample` section does something in a run: those of experts do not in a dense one."""
    return run.config.moe.routing != "dense" or key not in EXPERTS


EXPERTS = ("capacity", "capacity_factor", "group_size", "room")


def defaults(config: Any) -> dict[str, Any]:
    """Gives a run's own settings of what the page lets one change."""
    own = config.sample
    return {name: getattr(own, name) for name in ("steps", "guidance", *EXPERTS)} | {"pixels": specs.square(config)}
