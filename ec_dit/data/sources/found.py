"""What the sources of found pictures share: where captions come from, what is held out, how files are found and read.

They only find: nothing is decoded, checked or resized here. What they find may be damaged or hostile, so every read has
a limit, and no name or link that the data gives leads out of its folder.
"""

import functools
import hashlib
import itertools
import math
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from etils import epath

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.data.captions import may_mirror
from ec_dit.data.records import TRAIN, VALIDATION, Record, Skipped

MAX_IMAGE, MAX_TEXT = 256 << 20, 16 << 20  # bytes
MAX_CAPTIONS, MAX_CAPTION = 64, 10_000  # captions of an example, characters of one
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
MAX_NAME, _MAX_FACT = 1000, 1000  # characters
_MAX_FILES = 1_000_000
_NO_FACTS = ("caption", "exif")  # A second copy of the text; a long list that no filter asks for.
_AHEAD, _BYTES_AHEAD = 16, 256 << 20  # pictures, and their bytes, read ahead of their turn
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


@dataclass(frozen=True, kw_only=True)
class FoundOptions:
    """What every source of found pictures lets one choose.

    Attributes:
        validation_share: share of the examples held out, chosen by a hash of the id.
        flip: allow mirroring, where no caption names a side or writing.
        captions: where captions come from, each 'KEY' or 'KEY=WEIGHT', such as ('recaption=0.8', 'txt=0.2'); the texts
            of a key that has several share its weight. A key that an example lacks is passed over if another has a text.
    """

    validation_share: float = 0.01
    flip: bool = True
    captions: tuple[str, ...] = ("caption",)


class Unusable(Exception):
    """Why an example is left out, ready for a report; and what is known of it, where the raiser alone knows that."""

    def __init__(self, reason: str, fields: Mapping[str, Any] | None = None):
        super().__init__(reason)
        self.fields = fields or {}


class TooLarge(Unusable):
    """More bytes than may be read."""


class FoundSource:
    """Makes records of what was found; the sources build on it."""

    name: str
    libraries: tuple[str, ...] = ()

    def __init__(self, options: FoundOptions):
        if not 0 <= options.validation_share < 1:
            raise UserError(f"{self.name}: validation_share is {options.validation_share}; it must be in [0, 1)")
        self._shared = options
        self._weights = caption_weights(self.name, options.captions)

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, 'train' first."""
        return TRAIN, VALIDATION

    def unread(self) -> Mapping[str, int]:
        """How many things of each kind lie beside the examples and are not read."""
        return {}

    def _split(self, name: str) -> str:
        share = int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8]) / 2**64
        return VALIDATION if share < self._shared.validation_share else TRAIN

    def _skipped(
        self, id_: str, reason: str, split: str | None = None, fields: Mapping[str, Any] | None = None
    ) -> Skipped:
        return Skipped(id_[:MAX_NAME], reason, split or self._split(id_), meta=facts(fields or {}, self._weights))

    def _record(self, id_: str, image: bytes, fields: Mapping[str, Any], split: str | None = None) -> Record | Skipped:
        """An example of the image and everything else that is known of it; captions and facts are taken from that."""
        split = split or self._split(id_)
        try:
            if len(id_) > MAX_NAME:
                raise Unusable(f"name of more than {MAX_NAME} characters")
            texts, weights = choose_captions(self._weights, fields)
        except Unusable as problem:
            return self._skipped(id_, str(problem), split, fields)
        flip = self._shared.flip and all(map(may_mirror, texts))
        return Record(id_, image, texts, weights, split, flip, facts(fields, self._weights))


def caption_weights(kind: str, specs: tuple[str, ...]) -> dict[str, float]:
    """{key: weight} of texts 'KEY' and 'KEY=WEIGHT'. UserError where one is neither."""
    weights: dict[str, float] = {}
    for spec in specs:
        key, text = spec.rsplit("=", 1) if "=" in spec else (spec, "1")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not key or not 0 < weight < math.inf:
            raise UserError(f"{kind}: captions has {spec!r}; write KEY or KEY=WEIGHT with a weight above 0")
        if key in weights:
            raise UserError(f"{kind}: captions names {key!r} twice")
        weights[key] = weight
    if not weights:
        raise UserError(f"{kind}: captions is empty; name at least one key that captions come from")
    return weights


def choose_captions(keys: Mapping[str, float], fields: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The different captions of an example and how often to take each, () for all alike.

    Raises:
        Unusable: it has none, too many, or one without end.
    """
    given = {key: _texts(fields.get(key)) for key in keys}
    if (count := sum(map(len, given.values()))) > MAX_CAPTIONS:
        raise Unusable(f"too many captions: {count}")
    found: dict[str, float] = {}
    problems = []
    for key, weight in keys.items():
        texts = []
        for text in given[key]:
            try:
                texts.append(clean(text))
            except Unusable as problem:
                problems.append(problem)
        for text in texts:
            if len(text) > MAX_CAPTION:
                raise Unusable(f"endless caption: {len(text)} characters")
            found[text] = found.get(text, 0) + weight / len(texts)
    if not found:
        raise problems[0] if problems else Unusable("no caption")
    alike = len(set(found.values())) == 1
    return tuple(found), () if alike else tuple(found.values())


