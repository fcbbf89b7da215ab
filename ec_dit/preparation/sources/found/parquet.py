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
from ec_dit.data.records import Record
from ec_dit.preparation.finding import access, base, kinds, listing, splits
from ec_dit.preparation.finding.access import Unusable
from ec_dit.preparation.finding.fields import at
from ec_dit.preparation.source import Kind, Shard, Skipped

_ROWS, _BUFFER = 16, 1 << 20  # read at a time: rows, and bytes of each column
_MAX_ROWS = 1 << 26  # of a row group; pyarrow writes no more
_NO_COLUMN, _CHOOSE = "missing column", "choose by --option=image=... and --captions=..."


@dataclass(frozen=True)
class ParquetOptions(base.FoundOptions):
    """How tables become records.

    Attributes:
        path: a folder of .parquet files, searched recursively; one file; or a pattern such as 'DIR/train-*.parquet'.
        image: column of the images: bytes, {bytes, path} as Hugging Face writes them, base64 texts, or paths of files.
        images: folder that those paths are relative to, or lie in; None is that of the table.
        captions: columns of a text or of a list of texts.
        id_column: column that names the examples, each differently within a file; None numbers the rows.

    A column may be a part of another, 'outer.inner'.
    """

    path: str
    image: str = "image"
    images: str | None = None
    id_column: str | None = None


class _Group(NamedTuple):
    """A row group of a file, the number of its first row and the columns to read; or why the file is left out.

    Its rows are then those of the whole file; None where nobody can tell.
    """

    file: str
    split: str | None
    number: int = 0
    start: int = 0
    rows: int | None = None
    columns: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.file if self.problem else f"{self.file}:{self.number}"


class _Row(NamedTuple):
    """A row, and why it is left out. The image, or what holds it at `path`, is not yet Python's."""

    id: str
    fields: dict[str, Any]
    image: Any
    path: str = ""
    problem: str | None = None


