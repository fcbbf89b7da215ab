"""The training loop: it knows a step function, batches and callbacks, and no model.

Callbacks run after every step, in order, and decide by the step number whether to act. `Progress` comes first: it checks
that losses are finite before anything is saved. Actions come after them, as they take long: what a kill or SIGTERM cuts
short of them is made up for by the run that goes on from that step.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ec_dit.core.errors import UserError
from ec_dit.core.stopping import Stopped
from ec_dit.flow.loss import LEVELS
from ec_dit.train.checkpoint import Checkpointer
from ec_dit.train.metrics import MetricWriter
from ec_dit.train.state import TrainState
from ec_dit.train.step import MAXIMA, StepFn

# (steps done, state, metrics, batch tag, whether the loop ends here)
Callback = Callable[[int, TrainState, Mapping[str, jax.Array], Any, bool], None]


def train(
    state: TrainState,
    step_fn: StepFn,
    batches: Iterator[tuple[Any, Any]],
    *,
    first_step: int,
    steps: int,
    callbacks: Sequence[Callback],
    actions: Sequence["Every"] = (),
    checks: Sequence[Callable[[], None]] = (),
    stop: Callable[[], bool] | None = None,
) -> tuple[TrainState, int, bool]:
    """Runs steps first_step ... steps - 1.

    Args:
        state: at `first_step`; donated to the first step.
        batches: yields (batch on the devices, tag); the tag goes to the callbacks untouched.
        actions: called after the callbacks of every step; those of `first_step` that are missing are made up for before all.
        checks: called after every step; each raises what a helper of the run, a thread or another process, has died of.
        stop: whether to end before `steps`; asked after every step, before the callbacks.

    Returns:
        (state, number of steps it has seen, whether all steps are done and all actions that were due).
    """
    if not _act([action for action in actions if action.is_missing(first_step)], first_step, state):
        return state, first_step, False
    for done in range(first_step + 1, steps + 1):
        batch, tag = next(batches)
        state, metrics = step_fn(state, batch)
        for check in checks:
            check()
        stopped = stop is not None and stop()
        for callback in callbacks:
            callback(done, state, metrics, tag, stopped or done == steps)
        due = [action for action in actions if action.is_due(done)]
        if stopped:
            return state, done, done == steps and not due
        if not _act(due, done, state):
            for callback in callbacks if done < steps else ():
                callback(done, state, metrics, tag, True)  # it ends here, which they could not know
            return state, done, False
    return state, max(first_step, steps), True


def _act(actions: Iterable["Every"], done: int, state: TrainState) -> bool:
    """Whether all of them came to their end; False where the run was told to stop."""
    try:
        for action in actions:
            action(done, state)
    except Stopped:
        return False
    return True


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite."""


class Progress:
    """Fetches the metrics of finished steps, stops on a non-finite loss, prints one line and writes what it printed.

    Metrics are fetched in groups of `every` steps, so that the host never waits for a single step.

    Args:
        say: prints a line for people.
        every: steps between lines.
        must_fetch: steps at which metrics are fetched in any case (before a checkpoint is written).
        images_per_step, flops_of, peak_flops: for images/s and MFU; FLOPs by the number of a step, from 0.
        describe: names the records of a batch tag, for the message of a non-finite loss.
        last_good: describes the checkpoint to go back to.
        schedule: learning rate at a step.
        watch: gives lines to say of the values of a line, which it is told by name.
    """

    def __init__(
        self,
        writer: MetricWriter,
        say: Callable[[str], None],
        *,
        every: int,
        must_fetch: Callable[[int], bool],
        total_steps: int,
        images_per_step: int,
        flops_of: Callable[[int], float],
        peak_flops: float,
        describe: Callable[[Any], str],
        last_good: Callable[[], str],
        schedule: Callable[[int], Any],
        watch: Callable[[Mapping[str, float]], Sequence[str]] = lambda _: (),
    ):
        self._writer, self._watch = writer, watch
        self._say = say
        self._every = every
        self._must_fetch = must_fetch
        self._total_steps = total_steps
        self._images_per_step = images_per_step
        self._flops_of = flops_of
        self._peak_flops = peak_flops
        self._describe = describe
        self._last_good = last_good
        self._schedule = schedule
        self._seen = 0
        self._pending: deque[tuple[int, Mapping[str, jax.Array], Any]] = deque()
        self._window: list[dict[str, np.ndarray]] = []
        self._since: tuple[float, int] | None = None  # (clock, step) of the last line

    def __call__(self, done: int, state: TrainState, metrics: Mapping[str, jax.Array], tag: Any, last: bool) -> None:
        """Collects the metrics of a step, once if it is called twice; see `Callback`."""
        if done != self._seen:
            self._pending.append((done, metrics, tag))
            self._seen = done
        due = done % self._every == 0 or last
        if due or self._must_fetch(done) or self._since is None:
            self._fetch()
        if self._since is None:  # the first step compiled: the clock starts after it
            self._since = (time.perf_counter(), done)
        if due and self._window:
            self._line(done)

    def _fetch(self) -> None:
        while self._pending:
            step, metrics, tag = self._pending.popleft()
            values = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
            loss, *norms = (float(values[name]) for name in ("loss", "grad_norm", "param_norm"))
            if not all(map(math.isfinite, (loss, *norms))):  # the parameters' norm tells of the update itself
                raise NonFiniteLossError(
                    f"loss {loss}, gradient norm {norms[0]}, parameter norm {norms[1]} at step {step}. Records of that "
                    f"batch: {self._describe(tag)}. {self._last_good()} Look at those records, or start in another "
                    f"--workdir with a lower --config.optimizer.learning_rate."
                )
            self._window.append(values)

    def _line(self, done: int) -> None:
        values = _average(self._window)
        self._window.clear()
        values["learning_rate"] = float(self._schedule(done - 1))
        clock, step = self._since or (0.0, done)
        now = time.perf_counter()
        line = f"step {done}/{self._total_steps}  loss {values['loss']:.4f}"
        if done > step:
            rate = (done - step) / (now - clock)
            values["images_per_second"] = rate * self._images_per_step
            values["mfu"] = rate * self._flops_of(done - 1) / self._peak_flops
            eta = (self._total_steps - done) / rate
            line += f"  {values['images_per_second']:.0f} images/s  MFU {100 * values['mfu']:.1f} %  ETA {_clock(eta)}"
        self._say(line)
        self._writer.scalars(done, values)
        for warning in self._watch(values):
            self._say(warning)
        self._since = (time.perf_counter(), done)

    def pause(self) -> "_Pause":
        """A context in which the clock of images/s and ETA stands still (validation, sampling)."""
        return _Pause(self)

    def skip_clock(self, seconds: float) -> None:
        """Leaves `seconds` out of the next line's rates."""
        if self._since is not None:
            self._since = (self._since[0] + seconds, self._since[1])


