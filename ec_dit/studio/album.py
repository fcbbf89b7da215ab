"""A prepared data set, leaf by leaf: pictures with their captions, and what was left out and why."""

import base64
import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ec_dit.core.templates import template
from ec_dit.data import images
from ec_dit.data.dataset import Dataset
from ec_dit.data.records import Record

PER_LEAF = 24
_ROOM = "ec_dit.studio"
_THUMB, _SEARCH_SECONDS, _SKIPPED = 192, 3.0, 200


@dataclass(frozen=True)
class Leaf:
    """A page of an album.

    Attributes:
        html: escaped throughout.
        after: the record that the next leaf starts with; None at the end.
        words: where one is.
    """

    html: str
    after: int | None
    words: str


class Album:
    """A data set that is opened when it is first looked at.

    Args:
        open_: opens it.
    """

    def __init__(self, open_: Callable[[], Dataset]):
        self._open = open_

    @functools.cached_property
    def data(self) -> Dataset:
        """Opens the data set. Raises UserError where there is none, or another than the run's."""
        return self._open()

    def splits(self) -> list[str]:
        """Lists the splits."""
        return list(self.data.splits)

    def leaf(self, split: str, start: int = 0, words: str = "") -> Leaf:
        """Shows records from `start` on, of which a caption holds the words; a search ends after some seconds, and goes on
        with the next leaf.
        """
        records, found, wanted = self.data[split], list[dict[str, Any]](), words.strip().casefold()
        until, index = time.monotonic() + _SEARCH_SECONDS, max(0, start)
        while index < len(records) and len(found) < PER_LEAF and time.monotonic() < until:
            record = records[index]
            if not wanted or any(wanted in caption.casefold() for caption in record.captions):
                found.append(_shown(record, index))
            index += 1
        after = index if index < len(records) else None
        told = f"records {start + 1:,} to {index:,} of {len(records):,}" if len(records) else "no records"
        if wanted:
            told += f": {len(found)} with “{words.strip()}”"
        return Leaf(template(_ROOM, "album.html").render(pictures=found), after, told)

    def facts(self) -> str:
        """Tells what the data set is: source, options, splits, buckets, and what was left out for which reasons."""
        report = self.data.report
        rows = {"folder": str(self.data.path), "source": report.source}
        rows |= {f"option {key}": f"{value}" for key, value in report.options.items()}
        rows |= {f"kept, {split}": f"{count:,}" for split, count in report.kept.items()}
        rows |= {
            f"shape {shape}, {split}": f"{count:,}"
            for split, shapes in report.shapes.items()
            for shape, count in shapes.items()
        }
        skipped = list(itertools.islice(self.data.skipped(), _SKIPPED))
        return template(_ROOM, "album_facts.html").render(
            rows=rows, reasons=report.skipped, skipped=skipped, columns=_columns(skipped)
        )


def _shown(record: Any, index: int) -> dict[str, Any]:
    """A record as the template takes it; a picture that cannot be read says why."""
    thumb, why = "", "stored as latents of an autoencoder: there is no picture to show"
    if isinstance(record, Record):
        try:
            with images.room_for(record.image):
                picture = images.decode(record.image)
            picture.thumbnail((_THUMB, _THUMB))
            thumb, why = base64.b64encode(images.encode_png(picture)).decode(), ""
        except images.ImageError as error:
            why = str(error)
    return {
        "number": index,
        "id": record.id,
        "captions": record.captions,
        "thumb": thumb,
        "why": why,
        "meta": record.meta,
    }


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