def _texts(value: Any) -> list[Any]:
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if not (each is None or (isinstance(each, float) and math.isnan(each)))]


def clean(text: Any) -> str:
    """A caption on one line, spaces single. Unusable where it is no text or says nothing."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Unusable("caption is not UTF-8 text") from None
    if not isinstance(text, str):
        raise Unusable("caption is not text")
    if cleaned := " ".join(_encodable(text).split()):
        return cleaned
    raise Unusable("empty caption")


def facts(fields: Mapping[str, Any], captions: Collection[str]) -> dict[str, Any]:
    """The short texts and the numbers among `fields`, but the captions: what is sound JSON."""
    kept: dict[str, Any] = {}
    for key, value in fields.items():
        if key in captions or key in _NO_FACTS or len(key) > _MAX_FACT:
            continue
        if isinstance(value, str) and len(value) <= _MAX_FACT:
            kept[_encodable(key)] = _encodable(value)
        elif (isinstance(value, int) and abs(value) < 2**64) or (isinstance(value, float) and math.isfinite(value)):
            kept[_encodable(key)] = value
    return kept


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def numbered(name: str, times: int) -> str:
    """The id of an example whose name came up for the `times`-th time."""
    return name if times == 1 else f"{name}#{times}"


def read_file(root: epath.Path, name: str, limit: int) -> bytes:
    """The bytes of a file whose name, relative to the folder `root`, the data gives.

    Raises:
        TooLarge: it is larger than `limit`.
        Unusable: it is missing, no plain file, or lies outside `root`, by its name or by a link.
    """
    shown = repr(name[:200])
    if name.startswith("/") or ".." in name.split("/") or "://" in name:
        raise Unusable(f"path leaves the folder: {shown}")
    path = root / name
    try:
        if not paths.is_remote(path):
            real = os.path.realpath(path, strict=True)
            if not Path(real).is_relative_to(os.path.realpath(root)):
                raise Unusable(f"link leaves the folder: {shown}")
            if not Path(real).is_file():  # Opening a pipe would wait for ever.
                raise Unusable(f"not a regular file: {shown}")
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            check_size(size, limit)
            file.seek(0)
            return file.read(size)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name with a NUL byte.
        raise Unusable(f"missing file: {shown}") from None
    except OSError as error:
        if paths.is_remote(path):
            raise  # The network's fault, not the example's.
        raise Unusable(f"unreadable: {error.strerror}") from error


def check_size(size: int, limit: int) -> None:
    """TooLarge where that is more than may be read."""
    if size > limit:
        raise TooLarge(f"too large: {size:,} bytes, at most {limit:,} are read")


def ahead(
    read: Callable[[_Item, int], _Found], items: Iterable[_Item], remote: bool
) -> Iterator[tuple[_Item, Callable[[], _Found]]]:
    """The items in their order, each with what gives, or raises, what read(item, MAX_IMAGE) does.

    Where they are remote, several threads read the next few meanwhile; those larger than their share of _BYTES_AHEAD
    wait for their turn.

    Args:
        read: raises TooLarge above so many bytes.
    """
    if not remote:
        for item in items:
            yield item, functools.partial(read, item, MAX_IMAGE)
        return
    waiting: deque[tuple[_Item, Future[_Found]]] = deque()

    def first() -> tuple[_Item, Callable[[], _Found]]:
        item, future = waiting.popleft()

        def result() -> _Found:
            try:
                return future.result()
            except TooLarge:
                return read(item, MAX_IMAGE)

        return item, result

    with ThreadPoolExecutor(_AHEAD) as pool:
        for item in items:
            waiting.append((item, pool.submit(read, item, min(MAX_IMAGE, _BYTES_AHEAD // _AHEAD))))
            if len(waiting) == _AHEAD:
                yield first()
        while waiting:
            yield first()


def find_files(kind: str, path: str, suffix: str) -> tuple[epath.Path, list[str]]:
    """The files that an option `path` means, as a folder and names relative to it, sorted.

    Args:
        path: a folder, searched recursively for `suffix`; a file; or a pattern with *, ? and {00..99} or {a,b}.

    Raises:
        UserError: there are none.
    """
    whole = paths.at(path)
    if whole.is_dir():
        root, names = whole, [f"{inner}/{name}".lstrip("/") for inner, _, files in walk(whole) for name in files]
        names = [
            name for name in names if name.lower().endswith(suffix) and not PurePosixPath(name).name.startswith(".")
        ]
    elif whole.exists():
        return whole.parent, [whole.name]
    else:
        start = re.split(r"[*?\[{]", path, maxsplit=1)[0].rpartition("/")[0]
        root = paths.at(start or ("/" if path.startswith("/") else "."))
        names = list(_matching(kind, root, path.removeprefix(start).lstrip("/")))
    if not names:
        state = f"has no {suffix} files" if whole.is_dir() else "is not there"
        raise UserError(f"{kind}: {path} {state}; pass --path=FOLDER, a file or a pattern such as DIR/*{suffix}")
    return root, sorted(set(names))


def walk(
    top: epath.Path, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk, on a disk or in a bucket, with folders relative to `top`; passes over the hidden ones.

    Args:
        on_error: given what reading a folder of a disk raised; from a bucket that is raised.
    """
    start = os.fspath(top).removeprefix("gs://")  # which epath's own walk leaves out
    remote = paths.is_remote(top)
    waiting = [top]
    while waiting:
        for folder, folders, names in waiting.pop().walk(on_error=_network_fault if remote else on_error):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inner = os.fspath(folder).removeprefix("gs://").removeprefix(start).strip("/")
            if not any(part.startswith(".") for part in inner.split("/")):
                yield inner, folders, names
            if remote:  # where epath's own walk passes over folders within that cannot be read
                waiting += [top / inner / name for name in folders]
                break


def _network_fault(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # which is a folder without files
        raise error


def _matching(kind: str, root: epath.Path, pattern: str) -> Iterator[str]:
    if "**" in pattern:
        raise UserError(f"{kind}: ** is not understood; pass the folder itself, which is searched recursively")
    names = list(itertools.islice(braces(pattern), _MAX_FILES + 1))
    if len(names) > _MAX_FILES:
        raise UserError(f"{kind}: {pattern} means more than {_MAX_FILES:,} files")
    for name in names:
        if any(character in name for character in "*?["):
            yield from (os.fspath(path.relative_to(root)) for path in root.glob(name))
        elif len(names) > 1 or (root / name).exists():
            yield name


def braces(pattern: str) -> Iterator[str]:
    """The names that a pattern with {00..99} and {a,b} stands for."""
    group = re.search(r"\{([^{}]*)\}", pattern)
    if not group:
        yield pattern
        return
    texts: Any = group[1].split(",")
    if bounds := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", group[1]):
        width = max(len(end) if end.startswith("0") else 0 for end in bounds.groups())
        texts = (f"{number:0{width}}" for number in range(int(bounds[1]), int(bounds[2]) + 1))
    for text in texts:
        yield from braces(pattern[: group.start()] + text + pattern[group.end() :])
