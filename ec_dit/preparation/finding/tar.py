"""Tars, read as a stream from start to end; nothing is unpacked.

The standard tarfile is not used to walk them: it takes a damaged header for the end of the archive, and reads extended
headers of any size into memory.
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ec_dit.core.errors import UserError
from ec_dit.preparation.finding import kinds
from ec_dit.preparation.finding.access import Unusable

_BLOCK = tarfile.BLOCKSIZE
_MAX_HEADER = 1 << 20  # bytes of an extended header
_EMPTY = 1 << 20  # bytes of zeros that an archive without members may have
DAMAGE = (tarfile.HeaderError, EOFError, zlib.error, gzip.BadGzipFile)


class Member(NamedTuple):
    """A file in a tar; `problem` says why it may not be used."""

    name: str
    size: int
    problem: str | None


class Tar:
    """Reads a tar front to back, each member before the next is asked for. Holds no more than a header in memory.

    Attributes:
        remark: what is odd about it though all its members were read; None before they are, too.

    Args:
        file: opened, at its start; it may be compressed with gzip or zstd.

    Raises:
        Unusable: it is no tar.
        DAMAGE: it cannot be decompressed.
    """

    def __init__(self, file: Any):
        self.remark: str | None = None
        self._file = file
        self._left = 0  # bytes of the member that are not yet read, its padding included
        self._first = self._file.read(_BLOCK)
        for kind, unpack in ((kinds.GZIP, _gzip), (kinds.ZSTD, _Zstd)):
            if kinds.name(self._first) == kind:
                self._file = unpack(_Again(self._first, file))
                self._first = self._file.read(_BLOCK)
                break
        if self._first.strip(b"\0") and not _is_header(self._first):
            raise Unusable(f"not a tar: {kinds.name(self._first) or _shown(self._first)}")
        if not self._first:
            raise Unusable("not a tar: an empty file")

    def members(self) -> Iterator[Member]:
        """Yields all but the folders, those of archives that were appended to the first among them.

        Raises:
            DAMAGE: the archive is damaged or cut short.
        """
        name: str | None = None  # what extended headers say of the next member
        pax: dict[str, str] = {}
        block, any_member = self._first, False
        while True:
            if not block.strip(b"\0"):  # the mark of the end
                block = self._appended(any_member)
                if not block:
                    return
            any_member = True
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                data = self._extended(header.size)
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    name = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                pax = _pax(self._extended(header.size))
            elif header.type == tarfile.XGLTYPE:
                self._extended(header.size)  # For all members: an author, a comment.
            else:
                if header.type == tarfile.GNUTYPE_SPARSE:
                    self._skip_sparse(block)
                size = _size(pax.get("size", header.size))
                has_data = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
                self._left = _padded(size) if has_data else 0
                if not header.isdir():
                    yield _member(pax.get("path") or name or header.name, size, header, pax)
                name, pax = None, {}
            self._skip()
            block = self._exactly(_BLOCK)

    def read(self, size: int) -> bytes:
        """Reads the next bytes of the member, which has so many left."""
        data = self._exactly(size)
        self._left -= size
        return data

    def _appended(self, any_member: bool) -> bytes:
        """The first header of what follows a mark of the end; nothing where no member does."""
        count, strange = 0, 0  # bytes, from the mark on and from the first that are not zeros
        try:
            while block := self._file.read(_BLOCK):
                count += len(block)
                if _is_header(block):
                    if strange:  # It was no mark, but lost bytes.
                        raise tarfile.HeaderError("members behind bytes that are none")
                    return block
                strange += len(block) if strange or block.strip(b"\0") else 0
        except DAMAGE as error:
            if isinstance(error, tarfile.HeaderError):
                raise
            self.remark = f"damaged after the end of the archive: {error}"
        if strange:
            self.remark = f"bytes after the end of the archive: {strange:,}, which are no members"
        elif not any_member and count > _EMPTY:
            raise tarfile.HeaderError("nothing but zeros")
        elif not any_member:
            self.remark = "empty archive"
        return b""

    def _extended(self, size: int) -> bytes:
        if _size(size) > _MAX_HEADER:
            raise tarfile.HeaderError(f"extended header of {size:,} bytes")
        self._left = _padded(size)
        return self.read(size)

    def _skip(self) -> None:
        while self._left:
            self._left -= len(self._exactly(min(self._left, _MAX_HEADER)))

    def _skip_sparse(self, block: bytes) -> None:
        """Where a sparse file's data lie, if the header has no room for it, stands in blocks behind the header."""
        more = block[482]
        while more:
            more = self._exactly(_BLOCK)[504]

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("it ends early")
        return data


class _Again:
    """A file whose first bytes were read and are given again. What reads it goes on where that was."""

    closed = False

    def __init__(self, first: bytes, file: Any):
        self._first, self._file = first, file

    def read(self, size: int = -1) -> bytes:
        """Reads the next bytes, as few as come at once."""
        if self._first:
            data, self._first = self._first, b""
            if 0 <= size < len(data):
                data, self._first = data[:size], data[size:]
            return data
        return self._file.read(size)

    def close(self) -> None:
        """Leaves the file to those who opened it."""


class _Zstd:
    """Decompresses; what is wrong with the bytes is an EOFError."""

    def __init__(self, file: _Again):
        import pyarrow as pa  # type: ignore[import-untyped]

        if not pa.Codec.is_available("zstd"):
            raise UserError("tars compressed with zstd need a pyarrow with that codec; run: pip install -U pyarrow")
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")

    def read(self, size: int) -> bytes:
        """Reads so many bytes, or fewer at the end."""
        try:
            return self._stream.read(size)
        except OSError as error:
            if re.search("ZSTD|compressed stream", str(error)):
                raise EOFError(str(error)) from error
            raise


def _gzip(file: Any) -> Any:
    return gzip.GzipFile(fileobj=file, mode="rb")


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _shown(block: bytes) -> str:
    return f"it begins with {block[:16]!r}"


def _member(name: str, size: int, header: tarfile.TarInfo, pax: dict[str, str]) -> Member:
    problem = None
    if name.startswith("/") or ".." in name.split("/"):
        problem = f"path leaves the archive: {name[:200]!r}"
    elif (
        not header.isreg() or header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in pax)
    ):
        problem = f"not a regular file: {name[:200]!r}"
    return Member(name, size, problem)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _size(text: str | int) -> int:
    try:
        size = int(text)
    except ValueError:
        size = -1
    if size < 0:
        raise tarfile.HeaderError("a member without a size")
    return size


def _pax(data: bytes) -> dict[str, str]:
    """The fields of an extended header: lines 'LENGTH KEY=VALUE', where the length is that of the line."""
    fields, start = {}, 0
    while start < len(data) and data[start]:
        try:
            space = data.index(b" ", start, start + 20)
            stop = start + int(data[start:space])
            key, value = data[space + 1 : stop - 1].split(b"=", 1)
        except ValueError:
            raise tarfile.HeaderError("damaged extended header") from None
        if not space < stop <= len(data):
            raise tarfile.HeaderError("damaged extended header")
        fields[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        start = stop
    return fields
