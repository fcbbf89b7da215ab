"""A profile of a few training steps, taken whenever the process is sent SIGUSR1 (kill -USR1 PID)."""

import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from ec_dit.core import paths
from ec_dit.train.state import TrainState


class TraceOnSignal:
    """Within this context, SIGUSR1 makes the next `steps` steps leave a trace in `folder`, for XProf or Perfetto.

    A callback of the loop. Each process that is signalled leaves the trace of its own devices.

    Args:
        folder: local or gs:// path.
        say: prints a line for people.
    """

    def __init__(self, folder: str, steps: int, say: Callable[[str], None]):
        self._folder, self._steps, self._say = paths.at(folder), steps, say
        self._wanted = False
        self._local: tempfile.TemporaryDirectory[str] | None = None
        self._end = 0

    def __call__(self, done: int, state: TrainState, metrics: Mapping[str, jax.Array], tag: Any, last: bool) -> None:
        """Begins or ends a trace, where it is time."""
        if self._local is not None and (last or done >= self._end):
            jax.block_until_ready(state)
            self._finish()
        elif self._wanted and self._local is None and not last:
            self._wanted = False
            jax.block_until_ready(state)  # earlier steps do not count
            self._begin(done)

    def _begin(self, done: int) -> None:
        try:
            local = tempfile.TemporaryDirectory()
            try:
                jax.profiler.start_trace(local.name)
            except BaseException:
                local.cleanup()
                raise
        except Exception as error:  # noqa: BLE001 - as in _finish
            self._say(f"warning: no trace was begun: {error}")
            return
        self._local, self._end = local, done + self._steps
        self._say(f"tracing steps {done + 1} to {self._end}")

    def _finish(self) -> None:
        assert self._local is not None
        local, self._local = self._local, None
        try:
            with local:
                jax.profiler.stop_trace()
                paths.copy_files(Path(local.name), self._folder)
            self._say(f"trace written: xprof --logdir={self._folder}")
        except Exception as error:  # noqa: BLE001 - profilers and buckets raise anything; training goes on without
            self._say(f"warning: the trace was not written: {error}")

    def __enter__(self) -> "TraceOnSignal":
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
        if self._local is not None:  # the run fails in the middle of a trace
            self._finish()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._wanted = True
