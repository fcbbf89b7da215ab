"""A folder of images with captions beside them: `x.jpg` with `x.txt`, or one `captions.jsonl` at the top.

Each line of captions.jsonl is {"file": "sub/x.jpg", "caption": "..."}; a file may have several lines. Images that it
does not list fall back to the text file beside them. Hidden files are passed over, links to folders not followed.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.data.captions import may_mirror
from ec_dit.data.records import Record, Skipped

CAPTIONS = "captions.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_OTHER_IMAGES = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2")
_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class FolderOptions:
    """How a folder becomes records.

    Attributes:
        path: the folder; it is searched recursively.
        image_size: shrink images whose shorter side is longer than this many pixels; None keeps every file's bytes.
        validation_share: share of the images held out, chosen by a hash of the path within the folder.
        min_size: shorter sides below this many pixels are skipped.
        max_pixels: images of more pixels are skipped.
        flip: allow mirroring, where the caption names no side and no writing.
    """

    path: str
    image_size: int | None = None
    validation_share: float = 0.05
    min_size: int = 16
    max_pixels: int = images.MAX_PIXELS
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise UserError(f"folder: validation_share is {self.validation_share}; it must be in [0, 1)")
        for name in ("image_size", "min_size", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"folder: {name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class _Entry:
    """One example to be: `file` is the path within the folder; `problem` says why it is skipped unread.

    The caption is in the file `text`, beside the image, unless captions.jsonl gave one.
    """

    id: str
    file: str
    text: str | None = None
    caption: str | None = None
    problem: str | None = None


class FolderSource:
    """Reads a folder of captioned images. Implements records.Source."""

    name = "folder"

    def __init__(self, options: FolderOptions):
        self.options = options
        self._root = Path(options.path)
        if not self._root.is_dir():
            state = "is not a folder" if self._root.exists() else "does not exist"
            raise UserError(f"folder: {self._root} {state}; pass --path=DIR with images and their captions")
        self._entries: dict[str, list[_Entry]] = {split: [] for split in _SPLITS}
        for entry in self._find():
            self._entries[self._split(entry.file)].append(entry)
        if not any(self._entries.values()):
            raise UserError(f"folder: no images in {self._root} (looked for {', '.join(SUFFIXES)}, in subfolders too)")

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, 'train' first."""
        return _SPLITS

    def size(self, split: str) -> int:
        """Number of examples in a split, kept or skipped."""
        return len(self._entries[split])

    def records(self, split: str, part: int = 0, parts: int = 1) -> Iterator[Record | Skipped]:
        """Yields the examples of `split` in the order of paths."""
        for entry in self._entries[split][part::parts]:
            try:
                yield self._read(entry)
            except images.ImageError as error:
                yield Skipped(entry.id, str(error))

    def _split(self, file: str) -> str:
        share = int.from_bytes(hashlib.sha256(os.fsencode(file)).digest()[:8]) / 2**64
        return "validation" if share < self.options.validation_share else "train"

    def _find(self) -> list[_Entry]:
        """Every example of the folder, in the order of paths."""
        files = {}
        for directory, subdirectories, names in os.walk(self._root):
            subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
            links = [name for name in subdirectories if Path(directory, name).is_symlink()]
            texts = {name[:-4]: name for name in sorted(names) if name.lower().endswith(".txt")}  # x.txt before x.TXT
            for name in names + links:
                file = Path(directory, name).relative_to(self._root).as_posix()
                if name in links:
                    files[file] = _Entry(_printable(file), file, problem="link to a folder, which is not followed")
                elif name.lower().endswith(SUFFIXES + _OTHER_IMAGES) and not name.startswith("."):
                    files[file] = _Entry(_printable(file), file, texts.get(Path(name).stem))
        entries = list(self._listed(files))
        listed = {entry.file for entry in entries}
        entries += [entry for file, entry in files.items() if file not in listed]
        return sorted(entries, key=lambda entry: (entry.file, entry.id))

    def _listed(self, files: dict[str, _Entry]) -> Iterator[_Entry]:
        """The examples that captions.jsonl names."""
        try:
            lines = (self._root / CAPTIONS).read_text(encoding="utf-8-sig").split("\n")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"folder: cannot read {self._root / CAPTIONS}: {error}") from error
        times: Counter[str] = Counter()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{CAPTIONS}:{number}"
            try:
                fields = json.loads(line)
                file, caption = fields["file"], fields["caption"]
                if not isinstance(file, str) or not isinstance(caption, str):
                    raise TypeError("not text")
            except (ValueError, KeyError, TypeError, RecursionError):
                yield _Entry(where, where, problem='line is no object with the texts "file" and "caption"')
                continue
            path = PurePosixPath(file)
            if path.is_absolute() or ".." in path.parts:
                yield _Entry(where, where, problem=f"path leaves the folder: {file!r}")
            elif path.as_posix() not in files:
                yield _Entry(where, where, problem=f"listed file is missing or no image: {file!r}")
            else:
                file = path.as_posix()
                times[file] += 1
                name = files[file].id
                yield _Entry(name if times[file] == 1 else f"{name}#{times[file]}", file, caption=caption)

    def _read(self, entry: _Entry) -> Record | Skipped:
        if entry.problem:
            return Skipped(entry.id, entry.problem)
        path = self._root / entry.file
        if not entry.file.lower().endswith(SUFFIXES):
            return Skipped(entry.id, "not a PNG, JPEG or WebP image")
        caption = entry.caption
        try:
            if caption is None:
                if entry.text is None:
                    return Skipped(entry.id, "no caption")
                caption = path.with_name(entry.text).read_text(encoding="utf-8-sig")
            data = path.read_bytes()
        except UnicodeDecodeError:
            return Skipped(entry.id, "caption is not UTF-8 text")
        except OSError as error:
            return Skipped(entry.id, f"unreadable: {error.strerror}")
        caption = " ".join(caption.encode(errors="replace").decode().split())
        if not caption:
            return Skipped(entry.id, "empty caption")
        image = images.decode(data, max_pixels=self.options.max_pixels)
        if min(image.size) < self.options.min_size:
            return Skipped(entry.id, f"tiny: {image.width}x{image.height}, shorter side under {self.options.min_size}")
        data = self._shrunk(image, data)
        return Record(entry.id, data, caption, flip=self.options.flip and may_mirror(caption))

    def _shrunk(self, image: Image.Image, data: bytes) -> bytes:
        size = self.options.image_size
        if size is None or min(image.size) <= size:
            return data
        small = images.resize_shorter(image, size)
        if data.startswith(b"\x89PNG"):
            return images.encode_png(small)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=95)
        return buffer.getvalue()


def _printable(file: str) -> str:
    """A path as text; bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(file).decode(errors="backslashreplace")