class ParquetSource(base.FoundSource):
    """Reads tables of captioned images. Implements source.Source."""

    name = "parquet"

    def __init__(self, options: ParquetOptions):
        super().__init__(options)
        self.options = options
        self._root, files, self._unread, chosen = listing.find_files(
            self.name, options.path, (".parquet", ".parq", ".pq")
        )
        published = {file: splits.of_shard(file) for file in files}
        self._kept = self._published(published.values(), chosen, options.path)
        files = [file for file in files if self._kept.reads(published[file])]
        with ThreadPoolExecutor(32) as pool:  # In a bucket each takes a while.
            self._groups = [group for groups in pool.map(self._look, files) for group in groups]
        faults = [group for group in self._groups if group.problem]
        if len(faults) == len(files):
            fault = next((each for each in faults if str(each.problem).startswith(_NO_COLUMN)), faults[0])
            raise UserError(f"parquet: cannot use {self._root / fault.file}: {fault.problem}")
        self._shards = [Shard(group.name, group.rows) for group in self._groups]

    def shards(self) -> Sequence[Shard]:
        """Lists one for each row group, and for each file that cannot be used."""
        return self._shards

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Yields the rows of one row group. Where it is damaged, the rows that cannot be read are skipped."""
        group = self._groups[shard]
        if group.problem:
            yield self._skipped(printable(group.file), group.problem, group.split, examples=group.rows)
            return
        folder = paths.at(self.options.images) if self.options.images else (self._root / group.file).parent

        def read(row: _Row, limit: int) -> bytes:
            if row.problem:
                raise Unusable(row.problem)
            value = _value(row.image)
            return self._image(folder, at(value, row.path) if row.path else value, limit)

        for row, image in access.read_ahead(read, self._rows(group), paths.is_remote(folder)):
            yield self._record(row.id, image, row.fields, group.split)

    def _look(self, file: str) -> list[_Group]:
        """The row groups of a file; where it is damaged or lacks a column, one that says so."""
        path, split = self._root / file, self._kept.kept_as(splits.of_shard(file))
        count: int | None = None
        try:
            with access.reading(self.name, path), path.open("rb") as opened:
                if not (head := opened.read(kinds.HEAD)).startswith(b"PAR1"):
                    raise Unusable(f"not a parquet table: {kinds.name(head) or f'it begins with {head[:16]!r}'}")
                try:
                    table = _arrow().parquet.ParquetFile(opened, pre_buffer=False)
                    rows = [table.metadata.row_group(index).num_rows for index in range(table.num_row_groups)]
                    if not all(0 <= number <= _MAX_ROWS for number in rows):
                        raise Unusable("damaged file: it claims more rows than there can be")
                    count = sum(rows)
                    columns = self._columns(table.schema_arrow)
                except _damage() as error:
                    raise Unusable(_damaged(error)) from error
        except Unusable as problem:
            return [_Group(file, split, rows=count, problem=str(problem))]
        except FileNotFoundError:
            return [_Group(file, split, problem="missing file")]
        if not count:
            return [_Group(file, split, rows=0, problem="empty table")]
        starts = itertools.accumulate(rows, initial=0)
        return [
            _Group(file, split, index, start, number, columns)
            for index, (start, number) in enumerate(zip(starts, rows, strict=False))
        ]

    def _columns(self, schema: Any) -> tuple[str, ...]:
        """The columns that are needed, and those of facts. Unusable where one is missing."""
        columns = []
        for name in (self.options.image, *self._weights, *filter(None, [self.options.id_column])):
            column = next((each for each in _prefixes(name) if each in schema.names), None)
            if schema.names.count(column) > 1:
                raise Unusable(f"repeated column: {name!r}")
            if column is None or not _leads_on(schema.field(column).type, name.removeprefix(column).removeprefix(".")):
                there = [path for field in schema for path in _paths(field)]
                raise Unusable(
                    f"{_NO_COLUMN}: {name!r}{did_you_mean(name, there)}; it has {', '.join(there)[:500]}; {_CHOOSE}"
                )
            columns.append(column)
        facts = [field.name for field in schema if _is_fact(field.type) and schema.names.count(field.name) == 1]
        return tuple(dict.fromkeys([*columns, *facts]))

    def _rows(self, group: _Group) -> Iterator[_Row]:
        """The rows of a group, a few at a time. Text that is not UTF-8 is given as bytes."""
        file, row = printable(group.file), group.start
        times: Counter[str] = Counter()
        with access.reading(self.name, self._root / group.file):
            try:
                for scalars in self._scalars(group):
                    id_ = f"{file}#{row}"
                    column = next(each for each in _prefixes(self.options.image) if each in scalars)
                    image = scalars.pop(column) if column == self.options.image else scalars[column]
                    fields = {name: _value(scalar) for name, scalar in scalars.items()}
                    if self.options.id_column and (value := at(fields, self.options.id_column)) is not None:
                        id_ = f"{file}#{printable(str(value))}"
                        times[id_] += 1
                        id_ = base.numbered(id_, times[id_])
                    yield _Row(id_, fields, image, self.options.image[len(column) + 1 :])
                    row += 1
            except _damage() as error:
                reason = _damaged(error)
                for lost in range(row, group.start + (group.rows or 0)):
                    yield _Row(f"{file}#{lost}", {}, None, problem=reason)

    def _scalars(self, group: _Group) -> Iterator[dict[str, Any]]:
        """The rows of a group, a few at a time, as pyarrow has them."""
        with (self._root / group.file).open("rb") as opened:
            # Reading ahead (pre_buffer), pyarrow's default, would hold the whole group, and ignore the size of the buffer.
            table = _arrow().parquet.ParquetFile(opened, buffer_size=_BUFFER, pre_buffer=False)
            for batch in table.iter_batches(_ROWS, row_groups=[group.number], columns=list(group.columns)):
                for row in range(batch.num_rows):
                    yield {name: batch.column(name)[row] for name in group.columns}

    def _image(self, folder: epath.Path, value: Any, limit: int) -> bytes:
        """The bytes of an image, from its column or the file in `folder` that this names."""
        if isinstance(value, dict):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if isinstance(value, bytes) and value:
            access.check_size(len(value), limit)
            return value
        if not isinstance(value, str) or not value:
            kind = f"a {type(value).__name__}" if value else "nothing"
            raise Unusable(f"no image: column {self.options.image!r} holds {kind}")
        return kinds.from_base64(value.encode(errors="replace")) or access.read_file(folder, value, limit)


SOURCE = Kind(ParquetSource, ParquetOptions)


def _prefixes(path: str) -> Iterator[str]:
    """The columns that a path such as 'outer.inner' may lead through, the longest first."""
    parts = path.split(".")
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))


def _inner(kind: Any) -> Any:
    """What a list is of; other types as they are."""
    types = _arrow().types
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return kind


def _leads_on(kind: Any, path: str) -> bool:
    """Whether a column of that type has something at the path within."""
    if not path:
        return True
    kind = _inner(kind)
    if not _arrow().types.is_struct(kind):
        return False
    fields = {field.name: field.type for field in kind}
    return any(each in fields and _leads_on(fields[each], path[len(each) + 1 :]) for each in _prefixes(path))


def _paths(field: Any, prefix: str = "") -> Iterator[str]:
    """The names of a column and of what is within."""
    kind = _inner(field.type)
    if not _arrow().types.is_struct(kind):
        yield f"{prefix}{field.name}"
        return
    for each in kind:
        yield from _paths(each, f"{prefix}{field.name}.")


def _is_fact(kind: Any) -> bool:
    """Whether a column holds numbers or texts, or groups of them."""
    types = _arrow().types
    if types.is_struct(kind):
        return all(_is_fact(field.type) for field in kind)
    if types.is_dictionary(kind):
        return _is_fact(kind.value_type)
    facts = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(is_one(kind) for is_one in facts)


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
