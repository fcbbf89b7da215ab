"""Parquet tables of images and captions, such as Hugging Face data sets keep: bytes in a column, or paths of files."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from etils import epath

from ec_dit.core import paths
from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.core.terminal import printable
from ec_dit.data.records import Record, Shard, Skipped
from ec_dit.data.sources import found

_ROWS, _BUFFER = 16, 1 << 20  # read at a time: rows, and bytes of each column
_MAX_ROWS = 1 << 26  # of a row group; pyarrow writes no more
_NO_COLUMN = "missing column"


@dataclass(frozen=True)
class ParquetOptions(found.FoundOptions):
    """How tables become records.

    Attributes:
        path: a folder of .parquet files, searched recursively; one file; or a pattern such as 'DIR/train-*.parquet'.
        image: column of the images: bytes, {bytes, path} as Hugging Face writes them, or paths of files.
        images: folder that those paths are relative to; None is that of the table.
        captions: columns of a text or of a list of texts.
        id_column: column that names the examples, each differently within a file; None numbers the rows.
    """

    path: str
    image: str = "image"
    images: str | None = None
    id_column: str | None = None


class _Group(NamedTuple):
    """A row group of a file, the number of its first row and the columns to read; or why the file is left out."""

    file: str
    number: int = 0
    start: int = 0
    rows: int = 1
    columns: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.file if self.problem else f"{self.file}:{self.number}"


class _Row(NamedTuple):
    """A row, and why it is left out. The image is not yet Python's."""

    id: str
    fields: dict[str, Any]
    image: Any
    problem: str | None = None


class ParquetSource(found.FoundSource):
    """Reads tables of captioned images. Implements records.Source."""

    name = "parquet"

    def __init__(self, options: ParquetOptions):
        super().__init__(options)
        self.options = options
        self._root, files = found.find_files(self.name, options.path, ".parquet")
        with ThreadPoolExecutor(32) as pool:  # In a bucket each takes a while.
            self._groups = [group for groups in pool.map(self._look, files) for group in groups]
        faults = [group for group in self._groups if group.problem]
        if len(faults) == len(files):
            fault = next((each for each in faults if str(each.problem).startswith(_NO_COLUMN)), faults[0])
            raise UserError(f"parquet: cannot use {self._root / fault.file}: {fault.problem}")
        self._shards = [Shard(group.name, group.rows) for group in self._groups]

    def shards(self) -> Sequence[Shard]:
        """One for each row group, and for each file that cannot be used."""
        return self._shards

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Yields the rows of one row group. Where it is damaged, the rows that cannot be read are skipped."""
        group = self._groups[shard]
        if group.problem:
            yield self._skipped(printable(group.file), group.problem)
            return
        folder = paths.at(self.options.images) if self.options.images else (self._root / group.file).parent

        def read(row: _Row, limit: int) -> bytes:
            if row.problem:
                raise found.Unusable(row.problem)
            return _image(folder, _value(row.image), limit)

        for row, image in found.ahead(read, self._rows(group), paths.is_remote(folder)):
            try:
                yield self._record(row.id, image(), row.fields)
            except found.Unusable as problem:
                yield self._skipped(row.id, str(problem), fields=row.fields)

    def _look(self, file: str) -> list[_Group]:
        """The row groups of a file; where it is damaged or lacks a column, one that says so."""
        path = self._root / file
        try:
            with path.open("rb") as opened:
                try:
                    table = _arrow().parquet.ParquetFile(opened)
                    columns = self._columns(table.schema_arrow)
                    rows = [table.metadata.row_group(index).num_rows for index in range(table.num_row_groups)]
                except _damage() as error:
                    raise found.Unusable(_damaged(error)) from error
            if not all(0 <= count <= _MAX_ROWS for count in rows):
                raise found.Unusable("damaged file: it claims more rows than there can be")
        except found.Unusable as problem:
            return [_Group(file, problem=str(problem))]
        except FileNotFoundError:
            return [_Group(file, problem="missing file")]
        except OSError as error:
            raise UserError(f"parquet: cannot read {path}: {error}") from error
        starts = itertools.accumulate(rows, initial=0)
        return [
            _Group(file, index, start, count, columns)
            for index, (start, count) in enumerate(zip(starts, rows, strict=False))
        ]

    def _columns(self, schema: Any) -> tuple[str, ...]:
        """The columns that are needed. Unusable where one is missing."""
        types = _arrow().types
        needed = [self.options.image, *self._weights, *filter(None, [self.options.id_column])]
        for name in needed:
            if name not in schema.names:
                guess, columns = did_you_mean(name, schema.names), ", ".join(schema.names)
                raise found.Unusable(f"{_NO_COLUMN}: {name!r}{guess}; it has {columns[:500]}")
            if schema.names.count(name) > 1:
                raise found.Unusable(f"repeated column: {name!r}")
        kinds = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
        facts = [field.name for field in schema if any(kind(field.type) for kind in kinds)]
        facts = [name for name in facts if schema.names.count(name) == 1]
        return tuple(dict.fromkeys([*needed, *facts]))

    def _rows(self, group: _Group) -> Iterator[_Row]:
        """The rows of a group, a few at a time. Text that is not UTF-8 is given as bytes."""
        file, row = printable(group.file), group.start
        times: Counter[str] = Counter()
        try:
            for scalars in self._scalars(group):
                id_ = f"{file}#{row}"
                if self.options.id_column and (value := _value(scalars[self.options.id_column])) is not None:
                    id_ = f"{file}#{printable(str(value))}"
                    times[id_] += 1
                    id_ = found.numbered(id_, times[id_])
                image = scalars.pop(self.options.image)
                yield _Row(id_, {name: _value(scalar) for name, scalar in scalars.items()}, image)
                row += 1
        except _damage() as error:
            reason = _damaged(error)
            for lost in range(row, group.start + group.rows):
                yield _Row(f"{file}#{lost}", {}, None, reason)

    def _scalars(self, group: _Group) -> Iterator[dict[str, Any]]:
        """The rows of a group, a few at a time, as pyarrow has them."""
        with (self._root / group.file).open("rb") as opened:
            table = _arrow().parquet.ParquetFile(opened, buffer_size=_BUFFER)
            for batch in table.iter_batches(_ROWS, row_groups=[group.number], columns=list(group.columns)):
                for row in range(batch.num_rows):
                    yield {name: batch.column(name)[row] for name in group.columns}


def _image(folder: epath.Path, value: Any, limit: int) -> bytes:
    """The bytes of an image, from its column or the file in `folder` that this names."""
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes) and value:
        found.check_size(len(value), limit)
        return value
    if not isinstance(value, str) or not value:
        raise found.Unusable("no image")
    return found.read_file(folder, value, limit)


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if hasattr(scalar, "as_buffer"):
            return scalar.as_buffer().to_pybytes()
        if hasattr(scalar, "items"):
            return {name: _value(value) for name, value in scalar.items()}
        return [_value(value) for value in scalar]


def _arrow() -> Any:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise UserError("parquet: tables need pyarrow; run: pip install pyarrow") from None
    return pa


def _damaged(error: Exception) -> str:
    """Why a file is left out. Raises what is the disk's or the network's fault."""
    if isinstance(error, OSError) and (error.errno or isinstance(error, ConnectionError | TimeoutError)):
        raise error
    return f"damaged file: {str(error)[:200]}"


def _damage() -> tuple[type[Exception], ...]:
    """What reading a damaged file raises."""
    return _arrow().ArrowException, OSError, UnicodeDecodeError
