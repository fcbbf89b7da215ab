"""COCO captions: a folder of images and one JSON file that lists them and what people wrote of each."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.core.terminal import printable
from ec_dit.data.records import Record
from ec_dit.preparation.finding import access, base, kinds, listing, splits
from ec_dit.preparation.finding.access import Unusable
from ec_dit.preparation.finding.fields import at, choose_captions
from ec_dit.preparation.source import Kind, Shard, Skipped, ranges


@dataclass(frozen=True)
class CocoOptions(base.FoundOptions):
    """How COCO becomes records.

    Attributes:
        path: the folder of images, such as train2017.
        annotations: the JSON file, such as annotations/captions_train2017.json.
        validation_share: share of the images held out, chosen by a hash of the file name.
        captions: fields of an annotation; an image has those of all its annotations.
    """

    path: str
    annotations: str


@dataclass(frozen=True)
class _Entry:
    """One example to be: `file` is its path within the folder; `problem` says why it is skipped unread."""

    id: str
    file: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


class CocoSource(base.FoundSource):
    """Reads COCO's images with all their captions. Implements source.Source."""

    name = "coco"

    def __init__(self, options: CocoOptions):
        super().__init__(options)
        self.options = options
        self._root = paths.at(options.path)
        if not self._root.is_dir():
            raise UserError(f"coco: {self._root} is no folder; pass --path=DIR with the images")
        entries = list(self._find(*_lists(options.annotations)))
        self._count_unread({PurePosixPath(entry.file).as_posix() for entry in entries})
        self._kept = self._published(
            (splits.of_picture(each.file) for each in entries if each.file), False, options.path
        )
        self._entries = [entry for entry in entries if self._kept.reads(splits.of_picture(entry.file))]
        self._shards = ranges(len(self._entries), entries=[entry.id for entry in self._entries])

    def shards(self) -> Sequence[Shard]:
        """Lists stretches of the images in the order of their ids."""
        return self._shards

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Yields the images of one stretch; last of all come the annotations that are of none."""
        start, stop = map(int, self._shards[shard].name.split("-"))
        for entry, image in access.read_ahead(self._image, self._entries[start:stop], paths.is_remote(self._root)):
            published = self._kept.kept_as(splits.of_picture(entry.file))
            split = published or self._split(printable(entry.file or entry.id))
            yield self._record(entry.id, image, entry.fields, split)

    def _count_unread(self, listed: Set[str]) -> None:
        """What the folder holds beside the images that are listed."""
        for inner, folders, names in listing.walk(self._root, listing.shut(self.name, self._unread)):
            self._unread[listing.LINK] += sum(listing.is_link(self._root / inner / name) for name in folders)
            for name in names:
                if name and f"{inner}/{name}".lstrip("/") not in listed:
                    picture = name.lower().endswith(kinds.PICTURES)
                    self._unread["picture that is not listed" if picture else listing.ending(name)] += 1
        self._unread = +self._unread

    def _image(self, entry: _Entry, limit: int) -> bytes:
        if entry.problem:
            raise Unusable(entry.problem)
        choose_captions(self._weights, entry.fields)  # Without one the image need not be read.
        return access.read_file(self._root, entry.file, limit)

    def _find(self, images: list[Any], annotations: list[Any]) -> Iterator[_Entry]:
        sound = [each for each in annotations if isinstance(each, dict) and _is_id(each.get("image_id"))]
        texts: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in sorted(sound, key=lambda each: _order(each.get("id"))):
            texts[annotation["image_id"]].append(annotation)
        times: Counter[str] = Counter()
        seen = set()
        for image in sorted(images, key=lambda each: _order(each.get("id") if isinstance(each, dict) else None)):
            file = image.get("file_name") if isinstance(image, dict) else None
            if not isinstance(file, str) or not _is_id(image.get("id")):
                times["image"] += 1
                yield _Entry(base.numbered("image", times["image"]), problem="image without id or file_name")
                continue
            id_, number = printable(file), image["id"]
            times[id_] += 1
            id_ = base.numbered(id_, times[id_])
            if number in seen:
                yield _Entry(id_, file, problem="repeated image id")
                continue
            seen.add(number)
            captions = {key: at(texts[number], key) for key in self._weights}
            if all(text is None for values in captions.values() for text in values):  # for the message
                captions = {
                    key: [each.get(key) for each in texts[number]] for each in texts[number][:1] for key in each
                }
            facts = {key: value for key, value in image.items() if key != "file_name"}
            problem = None if texts[number] else "no caption: no annotation is of this image"
            yield _Entry(id_, file, facts | captions, problem)
        for number, annotation in enumerate(annotations):
            image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
            if not _is_id(image_id) or image_id not in seen:
                reason = f"annotation of an unknown image: {str(image_id)[:100]!r}"
                yield _Entry(f"annotation {number}", problem=reason)


SOURCE = Kind(CocoSource, CocoOptions)


def _lists(annotations: str) -> tuple[list[Any], list[Any]]:
    """The images and the annotations of the JSON file. UserError where it has none, or cannot be read."""
    path = paths.at(annotations)
    if kind := access.no_file(path):
        raise _no_lists(path, f"it is a {kind}")
    try:
        with access.reading(CocoSource.name, path), path.open("rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise _no_lists(path, str(error)) from error
    try:
        content = json.loads(data)
        images, texts = content["images"], content["annotations"]
    except KeyError as error:
        raise _no_lists(path, f"it has no {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise _no_lists(path, kinds.no_text(data) or str(error)) from error
    if isinstance(images, list) and isinstance(texts, list) and images:
        return images, texts
    raise _no_lists(path, "it has no images")


def _no_lists(path: epath.Path, problem: str) -> UserError:
    return UserError(
        f"coco: cannot read {path}: {problem}; pass a file like captions_train2017.json, "
        'which is {"images": [...], "annotations": [...]}'
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)


def _order(id_: Any) -> tuple[bool, int, str]:
    """Numbers by size, then texts, then what is neither."""
    return not isinstance(id_, int), id_ if isinstance(id_, int) else 0, str(id_)
