"""Which files of a tar are one example: WebDataset's keys, also where they hold dots.

WebDataset ends a key at the first dot of the last part of a name, so that `0001.seg.png` is the part seg.png of 0001. But then
`2024.05.jpg` and `2024.05.txt` would be two parts of 2024, and every picture of that year one example. So a key ends where a
known ending begins, here before .jpg and .txt; that of a file of no known ending ends at its last dot, unless the file is a part
of an example beside it. A picture without a text, or a text without a picture, whose key goes on after that of an example beside
it, is a part of that example and not one of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ec_dit.core.terminal import printable
from ec_dit.preparation.finding import access, kinds
from ec_dit.preparation.finding.listing import ending
from ec_dit.preparation.finding.tar import DAMAGE, Member, Tar

_PICTURES = tuple(suffix[1:] for suffix in kinds.PICTURES)
_TEXTS = ("txt", "json")
_MOST, _MOST_NAMES = 16, 100  # halves of examples that wait for what they are parts of; and those that hold no text
_ENDING = 40  # letters of one that is shown


@dataclass
class Example:
    """The files of one key.

    Attributes:
        key: the name without suffix.
        parts: suffixes of those that make it an example.
        image, texts: what was read of them.
        unread: kinds of those that were not.
        problem: why it cannot be used.
    """

    key: str
    parts: list[str] = field(default_factory=list)
    image: bytes | None = None
    texts: dict[str, bytes] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    problem: str | None = None


def examples(tar: Tar, image: str | None, captions: tuple[str, ...]) -> Iterator[Example]:
    """Yields the examples of a tar in its order; without parts, the keys of which nothing is known.

    Args:
        image: suffix of the image; None takes the first part that is a picture.
        captions: suffixes that are texts, beside .txt and .json.

    Raises:
        DAMAGE: it cannot be read on; the examples before come first.
    """
    names, group, reading = _Names(image, captions), _Group(), None
    try:
        for member in tar.members():
            place = names.place(member.name)
            if place is None:
                continue
            head = b""
            if place.kind is None and not member.problem:
                head = tar.read(min(member.size, kinds.HEAD))
                place = names.place_by_content(member.name, place, head)
            if place.kind is None and not member.problem:
                group.unread(place)
            else:
                reading = group.example(place)
                _read(tar, member, head, place, reading)
                reading = None
            yield from group.finished()
    except DAMAGE:
        group.close(without=reading)
        yield from group.finished()
        raise
    group.close()
    yield from group.finished()


@dataclass(frozen=True)
class _Place:
    """Where a file belongs; `base` is the key that ends at the first dot."""

    base: str
    key: str
    suffix: str
    kind: str | None = None  # 'image' or 'text'


class _Names:
    def __init__(self, image: str | None, captions: tuple[str, ...]):
        self._images = _PICTURES if image is None else (image.lower(),)
        self._sniffs = image is None
        self._texts = {name.lower(): name for name in (*_TEXTS, *captions)}

    def place(self, name: str) -> _Place | None:
        """Tells where a file belongs by its name; None where it is hidden."""
        folder, slash, last = name.removeprefix("./").rpartition("/")
        words = last.split(".")
        if not words[0]:
            return None
        keys = [f"{folder}{slash}{'.'.join(words[:end])}" for end in range(1, len(words) + 1)]
        suffixes = [".".join(words[end:]) for end in range(1, len(words) + 1)]
        for key, suffix in zip(keys, suffixes, strict=True):
            if suffix.lower() in self._images:
                return _Place(keys[0], key, suffix.lower(), "image")
            if suffix.lower() in self._texts:
                return _Place(keys[0], key, self._texts[suffix.lower()], "text")
        return _Place(keys[0], keys[0], suffixes[0])

    def place_by_content(self, name: str, place: _Place, head: bytes) -> _Place:
        """Tells where a file belongs whose name tells nothing: what is a picture ends its key at the last dot."""
        if not self._sniffs or not kinds.is_picture(head):
            return place
        whole = name.removeprefix("./")
        suffix = whole.rpartition("/")[2].rpartition(".")[2] if place.suffix else ""
        return _Place(place.base, whole[: len(whole) - len(suffix)].rstrip("."), suffix.lower(), "image")


class _Group:
    """The examples whose keys begin alike up to the first dot and follow each other."""

    def __init__(self) -> None:
        self._base = ""
        self._plain: Example | None = None  # the one whose key has no dot
        self._dotted: Example | None = None  # the last one whose key has
        self._halves: list[Example] = []
        self._done: list[Example] = []

    def example(self, place: _Place) -> Example:
        """Gives the example that a file belongs to."""
        self._enter(place.base)
        if place.key == place.base:
            if self._plain and place.suffix in self._plain.parts:
                self._done.append(self._plain)
                self._plain = None
            self._plain = self._plain or Example(place.key)
            return self._plain
        if not self._dotted or place.key != self._dotted.key or place.suffix in self._dotted.parts:
            return self._begin(place.key)
        return self._dotted

    def unread(self, place: _Place) -> None:
        """Notes a file that is not read."""
        self._enter(place.base)
        inner, _, last = place.suffix.rpartition(".")
        key = f"{place.base}.{inner}" if inner else place.base
        if self._dotted and f"{key}.".startswith(f"{self._dotted.key}."):
            example = self._dotted
        elif inner:
            example = self._begin(key)
        else:
            example = self._plain = self._plain or Example(key)
        example.unread.append(f".{printable(last.lower())[:_ENDING]}" if last else ending(""))

    def _begin(self, key: str) -> Example:
        """Another example whose key has a dot, with those of its parts that came before it and are not read."""
        self._settle()
        self._dotted, waiting = Example(key), []
        for half in self._halves:
            if not half.parts and f"{half.key}.".startswith(f"{key}."):
                self._dotted.unread += half.unread
            else:
                waiting.append(half)
        self._halves = waiting
        return self._dotted

    def finished(self) -> Iterator[Example]:
        """Yields those that are whole."""
        done, self._done = self._done, []
        return iter(done)

    def close(self, without: Example | None = None) -> None:
        """Finishes all, but for one that lost a file."""
        self._plain = None if self._plain is without else self._plain
        self._dotted = None if self._dotted is without else self._dotted
        self._settle()
        while self._halves:
            self._release(self._halves.pop(0))
        if self._plain:
            self._done.append(self._plain)
        self._plain = None

    def _enter(self, base: str) -> None:
        if base != self._base:
            self.close()
            self._base = base

    def _settle(self) -> None:
        example, self._dotted = self._dotted, None
        if example is None:
            return
        if example.problem or (example.image is not None and example.texts):
            self._done.append(example)
            return
        example.image = None  # nobody will need it
        self._halves.append(example)
        while len(self._halves) > _MOST_NAMES or sum(bool(half.texts) for half in self._halves) > _MOST:
            self._release(self._halves.pop(0))

    def _release(self, half: Example) -> None:
        rest = half.key.removeprefix(self._base)
        if self._plain and (self._plain.parts or not half.parts):
            self._plain.unread += [f"{rest}.{part}" for part in half.parts] + half.unread
            return
        if half.parts and not half.texts:
            part = f"{rest}.{half.parts[0]}"[1:]
            there = ", ".join([*half.parts, *half.unread])
            half.problem = (
                f"no caption: the example has {there}; if its key is {self._base[:100]!r}, name its parts: "
                f"--captions=... and --option=image={part[:100]}"
            )
        self._done.append(half)


def _read(tar: Tar, member: Member, head: bytes, place: _Place, example: Example) -> None:
    """Reads a file into its example, or notes why not; `head` was read already."""
    limit = access.MAX_IMAGE if place.kind == "image" else access.MAX_TEXT
    if member.problem:
        example.problem = member.problem
    elif place.kind == "image" and example.image is not None:
        example.unread.append(f".{place.suffix}")
        return
    elif member.size > limit:
        example.problem = f"too large: {place.suffix} of {member.size:,} bytes, at most {limit:,} are read"
    else:
        data = head + tar.read(member.size - len(head))
        if place.kind == "image":
            example.image = data
        else:
            example.texts[place.suffix] = data
    example.parts.append(place.suffix)
