"""One writer at a time: a lock on a folder, whose second holder-to-be is told who has it, or waits.

On a disk the kernel keeps it, and drops it with the process that holds it, however that ends. Buckets have no such thing: there
the lock is an object that is created only where there is none, and that its holder writes again every few seconds; one that
stays as it is belongs to a process that is gone, and is taken over. Clocks of machines are never compared. A file or an object
that is left behind blocks nobody.
"""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath
from etils.epath import backend

from ec_dit.core import paths, processes
from ec_dit.core.errors import UserError
from ec_dit.core.terminal import printable

RENEW_SECONDS = 10.0  # between two writes of the object of a lock in a bucket
STALE_SECONDS = 60.0  # without one, after which its holder counts as dead
_POLL_SECONDS = 0.5
_HOLDER = {"host", "pid", "since", "command"}  # what every lock tells
_open: set[int] = set()  # descriptors of held locks


def _close_in_child() -> None:
    """A process that was forked would keep the lock of one that died."""
    while _open:
        os.close(_open.pop())


os.register_at_fork(after_in_child=_close_in_child)


class Lock:
    """A lock that is held."""

    def check(self) -> None:
        """To be called now and then by who relies on it.

        Raises:
            UserError: when another process has taken it over.
        """


@contextlib.contextmanager
def held(path: epath.Path, what: str, say: Callable[[str], None], *, wait: bool = False) -> Iterator[Lock]:
    """Holds the lock at `path` within the context; of several processes, the first holds it for all.

    All processes enter it. What only reads needs no lock.

    Args:
        path: of a file or object that nothing else uses; its folder is made, and it is gone afterwards.
        what: is locked, for messages, such as 'the workdir runs/a'.
        say: prints a line for people, where there is something to wait for.
        wait: until the lock is free, instead of an error.

    Raises:
        UserError: in all processes, naming who holds it, or the file of somebody else's that is in its place.
    """
    with contextlib.ExitStack() as stack:
        lock = Lock()
        with processes.told_by_first():
            if processes.is_first():
                kind = _in_bucket if paths.is_remote(path) else _on_disk
                lock = stack.enter_context(kind(path, what, say, wait))
        yield lock


@contextlib.contextmanager
def _on_disk(path: epath.Path, what: str, say: Callable[[str], None], wait: bool) -> Iterator[Lock]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, told = _try(path, say), False
        while handle is None:
            holder = _describe(_read(path))
            if not wait:
                raise _in_use(what, holder)
            if not told:
                say(f"{what} is in use by {holder}: waiting until it is free")
                told = True
            time.sleep(_POLL_SECONDS)
            handle = _try(path, say)
    except PermissionError as error:
        raise UserError(f"cannot lock {what}: {error.strerror}: {error.filename}.") from error
    try:
        _check_ours(path, _read(path))
    except UserError:
        os.close(handle)
        raise
    _open.add(handle)
    try:
        os.ftruncate(handle, 0)  # first: killed between the two, a process leaves an empty file and no mixture
        os.pwrite(handle, json.dumps(_myself()).encode(), 0)
        yield Lock()
    finally:
        path.unlink(missing_ok=True)  # still held: who has opened it by now finds that it is no longer there
        _open.discard(handle)
        os.close(handle)


