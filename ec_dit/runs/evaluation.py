"""Runs an evaluation suite on a model and leaves its figures and pictures in the workdir."""

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ec_dit.config import specs
from ec_dit.core import processes
from ec_dit.core.errors import UserError
from ec_dit.core.stopping import StopSignal
from ec_dit.core.terminal import Progress
from ec_dit.data import images
from ec_dit.evaluators.base import Evaluation, Evaluator
from ec_dit.evaluators.shapes import ShapesEvaluator
from ec_dit.preparation.drawing.shapes_scene import ShapesOptions
from ec_dit.runs.workdir import Workdir
from ec_dit.sampling.settings import SampleSettings
from ec_dit.system.model import System
from ec_dit.system.painter import Painter

SUITES = ("shapes",)


def run(
    suite: str,
    system: System,
    params: Any,
    step: int,
    workdir: Workdir,
    say: Callable[[str], None],
    *,
    seed: int = 0,
    novel: bool = False,
    ema: bool = True,
    stop: StopSignal | None = None,
) -> Evaluation:
    """Generates, scores, prints the table, writes eval_<suite>.json and eval_<suite>.png.

    Raises:
        Stopped: between two batches, where `stop` says so.
        UserError: for an unknown suite, or data that it does not fit.
    """
    evaluator = make_evaluator(suite, system, workdir, novel)
    settings = specs.sample_settings(system.config)
    generator = Painter(system).generator(settings)
    say(
        f"suite {suite}: step {step}, {settings.sampler}, {settings.steps} steps, guidance {settings.guidance:g}, "
        f"NFE {settings.evaluations}"
    )

    def generate(prompts: Sequence[str], indices: Sequence[int]) -> Iterator[tuple[slice, np.ndarray]]:
        batches = generator.batches(params, prompts, indices, seed)
        return batches if stop is None else stop.between(batches)

    with Progress(f"suite {suite}", None, "images", shown=processes.is_first()) as progress:
        outcome = evaluator.run(generate, progress.reach)
    name = suite + ("_novel" if novel else "")
    figures = dict(outcome.figures) | {
        "step": step,
        "seed": seed,
        "weights": "ema" if ema else "params",
        "images_not_finite": generator.broken,
        **describe(system, settings),
    }
    picture = workdir.path / f"eval_{name}.png"
    if processes.is_first():
        workdir.write_eval(name, figures)
        picture.write_bytes(images.encode_png(outcome.sheet))
    say(outcome.table)
    if generator.warning:
        say(generator.warning)
    say(f"contact sheet: {picture}")
    return outcome


def make_evaluator(suite: str, system: System, workdir: Workdir, novel: bool = False) -> Evaluator:
    """The suite by its name, with the prompts that fit the run's data.

    Raises:
        UserError: for an unknown suite, or data that it does not fit.
    """
    if suite not in SUITES:
        raise UserError(f"there is no suite '{suite}'; choose one of {', '.join(SUITES)}.")
    report = workdir.data_report()
    if report.get("source") != "shapes":
        raise UserError(
            f"suite shapes scores models trained on the shapes data, not on {report.get('source', 'synthetic')}."
        )
    options = workdir.data_options(ShapesOptions)
    return ShapesEvaluator(options, system.config.eval.images_per_task, novel)


def describe(system: System, settings: SampleSettings) -> dict[str, Any]:
    """Every setting an image depends on, and the versions and devices that made it, for the files beside it."""
    return {
        "dtype": str(system.dtype),
        "path": system.config.flow.path,
        "prediction": settings.prediction,
        "devices": f"{system.mesh.size} x {jax.devices()[0].device_kind}",
        "mesh": dict(system.mesh.shape),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax")},
        "sampler": settings.sampler,
        "steps": settings.steps,
        "nfe": settings.evaluations,
        "guidance": settings.guidance,
        "guidance_interval": list(settings.guidance_interval),
        "time_shift": settings.time_shift,
        "spacing": settings.spacing,
        "batch_size": settings.batch_size,
        "capacity_factor": settings.routing.capacity_factor,
        "group_size": settings.routing.group_size,
        "paired_group_size": settings.paired_routing.group_size,
    }
