"""A local folder whose files are copied to another place now and then: objects in a bucket cannot be appended to."""

import sys
import threading
from pathlib import Path
from types import TracebackType

from etils import epath

from ec_dit.core import paths

EVERY_SECONDS = 30.0


class Mirror:
    """Copies changed files of `local` to `remote`, in the background and at the end.

    A copy that fails is tried again next time; a process that is killed loses what was written since the last.
    """

    def __init__(self, local: Path, remote: epath.Path, every_seconds: float = EVERY_SECONDS):
        self._local, self._remote, self._every = local, remote, every_seconds
        self._copied: dict[Path, tuple[int, int]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._copy()

    def _work(self) -> None:
        while not self._end.wait(self._every):
            self._copy()

    def _copy(self) -> None:
        for path in sorted(path for path in self._local.rglob("*") if path.is_file()):
            stat = path.stat()
            if self._copied.get(path) == (stat.st_mtime_ns, stat.st_size):
                continue
            try:
                paths.copy_file(path, self._remote / path.relative_to(self._local).as_posix())
                self._copied[path] = (stat.st_mtime_ns, stat.st_size)
            except Exception as error:  # noqa: BLE001 - clients of buckets raise anything; training goes on without
                print(f"warning: {path.name} was not copied to {self._remote}: {error}", file=sys.stderr, flush=True)
