"""Capacities of sampling that follow what training spent at each noise level, at no more compute than the fixed one."""

from typing import Any

import jax
import numpy as np

from ec_dit.core.errors import UserError
from ec_dit.models.spec import DiTSpec
from ec_dit.nn.routing import record
from ec_dit.sampling.settings import SampleSettings

PROGRAMS = 4  # different capacities at most: the network is compiled once for each


def of(settings: SampleSettings, params: Any, spec: DiTSpec, tokens: int) -> tuple[float, ...]:
    """Gives `SampleSettings.factors` of a model's parameters; () where capacities are fixed.

    Args:
        tokens: S of an image.

    Raises:
        UserError: nothing was recorded yet.
    """
    if settings.capacity == "fixed":
        return ()
    time_U = settings.integrator.evaluations(settings.grid.times)
    table_LQ = np.asarray(jax.device_get(record.tables(params)))
    return factors(table_LQ, time_U, settings.routing.capacity_factor, tokens, spec.sparse.num_experts)


def factors(table_LQ: np.ndarray, time_U: np.ndarray, fixed: float, tokens: int, experts: int) -> tuple[float, ...]:
    """Gives the capacity factor of each noise level, (Q,).

    Experts per token are averaged over the blocks, scaled down where a sampler's evaluations would need more than the fixed
    factor on average, gathered into a few different values, and rounded down to whole slots.

    Args:
        table_LQ: experts per token as training recorded them (`nn/routing/record.py`); 0 where it saw no image.
        time_U: times of the sampler's evaluations.
        fixed: the factor that is not to be passed on average.
        tokens: S of an image.
        experts: E.

    Raises:
        UserError: nothing was recorded yet.
    """
    load_Q = filled(table_LQ)
    level_U = np.asarray(record.level(np.asarray(time_U, np.float32)))
    visits_Q = np.bincount(level_U, minlength=record.NOISE_LEVELS)
    load_Q = load_Q * min(1.0, fixed / float(load_Q[level_U].mean()))
    seen = np.flatnonzero(visits_Q)
    edges = np.linspace(load_Q[seen].min(), load_Q[seen].max(), PROGRAMS + 1)[1:-1]
    part_Q = np.digitize(load_Q, edges, right=True)
    slots_Q = np.empty(record.NOISE_LEVELS)
    for part in set(part_Q):
        here = part_Q == part
        weights = visits_Q[here] if visits_Q[here].any() else None
        mean = float(np.average(load_Q[here], weights=weights))
        slots_Q[here] = max(1, int(tokens * mean / experts + 1e-6))
    return tuple(float(min(slots, tokens) * experts / tokens) for slots in slots_Q)


def filled(table_LQ: np.ndarray) -> np.ndarray:
    """Gives the mean over blocks, float64 (Q,); levels that training never saw take the nearest ones' figures.

    Raises:
        UserError: it saw none.
    """
    table_LQ = np.asarray(table_LQ, np.float64)
    known = np.flatnonzero((table_LQ > 0).all(0))
    if not len(known):
        raise UserError("sample.capacity=matched follows what training recorded, and this run has not trained a step.")
    return np.interp(np.arange(table_LQ.shape[1]), known, table_LQ[:, known].mean(0))
