"""WebDataset tars, as img2dataset writes them: each example is a few files of one name: `0001.jpg`, `.txt`, `.json`.

Tars are read as a stream, from start to end, and nothing is unpacked. The standard tarfile is not used to walk them: it
takes a damaged header for the end of the archive, and reads extended headers of any size into memory.
"""

import gzip
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from ec_dit.core import paths
from ec_dit.core.terminal import printable
from ec_dit.data.records import Record, Shard, Skipped
from ec_dit.data.sources import found

_IMAGES = tuple(suffix[1:] for suffix in found.IMAGES)
_TEXTS = ("txt", "json")
_BLOCK = tarfile.BLOCKSIZE
_MAX_HEADER = 1 << 20  # bytes of an extended header
_DAMAGE = (tarfile.HeaderError, EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True)
class WebdatasetOptions(found.FoundOptions):
    """How tars become records.

    Attributes:
        path: a folder of tars, searched recursively; one tar; or a pattern such as 'DIR/{00000..00099}.tar'.
        captions: 'txt' is the .txt of an example; others are fields of its .json.
    """

    path: str
    captions: tuple[str, ...] = field(default=("txt",), kw_only=True)


@dataclass
class _Example:
    """The files of one key, and why they are not used."""

    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    problem: str | None = None


class WebdatasetSource(found.FoundSource):
    """Reads tars of captioned images. Implements records.Source."""

    name = "webdataset"

    def __init__(self, options: WebdatasetOptions):
        super().__init__(options)
        self.options = options
        self._root, self._tars = found.find_files(self.name, options.path, ".tar")
        self._shards = [Shard(tar) for tar in self._tars]

    def shards(self) -> Sequence[Shard]:
        """One for each tar."""
        return self._shards

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Yields the examples of one tar, in its order."""
        tar = printable(self._tars[shard])
        prefix = tar.removesuffix(".tar")
        times: Counter[str] = Counter()
        try:
            with paths.at(self._root / self._tars[shard]).open("rb") as file:
                stream: Any = gzip.GzipFile(fileobj=file) if tar.endswith((".gz", ".tgz")) else file
                for example in _examples(stream):
                    key = printable(example.key)[: found.MAX_NAME]
                    times[key] += 1
                    id_ = found.numbered(f"{prefix}/{key}", times[key])
                    try:
                        if times[key] > 1:
                            raise found.Unusable("repeated key")
                        yield self._record(id_, *_contents(example))
                    except found.Unusable as problem:
                        yield self._skipped(id_, str(problem), fields=problem.fields)
        except FileNotFoundError:
            yield self._skipped(tar, "missing file")
        except _DAMAGE as error:
            yield self._skipped(tar, f"damaged archive: {error}")


def _contents(example: _Example) -> tuple[bytes, dict[str, Any]]:
    """The image of an example and its fields."""
    if example.problem:
        raise found.Unusable(example.problem)
    image = next((data for suffix, data in example.files.items() if suffix in _IMAGES), None)
    fields = {}
    if "json" in example.files:
        try:
            fields = json.loads(example.files["json"])
        except (ValueError, RecursionError):
            raise found.Unusable("damaged json") from None
        if not isinstance(fields, dict):
            raise found.Unusable("damaged json: no object")
    if image is None:
        if fields.get("status", "success") != "success":
            raise found.Unusable(f"download failed: {str(fields.get('error_message'))[:200]}", fields)
        raise found.Unusable("no image", fields)
    return image, {**fields, "txt": example.files.get("txt")}


def _examples(file: IO[bytes]) -> Iterator[_Example]:
    """The examples of a tar in its order. Raises one of _DAMAGE where it cannot be read on, after those before."""
    tar, example, whole = _Tar(file), None, True
    try:
        for member in tar.members():
            key, suffix = _key(member.name)
            if suffix not in _IMAGES + _TEXTS and not member.problem:
                continue
            if example is None or key != example.key or suffix in example.files:
                if example:
                    yield example
                example = _Example(key)
            limit = found.MAX_IMAGE if suffix in _IMAGES else found.MAX_TEXT
            if member.problem:
                example.problem = member.problem
            elif member.size > limit:
                example.problem = f"too large: {suffix} of {member.size:,} bytes, at most {limit:,} are read"
            else:
                whole = False
                example.files[suffix] = tar.read(member.size)
                whole = True
    except _DAMAGE:
        if example and whole:
            yield example
        raise
    if example:
        yield example


def _key(name: str) -> tuple[str, str]:
    """A name but for its suffix, which starts at the first dot of its last part; and the suffix."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, suffix = last.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem else (name, "")


class _Member(NamedTuple):
    name: str
    size: int
    problem: str | None


class _Tar:
    """Reads a tar front to back, each member before the next is asked for. Holds no more than a header in memory."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._left = 0  # bytes of the member that are not yet read, its padding included

    def members(self) -> Iterator[_Member]:
        """All but the folders. Raises one of _DAMAGE where the archive is damaged or cut short."""
        name: str | None = None  # what extended headers say of the next member
        pax: dict[str, str] = {}
        while True:
            self._skip()
            block = self._exactly(_BLOCK)
            if not block.strip(b"\0"):  # the mark of the end
                return
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

    def read(self, size: int) -> bytes:
        """The data of the member whose size that is."""
        data = self._exactly(size)
        self._left -= size
        return data

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


def _member(name: str, size: int, header: tarfile.TarInfo, pax: dict[str, str]) -> _Member:
    problem = None
    if name.startswith("/") or ".." in name.split("/"):
        problem = f"path leaves the archive: {name[:200]!r}"
    elif (
        not header.isreg() or header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in pax)
    ):
        problem = f"not a regular file: {name[:200]!r}"
    return _Member(name, size, problem)


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