def _try(path: epath.Path, say: Callable[[str], None]) -> int | None:
    """The descriptor of the file, locked; None where another process has locked it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):  # noqa: PTH116 - of a path that may be gone
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except FileNotFoundError:
            pass  # its last holder removed it meanwhile
        except OSError as error:  # a file system without locks
            say(f"warning: {path.parent} cannot be locked ({error.strerror}): see to it that nothing else writes there")
            return handle
        os.close(handle)


def _read(path: epath.Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


class _Object(Lock):
    """The object of a lock in a bucket; `generation` is its version, by which GCS tells whether somebody wrote it since."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._bucket, _, self._key = str(path).removeprefix("gs://").partition("/")
        self._files: Any = backend.fsspec_backend.fs(path)
        self._me = _myself() | {"token": uuid.uuid4().hex}
        self._generation, self._lost = "", ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def look(self) -> tuple[str, str]:
        """(generation, content), empty where there is no object."""
        try:
            headers, data = self._files.call("GET", "b/{}/o/{}", self._bucket, self._key, alt="media")
        except FileNotFoundError:
            return "", ""
        return headers["x-goog-generation"], data.decode(errors="replace")

    def write(self, generation: str) -> bool:
        """Writes the object, if its generation is still the one given ('' = there is none); False if it is not."""
        url = self._files.base.replace("/storage/v1/", "/upload/storage/v1/b/{}/o", 1)
        where = {"uploadType": "media", "name": self._key, "ifGenerationMatch": generation or "0"}
        data = json.dumps(self._me | {"renewed": time.time()}).encode()
        try:
            self._generation = self._files.call("POST", url, self._bucket, data=data, json_out=True, **where)[
                "generation"
            ]
        except FileExistsError:  # perhaps by an answer that was lost, and asked for again
            generation, content = self.look()
            if _facts(content).get("token") != self._me["token"]:
                return False
            self._generation = generation
        return True

    def take(self, what: str, say: Callable[[str], None], wait: bool) -> None:
        """Makes the lock this process's; raises UserError where another renews it."""
        told, seen, since, renewed = False, "", 0.0, False
        while not self.write(seen if self._is_dead(seen, since) else ""):
            generation, content = self.look()
            if not generation:
                continue
            _check_ours(self._path, content)
            if generation != seen:
                renewed, seen, since = bool(seen), generation, time.monotonic()
            alive = _is_alive(_facts(content))
            if alive is False:
                since = -STALE_SECONDS
                continue
            if (renewed or alive) and not wait:
                raise _in_use(what, _describe(content))
            if not told:
                for_long = "" if renewed or alive else f", or silent for {STALE_SECONDS:g} s"
                say(f"{what} is in use by {_describe(content)}: waiting until it is free{for_long}")
                told = True
            time.sleep(min(1.0, RENEW_SECONDS / 4))
        self._thread.start()

    def _is_dead(self, seen: str, since: float) -> bool:
        return bool(seen) and time.monotonic() - since >= STALE_SECONDS

    def _keep(self) -> None:
        while not self._end.wait(RENEW_SECONDS):
            try:
                if not self.write(self._generation):
                    self._lost = _describe(self.look()[1])
                    return
            except Exception:  # noqa: BLE001, S112 - clients of buckets raise anything; there is time for another try
                continue

    def check(self) -> None:
        """Raises UserError when another process has taken the lock over."""
        if self._lost:
            raise UserError(
                f"{self._path} was taken over by {self._lost}, as this process had not renewed it for "
                f"{STALE_SECONDS:g} s. This one ends, so that the two do not mix."
            )

    def free(self) -> None:
        """Ends renewing, and removes the object if it is still this process's."""
        self._end.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # a silent lock is free soon anyway
            where = {"ifGenerationMatch": self._generation}
            self._files.call("DELETE", "b/{}/o/{}", self._bucket, self._key, **where)


@contextlib.contextmanager
def _in_bucket(path: epath.Path, what: str, say: Callable[[str], None], wait: bool) -> Iterator[Lock]:
    lock = _Object(path)
    lock.take(what, say, wait)
    try:
        yield lock
    finally:
        lock.free()


def _myself() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    command = shlex.join(sys.argv)
    who = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "command": command}
    return who | {"process": _identity(os.getpid()), "machine": _machine()}


def _machine() -> str:
    """The same for all processes that see each other's numbers; '' where that cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _identity(pid: int) -> str:
    """Tells a process from a later one of the same number; '' where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{pid} {fields[19]}"


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether a process runs; None of another machine's."""
    if not holder.get("machine") or holder["machine"] != _machine() or not isinstance(holder.get("pid"), int):
        return None
    return _identity(holder["pid"]) == holder.get("process")


def _facts(content: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_ours(path: epath.Path, content: str) -> None:
    """UserError where a file under the name of a lock is somebody else's, which is not to be lost."""
    if content.strip("\0") and not _facts(content).keys() >= _HOLDER:  # a crash of the machine may leave zeros
        raise UserError(
            f"{path} is needed for a lock, but was not written by ec_dit: move it elsewhere, and start again."
        )


def _describe(content: str) -> str:
    """Who holds a lock, in words; its content may be anything."""
    facts = _facts(content)
    if not facts.keys() >= _HOLDER:
        return "another process"
    words = f"process {facts['pid']} on {facts['host']} since {facts['since']} ({facts['command']})"
    return printable(words[:1000])


def _in_use(what: str, holder: str) -> UserError:
    return UserError(f"{what} is in use by {holder}. Wait until that ends, or stop it first.")
