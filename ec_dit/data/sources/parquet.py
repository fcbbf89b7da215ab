"""Parquet tables of images and captions, such as Hugging Face data sets keep: bytes in a column, or paths of files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from etils import epath

from ec_dit.core import paths
from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.data.records import Record, Shard, Skipped
from ec_dit.data.sources import found

_ROWS, _BUFFER = 16, 1 << 20  # read at a time: rows, and bytes of each column
_MAX_ROWS = 1 << 26  # of a row group; pyarrow writes no more


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
    """A row group of a file, and the number of its first row."""

    file: str
    number: int
    start: int
    rows: int


class ParquetSource(found.FoundSource):
    """Reads tables of captioned images. Implements records.Source."""

    name = "parquet"

    def __init__(self, options: ParquetOptions):
        super().__init__(options)
        self.options = options
        self._root, files = found.find_files(self.name, options.path, ".parquet")
        with ThreadPoolExecutor(16) as pool:  # In a bucket each takes a while.
            self._groups = [group for groups in pool.map(self._look, files) for group in groups]

    def shards(self) -> Sequence[Shard]:
        """One for each row group."""
        return [Shard(f"{group.file}:{group.number}", group.rows) for group in self._groups]

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Yields the rows of one row group. Where it is damaged, the rows that cannot be read are skipped."""
        group = self._groups[shard]
        file, row = found.printable(group.file), group.start
        times: Counter[str] = Counter()
        try:
            for fields in self._rows(group):
                id_ = f"{file}#{row}"
                if self.options.id_column and (value := fields[self.options.id_column]) is not None:
                    id_ = f"{file}#{found.printable(str(value))}"
                    times[id_] += 1
                    id_ = found.numbered(id_, times[id_])
                row += 1
                try:
                    yield self._record(id_, self._image(group, fields.pop(self.options.image)), fields)
                except found.Unusable as problem:
                    yield self._skipped(id_, str(problem))
        except _damage() as error:
            if isinstance(error, OSError) and (error.errno or isinstance(error, ConnectionError | TimeoutError)):
                raise  # The disk's or the network's fault.
            for lost in range(row, group.start + group.rows):
                yield self._skipped(f"{file}#{lost}", f"damaged file: {str(error)[:200]}")

    def _look(self, file: str) -> list[_Group]:
        """The row groups of a file. UserError where it cannot be read or lacks a column."""
        path = self._root / file
        try:
            with path.open("rb") as opened:
                table = _arrow().parquet.ParquetFile(opened)
                self._columns(path, table.schema_arrow)
                rows = [table.metadata.row_group(index).num_rows for index in range(table.num_row_groups)]
            if not all(0 <= count <= _MAX_ROWS for count in rows):
                raise OSError("it claims more rows than there can be")
        except FileNotFoundError:
            raise UserError(f"parquet: {path} is missing") from None
        except _damage() as error:
            raise UserError(f"parquet: cannot read {path}: {error}") from error
        return [_Group(file, index, sum(rows[:index]), count) for index, count in enumerate(rows)]

    def _columns(self, path: epath.Path, schema: Any) -> list[str]:
        """The columns that are needed."""
        types = _arrow().types
        needed = [self.options.image, *self._weights, *filter(None, [self.options.id_column])]
        for name in needed:
            if name not in schema.names:
                columns = ", ".join(schema.names)
                guess = did_you_mean(name, schema.names)
                raise UserError(f"parquet: {path} has no column {name!r}{guess}; it has {columns}")
        kinds = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
        facts = [field.name for field in schema if any(kind(field.type) for kind in kinds)]
        return list(dict.fromkeys([*needed, *facts]))

    def _rows(self, group: _Group) -> Iterator[dict[str, Any]]:
        """The rows of a group, a few at a time. Text that is not UTF-8 is given as bytes."""
        path = self._root / group.file
        with path.open("rb") as opened:
            table = _arrow().parquet.ParquetFile(opened, buffer_size=_BUFFER)
            columns = self._columns(path, table.schema_arrow)
            for batch in table.iter_batches(_ROWS, row_groups=[group.number], columns=columns):
                for row in range(batch.num_rows):
                    yield {name: _value(batch.column(name)[row]) for name in columns}

    def _image(self, group: _Group, value: Any) -> bytes:
        """The bytes of an image, from its column or the file that this names."""
        if isinstance(value, dict):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if isinstance(value, bytes) and value:
            if len(value) > found.MAX_IMAGE:
                raise found.Unusable(f"too large: {len(value):,} bytes, at most {found.MAX_IMAGE:,} are read")
            return value
        if not isinstance(value, str) or not value:
            raise found.Unusable("no image")
        folder = paths.at(self.options.images) if self.options.images else (self._root / group.file).parent
        return found.read_file(folder, value, found.MAX_IMAGE)


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


def _damage() -> tuple[type[Exception], ...]:
    """What reading a damaged file raises."""
    return _arrow().ArrowException, OSError, UnicodeDecodeError
