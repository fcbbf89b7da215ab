"""What goes on beside the thread that trains: the end of a save, and the event loops in which Orbax reads."""

import asyncio
import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator


class Task(threading.Thread):
    """Runs `work` in the background and keeps what it raised."""

    def __init__(self, work: Callable[[], None]):
        super().__init__(name="end of a save")
        self._work = work
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Does the work."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised where somebody asks
            self._error = error

    def result(self) -> None:
        """Waits for the end, and raises what the work raised."""
        self.join()
        if self._error is not None:
            raise self._error


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that is closed only when its tasks have ended."""

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _PatientLoops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = _PatientLoop()
        loop.set_exception_handler(lambda *_: None)  # of several errors the first is raised, and is enough
        return loop


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Within it, Orbax's reading of many arrays prints nothing when one fails: else the others end in tracebacks on stderr."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_PatientLoops())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        asyncio.set_event_loop_policy(before)
