"""Which examples are kept, whatever their source: conditions on metadata, captions, sizes and near-duplicates."""

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import numpy as np
from PIL import Image

from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.data import images
from ec_dit.data.records import Record
from ec_dit.preparation.source import Skipped


@dataclass(frozen=True)
class Filters:
    """Which examples are kept.

    Attributes:
        min_size: shorter side in pixels, at least.
        max_pixels: pixels, at most. A picture of more is a fault of its own at the default, and left out as asked for
            where this is lower.
        max_aspect: longer side over shorter side, at most; None sets no limit.
        min_caption: characters of a caption, at least; shorter captions are left out, and examples without any other.
        max_caption: characters of a caption, at most; None sets no limit.
        keep: conditions on the metadata that must all hold, such as 'aesthetic>=5', 'punsafe<0.5', 'lang==en' or
            'lang!=de'. An example without that column is left out.
        duplicate_bits: leave out pictures whose fingerprint differs in at most so many bits from that of an earlier
            one, kept, of the same shard; None keeps all. 4 finds re-encoded and resized photos and most of those
            cropped by a hundredth; it also takes drawings for alike that differ in small parts only, such as emoji.
    """

    min_size: int = 16
    max_pixels: int = images.MAX_PIXELS
    max_aspect: float | None = None
    min_caption: int = 1
    max_caption: int | None = None
    keep: tuple[str, ...] = ()
    duplicate_bits: int | None = None

    def __post_init__(self) -> None:
        limits = {"min_size": 1, "max_pixels": 1, "max_aspect": 1, "min_caption": 1, "max_caption": self.min_caption}
        for name, least in (limits | {"duplicate_bits": 0}).items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:  # So that nan fails too.
                why = " (min_caption)" if name == "max_caption" else ""
                raise UserError(f"{name} is {value}; it must be at least {least}{why}, and finite")
        if Image.MAX_IMAGE_PIXELS is not None and self.max_pixels > Image.MAX_IMAGE_PIXELS:
            raise UserError(
                f"max_pixels is {self.max_pixels}; it must be at most {Image.MAX_IMAGE_PIXELS}, Pillow's limit"
            )
        for text in self.keep:
            _condition(text)


DEFAULT = Filters()


class Picture(NamedTuple):
    """An example that passed all filters but the one for duplicates.

    Attributes:
        record: with those captions that passed.
        image: decoded, upright, RGB.
        fingerprint: of `image`; None where nobody asked for it.
    """

    record: Record
    image: Image.Image
    fingerprint: np.ndarray | None = None


@overload
def look(record: Skipped, filters: Filters) -> Skipped: ...
@overload
def look(record: Record | Skipped, filters: Filters) -> Picture | Skipped: ...
def look(record: Record | Skipped, filters: Filters) -> Picture | Skipped:
    """Passes one example through all filters but the one for duplicates. Several threads may call it.

    One that cannot be used, but that the user wants left out for what is known of it, is no fault.
    """

    def skipped(reason: str, asked: bool = True) -> Skipped:
        return Skipped(record.id, reason, record.split, asked)

    conditions = [_condition(text) for text in filters.keep]
    if isinstance(record, Skipped):
        excluded = next((each for each in conditions if each.holds(record.meta) is False), None)
        return skipped(excluded.fault(record.meta) or "") if excluded else record
    # The image last: decoding costs most.
    for condition in conditions:
        if fault := condition.fault(record.meta):
            return skipped(fault)
    lengths = [len(caption.strip()) for caption in record.captions]
    if not any(lengths):
        return skipped("empty caption", asked=False)
    most = math.inf if filters.max_caption is None else filters.max_caption
    passed = [i for i, length in enumerate(lengths) if filters.min_caption <= length <= most]
    if not passed:
        kind = "short" if lengths[0] < filters.min_caption else "long"
        return skipped(f"caption too {kind}: {lengths[0]} character{'' if lengths[0] == 1 else 's'}")
    if len(passed) < len(lengths):
        record = _with_captions(record, passed)
    try:
        image = images.decode(record.image, max_pixels=filters.max_pixels)
    except images.HugeImageError as error:
        return skipped(str(error), asked=filters.max_pixels < images.MAX_PIXELS)
    except images.ImageError as error:
        return skipped(str(error), asked=False)
    size, shorter, longer = f"{image.width}x{image.height}", min(image.size), max(image.size)
    if shorter < filters.min_size:
        return skipped(f"tiny: {size}, shorter side under {filters.min_size}")
    if filters.max_aspect is not None and longer / shorter > filters.max_aspect:
        return skipped(f"long: {size}, longer side over {filters.max_aspect:g} times the shorter")
    return Picture(record, image, None if filters.duplicate_bits is None else fingerprint(image))


def _with_captions(record: Record, chosen: list[int]) -> Record:
    weights = tuple(record.weights[i] for i in chosen) if record.weights else ()
    if not any(weights):  # Training could take none of them: all that is left counts alike.
        weights = ()
    return replace(record, captions=tuple(record.captions[i] for i in chosen), weights=weights)


