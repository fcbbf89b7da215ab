"""Losses of a run's held-out examples at fixed times."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ec_dit.data.batch import Batch
from ec_dit.data.loader import fixed_batches
from ec_dit.evaluators.base import Losses
from ec_dit.nn.routing.spec import Routed
from ec_dit.runs import feed
from ec_dit.runs.references import References
from ec_dit.system import step as training_step
from ec_dit.system.model import System

Between = Callable[[Iterator[Batch]], Iterator[Batch]]
MakeLosses = Callable[[Any], Losses]


def make(system: System, references: References, between: Between, params: Any) -> Losses:
    """Makes what computes losses of parameters.

    Args:
        between: raises between two batches, where a run is told to stop.
    """

    def losses(split: str, count: int, times: Sequence[float], routed: Routed = "sampling") -> np.ndarray:
        config, data = system.config, references.data
        program = training_step.make_losses(system, tuple(times), routed)
        size = config.train.batch_size // config.train.accumulate
        rows = feed.make_rows(system, data, split, augment=False)
        batches = fixed_batches(rows, batch_size=size, max_batches=-(-count // size), share=system.share)
        found: dict[int, float] = {}
        for batch in between(batches):
            position_B, loss_B = jax.device_get(program(params, training_step.place(system, batch)))
            found |= {int(position): float(loss) for position, loss in zip(position_B, loss_B, strict=True)}
        return np.array([found[i] for i in range(min(count, len(found) - (-1 in found)))])

    return losses
