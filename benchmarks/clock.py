"""Times of calls that are compared with each other: in turn, round by round, so that what else a machine does meets all alike."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in every round, the order turned round each time; none of them should have to compile any more."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        names = list(calls)
        for name in names if number % 2 else reversed(names):
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            seconds[name].append(time.perf_counter() - start)
    return seconds
