"""WebDataset tars, as img2dataset writes them: each example is a few files of one name: `0001.jpg`, `.txt`, `.json`."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ec_dit.core import paths
from ec_dit.core.terminal import printable
from ec_dit.data.records import Record
from ec_dit.preparation.finding import access, base, kinds, listing, splits
from ec_dit.preparation.finding.access import Unusable
from ec_dit.preparation.finding.keys import Example, examples
from ec_dit.preparation.finding.tar import DAMAGE, Tar
from ec_dit.preparation.source import Kind, Shard, Skipped

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")


@dataclass(frozen=True)
class WebdatasetOptions(base.FoundOptions):
    """How tars become records.

    Attributes:
        path: a folder of tars, searched recursively; one tar; or a pattern such as 'DIR/{00000..00099}.tar'. They may be
            compressed with gzip or zstd, whatever their names.
        image: the part that holds the image, such as 'image.png'; None takes the first that is a picture.
        captions: 'txt' is the .txt of an example, and so with any ending; others are fields of its .json.
        caption_lines: each line of a text is a caption.
    """

    path: str
    image: str | None = field(default=None, kw_only=True)
    captions: tuple[str, ...] = field(default=("txt",), kw_only=True)
    caption_lines: bool = field(default=False, kw_only=True)


class WebdatasetSource(base.FoundSource):
    """Reads tars of captioned images. Implements source.Source."""

    name = "webdataset"

    def __init__(self, options: WebdatasetOptions):
        super().__init__(options)
        self.options = options
        self._root, tars, self._unread, chosen = listing.find_files(self.name, options.path, _TARS)
        published = {tar: splits.of_shard(tar) for tar in tars}
        kept = self._published(published.values(), chosen, options.path)
        self._tars = [tar for tar in tars if kept.reads(published[tar])]
        self._splits = [kept.kept_as(published[tar]) for tar in self._tars]
        self._shards = [Shard(tar) for tar in self._tars]

    def shards(self) -> Sequence[Shard]:
        """Lists one for each tar."""
        return self._shards

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Yields the examples of one tar, in its order."""
        path = paths.at(self._root / self._tars[shard])
        name, split = printable(self._tars[shard]), self._splits[shard]
        prefix = name.removesuffix(".tar")
        times: Counter[str] = Counter()
        unread: Counter[str] = Counter()
        try:
            with access.reading(self.name, path), path.open("rb") as file:
                tar = Tar(file)
                for example in _known(examples(tar, self.options.image, tuple(self._weights)), unread):
                    key = printable(example.key)[: base.MAX_NAME]
                    times[key] += 1
                    id_ = base.numbered(f"{prefix}/{key}", times[key])
                    try:
                        if times[key] > 1:
                            raise Unusable("repeated key: the files of an example must follow each other")
                        fields = self._fields(example)
                    except Unusable as problem:
                        yield self._skipped(id_, str(problem), split)
                    else:
                        beside = [kind[1:] for kind in example.unread if kind.startswith(".")]
                        yield self._record(id_, functools.partial(_image, example, fields), fields, split, beside)
        except FileNotFoundError:
            yield self._skipped(name, "missing file", split, examples=None)
        except Unusable as problem:
            yield self._skipped(name, str(problem), split, examples=None)
        except DAMAGE as error:
            yield self._skipped(name, f"damaged archive: {error}", split, examples=None)
        else:
            if tar.remark:
                yield self._skipped(name, tar.remark, split, examples=0)
        if unread:
            yield self._skipped(f"{name} (parts)", f"parts passed over: {listing.told(unread)}", split, examples=0)

    def _fields(self, example: Example) -> dict[str, Any]:
        """What an example says of its image."""
        if example.problem:
            raise Unusable(example.problem)
        if not example.parts:
            raise Unusable(f"not recognised: the example has {', '.join(example.unread)[:500]}")
        fields = kinds.parsed(example.texts["json"]) if "json" in example.texts else {}
        if not isinstance(fields, dict):
            raise Unusable("damaged json: no object")
        for suffix, text in example.texts.items():
            if suffix != "json":
                fields[suffix] = text.splitlines() if self.options.caption_lines else text
        return fields


SOURCE = Kind(WebdatasetSource, WebdatasetOptions)


def _known(found: Iterator[Example], unread: Counter[str]) -> Iterator[Example]:
    """The examples, those of which nothing is known among them; parts that are passed over are counted in `unread`.

    A key of one file without an ending (README), or of one whose ending no other such key of the tar has (README.md, a list, a
    checksum), is none: the file belongs to the tar as a whole.
    """
    alone: dict[str, Example | None] = {}  # by ending, the first key of one such file; None once there are several
    try:
        for example in found:
            endings = [kind for kind in example.unread if kind.startswith(".")]
            if example.parts or example.problem:
                unread.update(example.unread)
            elif not endings:
                unread.update(example.unread)
                continue
            elif len(endings) == 1:
                (kind,) = endings
                if kind not in alone:
                    alone[kind] = example
                    continue
                if first := alone[kind]:
                    alone[kind] = None
                    yield first
            yield example
    finally:
        unread.update(kind for example in alone.values() if example for kind in example.unread)


def _image(example: Example, fields: dict[str, Any]) -> bytes:
    if example.image is not None:
        return example.image
    if fields.get("status", "success") != "success":
        raise Unusable(f"download failed: {str(fields.get('error_message'))[:200]}")
    there = ", ".join([*example.parts, *example.unread])
    raise Unusable(f"no image: the example has {there[:500]}")
