"""SIGTERM: a run stops after the step it is at, all of its processes after the same one; what has nothing to save, at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from ec_dit.core import processes

Item = TypeVar("Item")


class Stopped(BaseException):
    """SIGTERM came. Like KeyboardInterrupt no Exception, so that nobody takes it for a failure of theirs."""


class StopSignal:
    """Whether SIGTERM has reached any process of the run, answered alike in all of them; also at a second signal.

    A context, within which SIGTERM ends nothing by itself. All processes enter it, and ask equally often.
    """

    def __init__(self) -> None:
        self._received, self._asked = False, 0
        self._together: Any = None

    def __call__(self) -> bool:
        """Whether all processes stop here; to be asked by each after every step."""
        self._asked += 1
        if self._together is not None:
            self._received = self._received or self._together.reached_sync_point(self._asked)
        return self._received

    def between(self, items: Iterable[Item]) -> Iterator[Item]:
        """Passes the items of a long work on, equally many in all processes.

        Raises:
            Stopped: before the next one, where all processes stop.
        """
        iterator = iter(items)
        while not self():
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item
        raise Stopped

    def __enter__(self) -> "StopSignal":
        if processes.joined():
            # As jax.experimental.multihost_utils.reached_preemption_sync_point does it, with a counter of our own.
            from jax._src import distributed
            from jax._src.lib import _jax

            self._together = _jax.create_preemption_sync_manager()
            self._together.initialize(distributed.global_state.client)
        elif threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._together is not None:
            self._together.shutdown()
        if threading.current_thread() is threading.main_thread():
            # A run that stops is gone in a moment: no further signal may change its exit code.
            after = signal.SIG_DFL if processes.joined() else self._before
            signal.signal(signal.SIGTERM, signal.SIG_IGN if processes.joined() and self._received else after)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Within it SIGTERM ends what has nothing to save: one process by `Stopped`, of several the signalled ones with STOPPED.

    Several wait for each other where no exception reaches them, and one that is gone is missed by its heartbeat.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with contextlib.ExitStack() as stack:
        if processes.joined():
            stack.enter_context(_ending_all())
        before = signal.signal(signal.SIGTERM, _raise_stopped)
        stack.callback(signal.signal, signal.SIGTERM, before)
        yield


def _raise_stopped(*_: object) -> None:
    raise Stopped


@contextlib.contextmanager
def _ending_all() -> Iterator[None]:
    """A thread that ends the process at SIGTERM, also while the main thread waits for other processes."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM:
                sys.stdout.flush()
                print(f"stopped by SIGTERM before the first step{processes.label()}", file=sys.stderr, flush=True)
                os._exit(processes.STOPPED)
        os.close(reading)

    thread = threading.Thread(target=listen, daemon=True)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join()
