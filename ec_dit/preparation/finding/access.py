"""Bytes of found files: within limits, never out of their folder, and from a bucket ahead of their turn."""

import contextlib
import errno
import functools
import gzip
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from etils import epath

from ec_dit.core import ahead, paths
from ec_dit.core.errors import UserError
from ec_dit.core.terminal import printable

MAX_IMAGE, MAX_TEXT = 256 << 20, 16 << 20  # bytes
_AHEAD, _BYTES_AHEAD = 16, 256 << 20  # pictures, and their bytes, read ahead of their turn
# What a system refuses of one file or folder, where others can be read; anything else is of the disk, or of the machine.
_ITS_OWN = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")  # an absolute path of Windows
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


class Unusable(Exception):
    """Why an example is left out, ready for a report: the kind of reason, a colon and what was found."""


class TooLarge(Unusable):
    """More bytes than may be read."""


def within(root: epath.Path, name: str) -> str:
    """Checks the name, relative to the folder `root`, that the data gives a file.

    Raises:
        Unusable: it is a URL, or a path that leads elsewhere.
    """
    if "://" in name:
        raise a_url(name)
    inner = name.removeprefix(f"{os.fspath(root)}/")
    if inner.startswith("/") or _DRIVE.match(inner):
        raise Unusable(f"absolute path: {name[:200]!r} is not in {root}, where pictures are looked for")
    if ".." in inner.split("/"):
        raise Unusable(f"path leaves the folder: {name[:200]!r}")
    return inner


def read_file(root: epath.Path, name: str, limit: int, head: bool = False) -> bytes:
    """Reads a file whose name, relative to the folder `root`, the data gives.

    Args:
        head: gives the first `limit` bytes, of a file of any size.

    Raises:
        TooLarge: it is larger than `limit`.
        Unusable: it is missing, no plain file, may not be read, or lies outside `root`, by its name or by a link.
        UserError: from an OSError that is the disk's or the network's.
    """
    shown = repr(name[:200])
    path = root / within(root, name)
    try:
        if not paths.is_remote(path):
            real = os.path.realpath(path, strict=True)
            if not Path(real).is_relative_to(os.path.realpath(root)):
                raise Unusable(f"link leaves the folder: {shown}")
            if not Path(real).is_file():  # Opening a pipe would wait for ever.
                raise Unusable(f"not a regular file: {shown}")
        with path.open("rb") as file:
            if head:
                return file.read(limit)
            size = file.seek(0, os.SEEK_END)
            check_size(size, limit)
            file.seek(0)
            return file.read(size)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name with a NUL byte.
        raise Unusable(f"missing file: {shown}") from None
    except OSError as error:
        if paths.is_remote(path) or not is_its_own(error):
            raise UserError(f"cannot read {printable(str(path))}: {error}") from error
        raise Unusable(f"unreadable: {error.strerror}") from error


def is_its_own(error: OSError) -> bool:
    """Tells whether a file or folder of a disk cannot be read for what it is, and not because the disk fails."""
    return error.errno in _ITS_OWN


def no_file(path: epath.Path) -> str | None:
    """Tells what lies on a disk where a file should be, such as 'folder'; opening a pipe would wait for ever.

    None for a file, for nothing at all, and in a bucket.
    """
    try:
        mode = stat.S_IFREG if paths.is_remote(path) else Path(path).stat().st_mode
    except (OSError, ValueError):  # Who opens it is told.
        return None
    if stat.S_ISREG(mode):
        return None
    return "folder" if stat.S_ISDIR(mode) else "pipe or device"


@contextlib.contextmanager
def reading(kind: str, path: epath.Path) -> Iterator[None]:
    """Gives errors of disks and networks the name of the file that is read in this context, for a source of that kind.

    They are no damage of the file. That it is missing, or no gzip, passes as it is.

    Raises:
        UserError: from any other OSError.
    """
    try:
        yield
    except (FileNotFoundError, gzip.BadGzipFile):
        raise
    except OSError as error:
        raise UserError(f"{kind}: cannot read {printable(str(path))}: {error}") from error


def a_url(text: str) -> Unusable:
    """Gives the reason to leave out a picture that is somewhere in the web."""
    return Unusable(f"a URL and no picture: {text.strip()[:200]!r}; download the pictures first, as img2dataset does")


def check_size(size: int, limit: int) -> None:
    """Raises TooLarge where that is more than may be read."""
    if size > limit:
        raise TooLarge(f"too large: {size:,} bytes, at most {limit:,} are read")


def read_ahead(
    read: Callable[[_Item, int], _Found], items: Iterable[_Item], remote: bool
) -> Iterator[tuple[_Item, Callable[[], _Found]]]:
    """Yields the items in their order, each with what gives, or raises, what read(item, MAX_IMAGE) does.

    Where they are remote, several threads read the next few meanwhile; those larger than their share of _BYTES_AHEAD
    wait for their turn.

    Args:
        read: raises TooLarge above so many bytes.
    """
    if not remote:
        for item in items:
            yield item, functools.partial(read, item, MAX_IMAGE)
        return
    share = min(MAX_IMAGE, _BYTES_AHEAD // _AHEAD)

    def result(item: _Item, future: Future[_Found]) -> _Found:
        try:
            return future.result()
        except TooLarge:
            return read(item, MAX_IMAGE)

    with ThreadPoolExecutor(_AHEAD) as pool:
        for item, future in ahead.futures(pool, lambda item: read(item, share), items, _AHEAD):
            yield item, functools.partial(result, item, future)
