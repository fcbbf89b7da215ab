"""Threads that work ahead of their consumer: as many items as a window holds, given on in their order."""

import collections
import contextlib
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 8  # that read pictures
CORES = min(
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 32
)  # to compute on

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def futures(
    pool: ThreadPoolExecutor,
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    window: int,
    *,
    size: Callable[[_Item], int] = lambda _: 0,
    most: float = math.inf,
) -> Generator[tuple[_Item, Future[_Result]], None, None]:
    """Yields the items in their order, each with what will be `function(item)`; what was begun in vain is cancelled.

    Args:
        pool: the threads.
        items: taken in the caller's own thread.
        window: so many are under way at a time, the next to be given on among them.
        size: of an item, such as its bytes.
        most: what the sizes of those under way may sum up to, but for the last taken.
    """
    waiting: collections.deque[tuple[_Item, Future[_Result]]] = collections.deque()
    held = 0

    def first() -> tuple[_Item, Future[_Result]]:
        nonlocal held
        held -= size(waiting[0][0])
        return waiting.popleft()

    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            held += size(item)
            while len(waiting) >= window or (held > most and waiting):
                yield first()
        while waiting:
            yield first()
    finally:
        for _, future in waiting:
            future.cancel()


def results(
    pool: ThreadPoolExecutor,
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    window: int,
    *,
    size: Callable[[_Item], int] = lambda _: 0,
    most: float = math.inf,
) -> Iterator[_Result]:
    """Yields `function(item)` of the items, in their order; arguments as of `futures`.

    Raises:
        Exception: what `function` raises of an item, in its turn; what was begun behind it is cancelled.
    """
    with contextlib.closing(futures(pool, function, items, window, size=size, most=most)) as pairs:
        for _, future in pairs:
            yield future.result()