class _Condition(NamedTuple):
    text: str
    column: str
    sign: str
    value: str

    def holds(self, meta: Mapping[str, Any]) -> bool | None:
        """Tells whether `meta` meets it; None where it has nothing that compares."""
        found = meta.get(self.column)
        left: float | str | None = _number(found)
        right: float | str | None = _number(self.value)
        if left is None or right is None:
            left, right = _words(found), self.value.lower() if isinstance(found, bool) else self.value
            if left is None or self.sign not in ("==", "!="):
                return None
        return bool(_SIGNS[self.sign](left, right))

    def fault(self, meta: Mapping[str, Any]) -> str | None:
        """Says why `meta` does not meet it; None where it does."""
        holds = self.holds(meta)
        if holds is None:
            return _no_column(self.column, tuple(meta))
        return None if holds else f"not {self.text}: {str(meta[self.column])[:40]}"


@functools.lru_cache(maxsize=1000)
def _no_column(column: str, there: tuple[str, ...]) -> str:
    if column in there:
        return f"no column {column}: what it has cannot be compared"
    names = f"it has {', '.join(there)[:_NAMES]}{did_you_mean(column, there)}" if there else "nothing is known of it"
    return f"no column {column}: {names}"


_NAMES = 200  # characters of a list of columns
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,  # After the longer ones, which begin alike.
    "<": operator.lt,
}
_CONDITION = re.compile(rf"\s*([^<>=!]*[^<>=!\s])\s*({'|'.join(_SIGNS)})\s*([^<>=!\s](?:.*\S)?)\s*", re.DOTALL)


@functools.cache
def _condition(text: str) -> _Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UserError(
            f"keep has {text!r}, which is no condition; write a column, one of {' '.join(_SIGNS)} and a value, "
            "such as aesthetic>=5 or lang==en"
        )
    condition = _Condition(text.strip(), *match.groups())
    if condition.sign not in ("==", "!=") and _number(condition.value) is None:
        raise UserError(
            f"keep has {text!r}; {condition.sign} compares numbers, such as aesthetic>=5; texts take == or !="
        )
    return condition


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def _words(value: Any) -> str | None:
    """What == and != compare: the text itself, numbers as Python writes them, true and false."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, int | float | str) else None


# A fingerprint is made so that its bits count differences that people see, and few others:
# - 64 bits tell whether brightness rises from each of 9x8 patches to the next on its right (dHash), by more than the
#   noise of JPEG in flat areas. Patches overlap (BILINEAR), so that a crop by a hundredth of the side flips few.
# - 162 bits tell the colours apart that brightness alone confuses: for nine levels of luma and both chromas each, how
#   many of the doubling shares that level's pixels exceed. Wherever a colour is, it counts alike, so crops change these
#   bits less than they would change the mean colours of patches; the steps double, so that what covers a twentieth
#   of the picture is seen too.
_SHARES = np.array([0.02, 0.04, 0.08, 0.16, 0.32, 0.64])
_NOISE = 2


def _tents(low: int, high: int) -> np.ndarray:
    """How much (256, 9) each value counts for each of nine levels: all for one, or in parts for the nearest two."""
    level = np.clip((np.arange(256) - low) / (high - low), 0, 1) * 8
    return np.maximum(0, 1 - np.abs(level[:, None] - np.arange(9)))


_LEVELS = np.stack([_tents(0, 256), _tents(80, 176), _tents(80, 176)])  # Few pictures have stronger chroma.


def fingerprint(image: Image.Image) -> np.ndarray:
    """Computes a perceptual hash, uint64 (4,): pictures that look alike differ in few bits, others in many."""
    bilinear = Image.Resampling.BILINEAR
    small = image.resize((36, 32), bilinear, reducing_gap=3.0)
    patches = np.asarray(small.convert("L").resize((9, 8), bilinear), np.int16)
    rises = patches[:, 1:] > patches[:, :-1] + _NOISE
    counts = np.reshape(small.convert("YCbCr").histogram(), (3, 256))
    shares = np.einsum("cv,cvl->cl", counts, _LEVELS) / counts[0].sum()
    bits = np.concatenate([rises.ravel(), (shares[..., None] > _SHARES).ravel()])
    return np.packbits(np.pad(bits, (0, -bits.size % 64))).view(np.uint64)


class Seen:
    """The pictures kept so far of one shard, to tell which later ones are duplicates. For one thread."""

    def __init__(self, filters: Filters):
        self._bits = filters.duplicate_bits
        self._ids: list[str] = []
        self._prints = np.empty((4, 256), np.uint64)  # A column each; grows by doubling.

    def first(self, picture: Picture) -> Picture | Skipped:
        """Gives the picture itself, unless it is a duplicate. To be called in the order of the shard."""
        if self._bits is None:
            return picture
        record, mine = picture.record, picture.fingerprint
        mine = fingerprint(picture.image) if mine is None else mine
        count = len(self._ids)
        if count:
            differing = np.bitwise_count(self._prints[:, :count] ^ mine[:, None]).sum(0, dtype=np.uint16)
            nearest = int(differing.argmin())
            if differing[nearest] <= self._bits:
                return Skipped(record.id, f"duplicate: of {self._ids[nearest]}", record.split, asked=True)
        if count == self._prints.shape[1]:
            self._prints = np.concatenate([self._prints, np.empty_like(self._prints)], axis=1)
        self._prints[:, count] = mine
        self._ids.append(record.id)
        return picture
