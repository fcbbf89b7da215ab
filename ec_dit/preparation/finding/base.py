"""What the sources of found pictures share: their options, what is held out, and records of what was found.

They only find: nothing is decoded, checked or resized here. What they find may be damaged or hostile, so every read has
a limit, and no name or link that the data gives leads out of its folder.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ec_dit.core.errors import UserError
from ec_dit.data.records import TRAIN, VALIDATION, Record
from ec_dit.preparation.finding import fields as known
from ec_dit.preparation.finding import kinds
from ec_dit.preparation.finding.access import Unusable
from ec_dit.preparation.finding.captions import may_mirror
from ec_dit.preparation.finding.splits import Splits
from ec_dit.preparation.source import Skipped

MAX_NAME = 1000  # characters


@dataclass(frozen=True, kw_only=True)
class FoundOptions:
    """What every source of found pictures lets one choose.

    Attributes:
        train: published split to train on, or several as 'train+test'; what is of no split is taken for 'train'. Files are of
            the split that a word in their path names, such as data/test-00000-of-00002.parquet or val2017/1.jpg; others than
            the named ones are not read.
        validation: published split for validation; where there is no 'validation', where that is trained on, or for None, the
            share is held out.
        validation_share: share of the examples held out, chosen by a hash of the id, where nothing else is for validation.
        flip: allow mirroring, where no caption names a side or writing.
        captions: where captions come from, each 'KEY' or 'KEY=WEIGHT', such as ('recaption=0.8', 'txt=0.2'); the texts
            of a key that has several share its weight. 'outer.inner' is a value within another. A key that an example lacks
            is passed over if another has a text.
    """

    train: str = TRAIN
    validation: str | None = VALIDATION
    validation_share: float = 0.01
    flip: bool = True
    captions: tuple[str, ...] = ("caption",)


class FoundSource:
    """Makes records of what was found; the sources build on it.

    Attributes:
        holds_out: whether the validation examples are a share of the others, and not a split of their own.
    """

    name: str
    libraries: tuple[str, ...] = ()

    def __init__(self, options: FoundOptions):
        if not 0 <= options.validation_share < 1:
            raise UserError(f"{self.name}: validation_share is {options.validation_share}; it must be in [0, 1)")
        self.holds_out = True
        self._shared = options
        self._weights = known.caption_weights(self.name, options.captions)
        self._unread: Counter[str] = Counter()
        self._became: dict[str, str] = {}

    def splits(self) -> tuple[str, ...]:
        """Lists the splits, 'train' first."""
        return TRAIN, VALIDATION

    def published(self) -> Mapping[str, str]:
        """Tells what became of the splits it was published with, by their names."""
        return self._became

    def unread(self) -> Mapping[str, int]:
        """Counts what lies beside the examples and are not read."""
        return dict(self._unread.most_common())

    def _published(self, published: Iterable[str | None], chosen: bool, path: str) -> Splits:
        """What becomes of the published splits; those that are left out are counted as not read."""
        splits = Splits(self.name, self._shared.train, self._shared.validation, published, chosen, path)
        self.holds_out, self._became = splits.holds_out, splits.became
        self._unread.update({f"file of the split {name}": count for name, count in splits.left_out.items()})
        return splits

    def _split(self, name: str) -> str:
        share = int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8]) / 2**64
        return VALIDATION if share < self._shared.validation_share else TRAIN

    def _skipped(
        self,
        id_: str,
        reason: str,
        split: str | None = None,
        fields: Mapping[str, Any] | None = None,
        examples: int | None = 1,
    ) -> Skipped:
        meta = known.facts(fields or {}, self._weights)
        return Skipped(id_[:MAX_NAME], reason, split or self._split(id_), examples=examples, meta=meta)

    def _record(
        self,
        id_: str,
        image: Callable[[], bytes],
        fields: Mapping[str, Any],
        split: str | None = None,
        beside: Iterable[str] = (),
    ) -> Record | Skipped:
        """An example of the image and everything else that is known of it; captions and facts are taken from that.

        Args:
            image: gives the encoded bytes, or raises Unusable.
            beside: as in choose_captions.
        """
        split = split or self._split(id_)
        try:
            if len(id_) > MAX_NAME:
                raise Unusable(f"name of more than {MAX_NAME} characters")
            data = kinds.picture(image())
            texts, weights = known.choose_captions(self._weights, fields, beside)
        except Unusable as problem:
            return self._skipped(id_, str(problem), split, fields)
        flip = self._shared.flip and all(map(may_mirror, texts))
        return Record(id_, data, texts, weights, split, flip, known.facts(fields, self._weights))


def numbered(name: str, times: int) -> str:
    """Gives the id of an example whose name came up for the `times`-th time."""
    return name if times == 1 else f"{name}#{times}"
