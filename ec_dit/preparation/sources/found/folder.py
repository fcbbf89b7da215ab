"""A folder of images with captions beside them: `x.jpg` with `x.txt`, or lists of them.

A list is captions.jsonl, of lines {"file": "sub/x.jpg", "caption": "..."}, or metadata.jsonl or metadata.csv as Hugging Face
writes them, with `file_name` and `text`; its names are relative to its own folder. A file may have several lines, and a line more
fields: other captions, and facts about the image; `x.json` beside an image has such fields too. Where none of them gives a
caption, the text file beside the image does. Hidden files are passed over, links to folders not followed, nor links to files
elsewhere.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.core.terminal import printable
from ec_dit.data.records import Record
from ec_dit.preparation.finding import access, base, fields, kinds, listing, metadata, splits
from ec_dit.preparation.finding.access import Unusable
from ec_dit.preparation.source import Kind, Shard, Skipped, ranges

_TEXTS = (".txt", ".caption")


@dataclass(frozen=True)
class FolderOptions(base.FoundOptions):
    """How a folder becomes records.

    Attributes:
        path: the folder; it is searched recursively.
        validation_share: share of the images held out, chosen by a hash of the path within the folder, where no folder such
            as `val` is for validation.
        captions: 'caption' is that of a list or of x.json, failing that their 'text', failing that the text file beside the
            image (.txt or .caption); others are fields of the list or of x.json.
        caption_lines: each line of a text file is a caption.
    """

    path: str
    validation_share: float = field(default=0.05, kw_only=True)
    caption_lines: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class _Entry:
    """One example to be: `file` is the path within the folder; `problem` says why it is skipped unread.

    Attributes:
        text, json: files beside the image that say something of it.
        fields: what a list says of it.
        examples: as in Skipped.
    """

    id: str
    file: str
    text: str | None = None
    json: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    examples: int = 1


class FolderSource(base.FoundSource):
    """Reads a folder of captioned images. Implements source.Source."""

    name = "folder"

    def __init__(self, options: FolderOptions):
        super().__init__(options)
        self.options = options
        self._root = paths.at(options.path)
        if not self._root.is_dir():
            state = "is not a folder" if self._root.exists() else "does not exist"
            raise UserError(f"folder: {self._root} {state}; pass --path=DIR with images and their captions")
        entries = self._find()
        published = [splits.of_picture(entry.file) for entry in entries]
        self._kept = self._published(published, False, options.path)
        self._entries = [entry for entry, split in zip(entries, published, strict=True) if self._kept.reads(split)]
        self._shards = ranges(len(self._entries), entries=[entry.file for entry in self._entries])
        if not self._entries:
            there = f"; there is {listing.told(self._unread)}" if self._unread else ""
            raise UserError(f"folder: no images in {self._root} or its subfolders{there}")

    def shards(self) -> Sequence[Shard]:
        """Lists stretches of the images in the order of paths."""
        return self._shards

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Yields the examples of one stretch in the order of paths."""
        start, stop = map(int, self._shards[shard].name.split("-"))
        for entry, content in access.read_ahead(self._read, self._entries[start:stop], paths.is_remote(self._root)):
            split = self._kept.kept_as(splits.of_picture(entry.file)) or self._split(entry.file)
            image, known = content()
            if isinstance(image, bytes):
                yield self._record(entry.id, functools.partial(bytes, image), known, split)
            else:
                yield self._skipped(entry.id, image, split, known, entry.examples)

    def _find(self) -> list[_Entry]:
        """Every example of the folder, in the order of paths."""
        folders: dict[str, list[str]] = {}
        entries: list[_Entry] = []

        def unreadable(error: OSError) -> None:
            inner = Path(error.filename).relative_to(self._root).as_posix()
            if inner == "." or not access.is_its_own(error):
                raise UserError(f"folder: cannot read {printable(error.filename)}: {error.strerror}") from error
            entries.append(_Entry(printable(inner), f"{inner}/", problem=f"unreadable folder: {error.strerror}"))

        for directory, subdirectories, names in listing.walk(self._root, unreadable):
            folders[directory] = [name for name in names if name]
            links = [name for name in subdirectories if listing.is_link(self._root / directory / name)]
            entries += [self._link(f"{directory}/{name}".lstrip("/")) for name in links]
        strange = [
            f"{directory}/{name}".lstrip("/")
            for directory, names in folders.items()
            for name in names
            if not name.lower().endswith(kinds.PICTURES + kinds.OTHERS)
        ]
        with ThreadPoolExecutor(16) as pool:  # in a bucket each takes a while
            pictures = {
                file for file, is_one in zip(strange, pool.map(self._is_picture, strange), strict=True) if is_one
            }
        lists, images = [], {}
        for directory, names in folders.items():
            own = [name for name in metadata.NAMES if name in names][:1]
            lists += [f"{directory}/{name}".lstrip("/") for name in own]
            for entry in self._images(directory, [name for name in names if name not in own], pictures):
                images[entry.file] = entry
        listed = [entry for name in lists for entry in self._listed(name, images)]
        named = {entry.file for entry in listed}
        entries += listed + [entry for file, entry in images.items() if file not in named]
        return sorted(entries, key=lambda entry: (entry.file, entry.id))

    def _link(self, file: str) -> _Entry:
        problem = "link to a folder, which is not followed"
        inside = Path(self._root / file).resolve().is_relative_to(Path(self._root).resolve())
        return _Entry(printable(file), file, problem=problem, examples=0 if inside else 1)

    def _is_picture(self, file: str) -> bool:
        try:
            return kinds.is_picture(access.read_file(self._root, file, kinds.HEAD, head=True))
        except Unusable:
            return False

    def _images(self, directory: str, names: list[str], pictures: set[str]) -> Iterator[_Entry]:
        """The images of one folder, with what is beside them; the rest is counted as not read."""
        beside: dict[str, str] = {}  # by the name as those of images make it
        for name in sorted(names, reverse=True):  # x.txt before x.TXT
            stem, dot, suffix = name.rpartition(".")
            if f".{suffix.lower()}" in (*_TEXTS, ".json"):
                beside.setdefault(f"{stem}{dot}{suffix.lower()}", name)
        used = set()
        for name in names:
            file = f"{directory}/{name}".lstrip("/")
            if not (name.lower().endswith(kinds.PICTURES) or file in pictures):
                continue
            stems = (PurePosixPath(name).stem, name)
            texts = [beside[stem + suffix] for suffix in _TEXTS for stem in stems if stem + suffix in beside]
            facts = [beside[f"{stem}.json"] for stem in stems if f"{stem}.json" in beside]
            used |= {name, *texts[:1], *facts[:1]}
            yield _Entry(printable(file), file, _first(directory, texts), _first(directory, facts))
        self._unread.update(listing.ending(name) for name in names if name not in used)

    def _listed(self, name: str, images: Mapping[str, _Entry]) -> Iterator[_Entry]:
        """The examples that a list names."""
        times: Counter[str] = Counter()
        folder = PurePosixPath(name).parent
        for line in metadata.lines(self._root, name):
            try:
                if line.problem:
                    raise Unusable(line.problem)
                file = (folder / access.within(self._root / folder, line.file)).as_posix()
                if file not in images:
                    raise Unusable(f"listed file is missing or no image: {file!r}")
            except Unusable as problem:
                yield _Entry(printable(line.where), line.where, fields=line.fields, problem=str(problem))
            else:
                times[file] += 1
                entry = images[file]
                yield _Entry(base.numbered(entry.id, times[file]), file, entry.text, entry.json, line.fields)

    def _read(self, entry: _Entry, limit: int) -> tuple[bytes | str, Mapping[str, Any]]:
        """The image, or why it cannot be used, and what is known of it."""
        known = dict(entry.fields)
        try:
            if entry.problem:
                raise Unusable(entry.problem)
            if entry.json:
                beside = kinds.parsed(access.read_file(self._root, entry.json, access.MAX_TEXT))
                known = (beside if isinstance(beside, dict) else {}) | known  # A list, say, has no columns.
            if "caption" in self._weights and "text" not in self._weights and known.get("caption") is None:
                known["caption"] = known.pop("text", None)
            if "caption" in self._weights and known.get("caption") is None and entry.text:
                text = access.read_file(self._root, entry.text, access.MAX_TEXT)
                known["caption"] = text.splitlines() if self.options.caption_lines else text
            fields.choose_captions(self._weights, known)  # Without one the image need not be read.
            return access.read_file(self._root, entry.file, limit), known
        except Unusable as problem:
            if isinstance(problem, access.TooLarge) and limit < access.MAX_IMAGE:
                raise  # It is read in its turn.
            return str(problem), known


SOURCE = Kind(FolderSource, FolderOptions)


def _first(directory: str, names: Sequence[str]) -> str | None:
    return f"{directory}/{names[0]}".lstrip("/") if names else None