class _Pause:
    def __init__(self, progress: Progress):
        self._progress = progress

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self._progress.skip_clock(time.perf_counter() - self._start)


class SaveEvery:
    """Saves a checkpoint every so many steps and where the loop ends, with what `meta` says of that step.

    Its metrics come first: a run that goes on from there does not repeat them.
    """

    def __init__(
        self, checkpointer: Checkpointer, writer: MetricWriter, every: int, meta: Callable[[int], Mapping[str, Any]]
    ):
        self._checkpointer = checkpointer
        self._writer = writer
        self._every = every
        self._meta = meta

    def due(self, done: int) -> bool:
        """Whether a checkpoint follows this step wherever the loop ends."""
        return done % self._every == 0

    def __call__(self, done: int, state: TrainState, metrics: Mapping[str, jax.Array], tag: Any, last: bool) -> None:
        """Saves where it is time."""
        if self.due(done) or last:
            self._writer.sync()
            self._checkpointer.save(done, state, self._meta(done))


class Every:
    """An `action(steps done, state)` for every so many steps and the last of all; 0 = never.

    Args:
        recorded: whether what the action leaves is there already, of the step from which the run goes on.
    """

    def __init__(
        self,
        every: int,
        total_steps: int,
        progress: Progress,
        action: Callable[[int, TrainState], None],
        recorded: Callable[[], bool] = lambda: True,
    ):
        self._every = every
        self._total_steps = total_steps
        self._progress = progress
        self._action = action
        self._recorded = recorded

    def is_due(self, done: int) -> bool:
        """Whether it belongs to that step."""
        return bool(self._every) and (done % self._every == 0 or done >= self._total_steps)

    def is_missing(self, first_step: int) -> bool:
        """Whether the run before, which ended at `first_step`, did not come to it."""
        return first_step > 0 and self.is_due(first_step) and not self._recorded()

    def __call__(self, done: int, state: TrainState) -> None:
        """Acts. Raises Stopped where the run is told to stop, which cuts the action short."""
        with self._progress.pause():
            self._action(done, state)


def _average(window: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Means over steps; losses by noise level as ratio of sums; router statistics by sparse block."""
    stacked = {name: np.stack([values[name] for values in window]) for name in window[0]}
    none = np.zeros((1, LEVELS))  # an objective need not tell of levels
    level_sum, level_count = (stacked.pop(name, none).sum(0) for name in ("level_sum", "level_count"))
    means: dict[str, float] = {}
    for name, values in stacked.items():
        if values.ndim == 1:
            means[name] = float(values.mean())
            continue
        for block, value in enumerate(values.max(0) if name in MAXIMA else values.mean(0)):
            means[f"{name}/{block}"] = float(value)
    for level in range(LEVELS):
        if level_count[level]:
            name = f"loss_t/{level / LEVELS:g}-{(level + 1) / LEVELS:g}"
            means[name] = float(level_sum[level] / level_count[level])
    return means


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
