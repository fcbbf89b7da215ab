"""A local folder whose files are copied to another place now and then: objects in a bucket cannot be appended to."""

import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from etils import epath

from ec_dit.core import paths
from ec_dit.core.errors import TryAgain
from ec_dit.core.terminal import printable

EVERY_SECONDS = 30.0
_LAST_TRIES = 5  # at the end
_PAUSE_SECONDS = 3.0  # between them


class Mirror:
    """Copies changed files of `local` to `remote`, in the background, when asked to, and at the end.

    A copy that fails is tried again next time; a process that is killed loses what was written since the last.

    Raises:
        TryAgain: at the end, if a file cannot be copied even then.
    """

    def __init__(self, local: Path, remote: epath.Path, every_seconds: float = EVERY_SECONDS):
        self._local, self._remote, self._every = local, remote, every_seconds
        self._copied: dict[Path, tuple[int, int]] = {}
        self._busy = threading.Lock()
        self._end = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def copy(self) -> list[str]:
        """Copies what has changed; returns what failed, and why, and says so."""
        with self._busy:
            failed = []
            found = self._local.rglob("*")
            for path in sorted(path for path in found if path.suffix != ".tmp" and path.is_file()):  # which come and go
                stat = path.stat()
                if self._copied.get(path) == (stat.st_mtime_ns, stat.st_size):
                    continue
                try:
                    paths.copy_file(path, self._remote / path.relative_to(self._local).as_posix())
                    self._copied[path] = (stat.st_mtime_ns, stat.st_size)
                except Exception as error:  # noqa: BLE001 - clients of buckets raise anything; training goes on without
                    failed.append(f"{path.name} was not copied to {self._remote}: {printable(str(error))}")
                    print(f"warning: {failed[-1]}", file=sys.stderr, flush=True)
            return failed

    def check(self) -> None:
        """Raises what ended the thread that copies, if something did."""
        if self._failure is not None:
            raise RuntimeError(f"files are no longer copied to {self._remote}: {self._failure!r}") from self._failure

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        for left in reversed(range(_LAST_TRIES)):
            if not (failed := self.copy()):
                return
            if left:
                time.sleep(_PAUSE_SECONDS)
        if error is None:
            raise TryAgain(f"{failed[0]}. The run itself is saved; metrics since the last copy are lost.")

    def _work(self) -> None:
        try:
            while not self._end.wait(self._every):
                self.copy()
        except BaseException as failure:  # noqa: BLE001 - whatever it is, `check` raises it where somebody listens
            self._failure = failure
