"""A whole training run, put together from its parts: data, state, callbacks, and what it does on the way and at the end."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from ec_dit import config as config_lib
from ec_dit.config import RunConfig, specs
from ec_dit.core import lock, processes, stopping
from ec_dit.core.fingerprints import fingerprint
from ec_dit.core.tree import num_params
from ec_dit.data.dataset import Dataset
from ec_dit.data.loader import Loader, fixed_batches
from ec_dit.data.synthetic import SyntheticLoader
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.evaluators.registry import parse_all
from ec_dit.models import sizes
from ec_dit.nn.routing.rules import is_by_tokens
from ec_dit.runs import feed, starting
from ec_dit.runs.evaluation import Scorer, metrics
from ec_dit.runs.grid import SampleGrid
from ec_dit.runs.references import References
from ec_dit.runs.route_maps import RouteMaps
from ec_dit.runs.subjects import RunSubject
from ec_dit.runs.workdir import Workdir
from ec_dit.system import layout
from ec_dit.system import step as training_step
from ec_dit.system.model import System, make_config_mesh, make_system
from ec_dit.train import loop, trackers
from ec_dit.train.checkpoint import Checkpointer
from ec_dit.train.flops import peak_flops
from ec_dit.train.health import RouterHealth
from ec_dit.train.metrics import MetricWriter
from ec_dit.train.optimizer import make_schedule
from ec_dit.train.state import TrainState
from ec_dit.train.trace import TraceOnSignal
from ec_dit.train.trackers import Trackers


def run(config: RunConfig, path: str, say: Callable[[str], None]) -> str | None:
    """Trains to the config's last step, from the newest checkpoint of the workdir where there is one.

    SIGTERM to any process stops all of them after the same step, with a checkpoint of it.

    Args:
        config: validated.
        path: the workdir.
        say: prints a line for people.

    Returns:
        the fingerprint of the final parameters; None where SIGTERM came first.

    Raises:
        UserError: for everything a user can mend.
    """
    try:
        with stopping.at_once():
            data = _open_data(config, say)
        with stopping.StopSignal() as stop:
            return _run(config, data, path, say, stop)
    except stopping.Stopped:
        say("stopped by SIGTERM before the first step; the same command goes on from there")
        return None


def _open_data(config: RunConfig, say: Callable[[str], None]) -> Dataset | None:
    specs.check_batch(config, make_config_mesh(config))  # before a data set is prepared for nothing
    specs.sample_settings(config)
    data = feed.open_data(config, say)
    if data is not None and data.encoding is not None:
        specs.check_batch(config, make_config_mesh(config), data.shapes())
    return data


def _run(
    config: RunConfig, data: Dataset | None, path: str, say: Callable[[str], None], stop: stopping.StopSignal
) -> str | None:
    tokenizer = None
    if data is not None and data.tokenizer_path is not None:
        tokenizer = Tokenizer.load(data.tokenizer_path)
    if data is not None and tokenizer is not None and processes.is_first():
        feed.warn_of_cut_captions(data, tokenizer, config.text.length, say)
    system = make_system(config, tokenizer, encoding=None if data is None else data.encoding)
    workdir = Workdir(path)
    if config.train.init_from and not workdir.has_begun():
        Workdir(config.train.init_from).check_start(system)  # says what is wrong before anything is written
    with lock.held(workdir.path / ".lock", f"the workdir {workdir.path}", say) as held:
        workdir.claim(config, data)
        references = References(system, workdir, data, layout.for_sampling(system, layout.BESIDE_TRAINING))
        # What does not fit should say so before the training.
        subject = RunSubject(references, workdir.path / "eval" / "training", stop, replace=True)
        scorers = [Scorer(suite, subject, workdir.path, say) for suite in parse_all(config.eval.suites)]
        return _train(data, references, subject, scorers, held, say, stop)


def _train(
    data: Dataset | None,
    references: References,
    subject: RunSubject,
    scorers: Sequence[Scorer],
    held: lock.Lock,
    say: Callable[[str], None],
    stop: stopping.StopSignal,
) -> str | None:
    system, workdir = references.system, references.workdir
    config = system.config
    hosts = f" in {processes.count()} processes" if processes.count() > 1 else ""
    kind = jax.devices()[0].device_kind
    say(f"devices: {system.mesh.size} x {kind}{hosts}; mesh {dict(system.mesh.shape)}; {workdir.path}")

    tx = training_step.optimizer(system)
    abstract, shardings = training_step.abstract_state(system, tx)
    say(f"parameters: {num_params(abstract.params):,}")
    checkpointer = workdir.checkpointer(keep=config.checkpoint.keep, asynchronous=config.checkpoint.asynchronous)
    begin = starting.start(system, tx, (abstract, shardings), checkpointer, say)
    first_step = begin.step
    if first_step > config.train.steps:
        say(f"nothing to train: step {first_step} is past --config.train.steps={config.train.steps}")

    loader = feed.make_loader(system, data)
    with (
        jax.set_mesh(system.mesh),
        MetricWriter(str(workdir.path), first_step, processes.is_first(), _trackers(config, workdir, say)) as writer,
        TraceOnSignal(str(workdir.path / "trace"), config.log.trace_steps, say) as trace,
        _closing(checkpointer),
    ):
        progress, save = _callbacks(system, data, loader, writer, checkpointer, begin, say)
        actions = _actions(data, references, subject, scorers, begin, writer, progress, stop, say)
        batches = training_step.stream(system, loader.batches(first_step))
        step_fn, steps = (
            training_step.ScheduledStep(system, tx, shardings, first_step, begin.frozen),
            config.train.steps,
        )
        state, done, complete = loop.train(
            begin.state,
            step_fn,
            batches,
            first_step=first_step,
            steps=steps,
            callbacks=(progress, save, trace),
            actions=actions,
            checks=(checkpointer.check, writer.check, held.check),
            stop=stop,
        )
    if not complete:
        say(f"stopped by SIGTERM after step {done} of {steps}, which is saved; the same command goes on from there")
        return None
    return fingerprint(state.params)


def _trackers(config: RunConfig, workdir: Workdir, say: Callable[[str], None]) -> Trackers | None:
    """What the first process tells of the run elsewhere; what is missing for it ends all processes alike."""
    with processes.told_by_first():
        if not processes.is_first() or not config.log.trackers:
            return None
        return trackers.start(
            config.log.trackers,
            workdir.path,
            name=workdir.path.name or config.name,
            project=config.log.project,
            settings=config_lib.listed(config),
            say=say,
        )


@contextlib.contextmanager
def _closing(checkpointer: Checkpointer) -> Iterator[None]:
    """Waits for the save that is under way, also where the run fails meanwhile: its checkpoint is good."""
    try:
        yield
    except Exception:
        if processes.count() == 1:  # several would wait for one that is gone
            with contextlib.suppress(Exception):
                checkpointer.wait()
        raise
    checkpointer.close()


def _callbacks(
    system: System,
    data: Dataset | None,
    loader: Loader | SyntheticLoader,
    writer: MetricWriter,
    checkpointer: Checkpointer,
    begin: starting.Start,
    say: Callable[[str], None],
) -> tuple[loop.Progress, loop.SaveEvery]:
    config, last = system.config, system.config.train.steps

    def meta(done: int) -> dict[str, Any]:
        where: dict[str, Any] = {"examples_seen": done * config.train.batch_size, "seed": config.seed}
        where |= {"fingerprint": data.fingerprint if data else "synthetic"}
        return {"config": config_lib.to_tree(config), "data": where, **begin.noted}

    save = loop.SaveEvery(checkpointer, writer, config.checkpoint.every, meta)
    peak, origin = peak_flops(jax.devices()[0])
    say(f"peak: {peak / 1e12:.2f} TFLOP/s per device ({origin})")
    spec, tower = specs.dit_spec(config), specs.tower_spec(config, system.tokenizer)

    def flops(step: int) -> float:
        factor = specs.computed_factor(specs.with_capacity(config, specs.capacity_at(config, step)))
        tokens = specs.kept_tokens(config)
        image = sizes.train_flops_per_image(spec, tokens, config.text.length, factor, tower)
        return image * config.train.batch_size

    schedule = make_schedule(config.optimizer, last, config.optimizer.learning_rate)
    progress = loop.Progress(
        writer,
        say,
        every=config.log.every,
        must_fetch=save.due,
        total_steps=last,
        images_per_step=config.train.batch_size,
        flops_of=flops,
        peak_flops=peak * system.mesh.size,
        describe=lambda records: ", ".join(loader.record_ids(records)),
        last_good=lambda: _last_good(checkpointer),
        schedule=schedule,
        watch=RouterHealth(config.moe.num_experts, config.moe.score, by_tokens=is_by_tokens(config.moe.routing)),
    )
    return progress, save


def _actions(
    data: Dataset | None,
    references: References,
    subject: RunSubject,
    scorers: Sequence[Scorer],
    begin: starting.Start,
    writer: MetricWriter,
    progress: loop.Progress,
    stop: stopping.StopSignal,
    say: Callable[[str], None],
) -> list[loop.Every]:
    system, actions = references.system, list[loop.Every]()
    log, last = system.config.log, system.config.train.steps

    def add(every: int, act: Callable[[int, TrainState], None], figure: str) -> None:
        actions.append(loop.Every(every, last, progress, act, functools.partial(writer.recorded, figure)))

    if data is not None:
        loss_fn = functools.partial(training_step.make_validation(system), frozen=begin.frozen)
        validate = functools.partial(_validate, system, data, writer, stop, say, loss_fn)
        add(log.validate_every, validate, f"validation_loss/{data.splits[-1]}")  # all in one line
        if log.sample_every and (draw := SampleGrid.make(references, writer, stop, say)):
            add(log.sample_every, draw, SampleGrid.NAME)
            if log.maps and system.config.moe.routing != "dense":
                maps = RouteMaps(draw, log.maps, writer, stop)
                add(log.sample_every, maps, RouteMaps.NAME)
    for scorer in scorers:
        prefix = f"eval/{scorer.suite.label}"
        act = functools.partial(_score, scorer, subject, prefix, writer)
        add(scorer.suite.every or last, act, f"{prefix}/score")
    return actions


def _score(
    scorer: Scorer, subject: RunSubject, prefix: str, writer: MetricWriter, done: int, state: TrainState
) -> None:
    """Scores the moving average, or what the suite wants. Raises Stopped between two batches, where the run is told to stop."""
    ema = scorer.suite.ema
    now = subject.at(state.ema if ema else state.params, done, ema=ema)
    writer.scalars(done, metrics(scorer(now), prefix))


def _last_good(checkpointer: Checkpointer) -> str:
    checkpointer.wait()
    step = checkpointer.latest()
    return "There is no checkpoint yet." if step is None else f"Last good checkpoint: step {step}."


def _validate(
    system: System,
    data: Dataset,
    writer: MetricWriter,
    stop: stopping.StopSignal,
    say: Callable[[str], None],
    loss_fn: Callable[..., tuple[jax.Array, jax.Array]],
    done: int,
    state: TrainState,
) -> None:
    """Loss of the moving average with fixed noise on a fixed part of each split, the training split's included.

    Raises:
        Stopped: between two batches, where the run is told to stop.
    """
    config = system.config
    size = config.train.batch_size // config.train.accumulate
    values = {}
    for split in data.splits:
        total, count = 0.0, 0
        rows, most = feed.make_rows(system, data, split, augment=False), -(-config.log.validate_images // size)
        for batch in stop.between(fixed_batches(rows, batch_size=size, max_batches=most, share=system.share)):
            loss, images_seen = jax.device_get(loss_fn(state.ema, training_step.place(system, batch)))
            total, count = total + float(loss), count + int(images_seen)
        values[f"validation_loss/{split}"] = total / max(1, count)
    writer.scalars(done, values)
    say("  ".join([f"step {done}  validation loss", *(f"{k.partition('/')[2]} {v:.4f}" for k, v in values.items())]))
