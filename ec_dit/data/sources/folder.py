"""A folder of images with captions beside them: `x.jpg` with `x.txt`, or one `captions.jsonl` at the top.

Each line of captions.jsonl is {"file": "sub/x.jpg", "caption": "..."}; a file may have several lines, and a line more
fields: other captions, and facts about the image. Where it gives no `caption`, the text file beside the image does.
Hidden files are passed over, links to folders not followed, nor links to files elsewhere.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.core.terminal import printable
from ec_dit.data.records import Record, Shard, Skipped, ranges
from ec_dit.data.sources import found

CAPTIONS = "captions.jsonl"
_OTHER_IMAGES = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2")


@dataclass(frozen=True)
class FolderOptions(found.FoundOptions):
    """How a folder becomes records.

    Attributes:
        path: the folder; it is searched recursively.
        validation_share: share of the images held out, chosen by a hash of the path within the folder.
        captions: 'caption' is that of captions.jsonl or, failing that, the text file beside the image; others are
            fields of captions.jsonl.
    """

    path: str
    validation_share: float = field(default=0.05, kw_only=True)


@dataclass(frozen=True)
class _Entry:
    """One example to be: `file` is the path within the folder; `problem` says why it is skipped unread.

    Attributes:
        text: the file beside the image with its caption.
        fields: what captions.jsonl says of it.
    """

    id: str
    file: str
    text: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


class FolderSource(found.FoundSource):
    """Reads a folder of captioned images. Implements records.Source."""

    name = "folder"

    def __init__(self, options: FolderOptions):
        super().__init__(options)
        self.options = options
        self._root = paths.at(options.path)
        if not self._root.is_dir():
            state = "is not a folder" if self._root.exists() else "does not exist"
            raise UserError(f"folder: {self._root} {state}; pass --path=DIR with images and their captions")
        self._entries = self._find()
        self._shards = ranges(len(self._entries), entries=[entry.file for entry in self._entries])
        if not self._entries:
            raise UserError(
                f"folder: no images in {self._root} (looked for {', '.join(found.IMAGES)}, in subfolders too)"
            )

    def shards(self) -> Sequence[Shard]:
        """Stretches of the images in the order of paths."""
        return self._shards

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Yields the examples of one stretch in the order of paths."""
        start, stop = map(int, self._shards[shard].name.split("-"))
        for entry, content in found.ahead(self._read, self._entries[start:stop], paths.is_remote(self._root)):
            split = self._split(entry.file)
            try:
                yield self._record(entry.id, *content(), split)
            except found.Unusable as problem:
                yield self._skipped(entry.id, str(problem), split, entry.fields)

    def _find(self) -> list[_Entry]:
        """Every example of the folder, in the order of paths."""
        files = {}

        def unreadable(error: OSError) -> None:
            inner = Path(error.filename).relative_to(self._root).as_posix()
            if inner == ".":
                raise UserError(f"folder: cannot read {self._root}: {error.strerror}") from error
            reason = f"unreadable folder: {error.strerror}"
            files[f"{inner}/"] = _Entry(printable(inner), inner, problem=reason)

        for directory, subdirectories, names in found.walk(self._root, unreadable):
            links = [name for name in subdirectories if Path(self._root / directory / name).is_symlink()]
            texts = {name[:-4]: name for name in sorted(names) if name.lower().endswith(".txt")}  # x.txt before x.TXT
            for name in names + links:
                file = f"{directory}/{name}".lstrip("/")
                if name in links:
                    problem = "link to a folder, which is not followed"
                    files[file] = _Entry(printable(file), file, problem=problem)
                elif name.lower().endswith(found.IMAGES + _OTHER_IMAGES) and not name.startswith("."):
                    files[file] = _Entry(printable(file), file, texts.get(PurePosixPath(name).stem))
        entries = list(self._listed(files))
        listed = {entry.file for entry in entries}
        entries += [entry for file, entry in files.items() if file not in listed]
        return sorted(entries, key=lambda entry: (entry.file, entry.id))

    def _listed(self, files: dict[str, _Entry]) -> Iterator[_Entry]:
        """The examples that captions.jsonl names."""
        times: Counter[str] = Counter()
        for number, line in enumerate(self._lines(), start=1):
            if not line.strip():
                continue
            where = f"{CAPTIONS}:{number}"
            try:
                fields = json.loads(line.decode("utf-8" if number > 1 else "utf-8-sig"))
                file = fields.pop("file")
                path = PurePosixPath(file)
            except UnicodeDecodeError:
                yield _Entry(where, where, problem="line is not UTF-8 text")
                continue
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                yield _Entry(where, where, problem='line is no object with the text "file"')
                continue
            file = path.as_posix()
            if path.is_absolute() or ".." in path.parts:
                yield _Entry(where, where, problem=f"path leaves the folder: {file!r}")
            elif file not in files:
                yield _Entry(where, where, problem=f"listed file is missing or no image: {file!r}")
            else:
                times[file] += 1
                entry = files[file]
                yield _Entry(found.numbered(entry.id, times[file]), file, entry.text, fields, entry.problem)

    def _lines(self) -> Iterator[bytes]:
        """The lines of captions.jsonl; no longer one is read whole than a text may be."""
        path = self._root / CAPTIONS
        try:
            with io.BufferedReader(path.open("rb")) as file:  # Files in buckets know no limit for a line.
                yield from iter(lambda: file.readline(found.MAX_TEXT), b"")
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"folder: cannot read {path}: {error}") from error

    def _read(self, entry: _Entry, limit: int) -> tuple[bytes, Mapping[str, Any]]:
        """The image and what is known of it."""
        if entry.problem:
            raise found.Unusable(entry.problem)
        if not entry.file.lower().endswith(found.IMAGES):
            raise found.Unusable("not a PNG, JPEG or WebP image")
        fields = entry.fields
        if "caption" in self._weights and fields.get("caption") is None and entry.text:
            text = (PurePosixPath(entry.file).parent / entry.text).as_posix()
            fields = {**fields, "caption": found.read_file(self._root, text, found.MAX_TEXT)}
        found.choose_captions(self._weights, fields)  # Without one the image need not be read.
        return found.read_file(self._root, entry.file, limit), fields
