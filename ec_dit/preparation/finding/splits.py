"""Splits that a data set was published with: told by the names of its files and folders, as Hugging Face names them."""

import re
from collections import Counter
from collections.abc import Iterable

from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.data.records import TRAIN, VALIDATION

TEST, NOT_READ = "test", "not read"
HOLD_OUT = "to hold a share of the training examples out instead: --option=validation=null"
_WORDS = {
    **dict.fromkeys(["train", "training"], TRAIN),
    **dict.fromkeys(["validation", "valid", "val", "dev"], VALIDATION),
    **dict.fromkeys(["test", "testing", "eval", "evaluation"], TEST),
}
_BETWEEN = re.compile(r"[-._ 0-9]+")


def of_shard(name: str) -> str | None:
    """Names the published split that a file of many examples is of, by a word in its path: data/test-00000-of-00002.tar."""
    return _first(word for part in name.lower().split("/") for word in _BETWEEN.split(part))


def of_picture(name: str) -> str | None:
    """Names the published split that a picture is of, by a folder such as 'val2017'; its own name tells nothing."""
    return _first(part.strip("-._ 0123456789") for part in name.lower().split("/")[:-1])


def kept_as(split: str, holds_out: bool) -> str:
    """Words what a report says of a published split that is kept."""
    return f"kept as {split}{', but for a share that is held out' if holds_out else ''}"


def _first(words: Iterable[str]) -> str | None:
    return next((_WORDS[word] for word in words if word in _WORDS), None)


class Splits:
    """What becomes of published splits.

    Attributes:
        left_out: those that are not read, and how many files each has.
        holds_out: whether a share is held out, as none of them is for validation.
        became: what a report says of each.

    Args:
        kind: name of the source, for messages.
        train, validation: as in FoundOptions.
        published: the split of each file; None where it has none, which is like `train`.
        chosen: whether the path named the files: one split alone was asked for by that.
        path: for messages.

    Raises:
        UserError: a split that was named is not there, or there is none to train on.
    """

    def __init__(
        self, kind: str, train: str, validation: str | None, published: Iterable[str | None], chosen: bool, path: str
    ):
        published = list(published)
        there = Counter(split or TRAIN for split in published)
        if chosen and len(there) == 1:
            self._train, self._validation = set(there), set[str]()
        else:
            self._train, self._validation = _named(train), _named(validation or "")
            if validation == VALIDATION:  # the default, which asks for what is not trained on
                self._validation -= self._train
        for option, names, usual in (("train", self._train, TRAIN), ("validation", self._validation, VALIDATION)):
            for name in names - there.keys() - {usual}:
                raise UserError(
                    f"{kind}: {option} names the split {name!r}{did_you_mean(name, there)}; {path} has {', '.join(there)}"
                )
        if both := self._train & self._validation:
            raise UserError(
                f"{kind}: the split {both.pop()!r} is named for train and for validation; name it for one of them; {HOLD_OUT}"
            )
        if there and not self._train & there.keys():
            name = min(there)
            free = " --option=validation=null" if name in self._validation and validation != VALIDATION else ""
            raise UserError(
                f"{kind}: {path} has no split to train on, but {', '.join(there)}; to train on one, say so: "
                f"--option=train={name}{free}"
            )
        self.left_out = {name: n for name, n in sorted(there.items()) if name not in self._train | self._validation}
        self.holds_out = not self._validation & there.keys()
        self.became = {name: self._told(name) for name in sorted(there)} if any(published) else {}

    def _told(self, name: str) -> str:
        if name in self.left_out:
            return NOT_READ
        return kept_as(VALIDATION if name in self._validation else TRAIN, self.holds_out)

    def reads(self, published: str | None) -> bool:
        """Tells whether a split is read at all."""
        return (published or TRAIN) not in self.left_out

    def kept_as(self, published: str | None) -> str | None:
        """Gives the split of records that a published one becomes; None where a share of it is held out."""
        if (published or TRAIN) in self._validation:
            return VALIDATION
        return None if self.holds_out else TRAIN


def _named(text: str) -> set[str]:
    return {_WORDS.get(name.strip().lower(), name.strip()) for name in text.split("+") if name.strip()}
