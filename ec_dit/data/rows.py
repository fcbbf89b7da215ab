"""One record as one row of a batch: decoded, cropped, tokenised; or a latent drawn, and embeddings filled up."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.data.batch import Row, Text
from ec_dit.data.dataset import Split
from ec_dit.data.stored import EncodedRecord
from ec_dit.data.tokenizer import Tokenizer

CROPS = ("center", "random")
POSTERIORS = ("sample", "mean")
CACHE_BYTES = 512 * 2**20


class Rows(Protocol):
    """The records of a split as rows."""

    records: Split

    def read(self, index: int) -> Any:
        """What `row` needs of a record."""
        ...

    def row(self, example: Any, rng: np.random.Generator | None) -> Row:
        """The row of it: augmented by `rng`; without one, always the same."""
        ...


def choose(weights: Sequence[float], count: int, rng: np.random.Generator) -> int:
    """One of `count` captions, as often as `weights` say; () = all alike. Takes one number of `rng`, whatever `count` is."""
    share = np.cumsum(weights or [1.0] * count)
    return min(int(np.searchsorted(share, rng.random() * share[-1], side="right")), count - 1)


@dataclasses.dataclass(frozen=True)
class _Picture:
    """A decoded record: uint8 pixels_YXZ (the crop, or all of it where crops are random), tokens of N captions."""

    pixels_YXZ: np.ndarray
    ids_NT: np.ndarray
    mask_NT: np.ndarray
    weights: tuple[float, ...]
    flip: bool
    record: int


class PictureRows:
    """Pictures, float32 in [-1, 1], with the int32 tokens of a caption.

    Args:
        tokenizer: usually the data set's own.
        image_size: side of the square images, in pixels; the shorter side is resized to it.
        text_length: tokens per caption, the end-of-text token included.
        crop: `center`, or `random` along the longer side.
        flip: mirrors half of the examples whose record allows it.
        cache_bytes: memory for decoded images; smaller sets are decoded once.

    Raises:
        UserError: no such crop.
    """

    def __init__(
        self,
        records: Split,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        text_length: int,
        crop: str = "center",
        flip: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ):
        if crop not in CROPS:
            raise UserError(f"crop is {crop!r}; choose one of {', '.join(CROPS)}")
        self.records = records
        self._tokenizer, self._length = tokenizer, text_length
        self._size, self._crop, self._flip = image_size, crop, flip
        self._cache: dict[int, _Picture] = {}
        self._budget = cache_bytes

    def read(self, index: int) -> _Picture:
        """Decodes a record, once if it fits the cache."""
        example = self._cache.get(index)
        if example is None:
            example = self._read(index)
            if example.pixels_YXZ.nbytes <= self._budget:
                self._budget -= example.pixels_YXZ.nbytes
                self._cache[index] = example
        return example

    def _read(self, index: int) -> _Picture:
        record = self.records[index]
        try:
            pixels_YXZ = self._pixels(record.image)
        except images.ImageError as error:
            raise UserError(f"{self.records.path}: record {record.id!r}: {error}") from error
        tokens = self._tokenizer.encode(record.captions, self._length)
        return _Picture(pixels_YXZ, *tokens, record.weights, record.flip, index)

    def _pixels(self, data: bytes) -> np.ndarray:
        """What is kept of a picture, uint8 (Y, X, 3)."""
        with images.room_for(data):
            image = images.decode(data)
            if self._crop == "center":
                return images.center_crop(image, self._size)
            return np.asarray(images.resize_shorter(image, self._size))

    def row(self, example: _Picture, rng: np.random.Generator | None) -> Row:
        """Crops, mirrors and picks a caption."""
        if rng is None:
            height, width = ((side - self._size) // 2 for side in example.pixels_YXZ.shape[:2])
            pixels_YXZ, caption = example.pixels_YXZ[height:, width:][: self._size, : self._size], 0
        else:
            pixels_YXZ = images.random_crop(example.pixels_YXZ, self._size, rng)
            mirrored = rng.random() < 0.5  # Drawn for every example, so that `flip` changes no other draw.
            if self._flip and example.flip and mirrored:
                pixels_YXZ = pixels_YXZ[:, ::-1]
            caption = choose(example.weights, len(example.ids_NT), rng)
        text = Text(example.ids_NT[caption], example.mask_NT[caption])
        return Row(images.to_float(pixels_YXZ), text, example.record)


class EncodedRows:
    """Latents, float32, with the bfloat16 embeddings of a caption (zeros where there is no token).

    Args:
        mean_Z, std_Z: latents become (z - mean) / std.
        posterior: `sample` draws z from the autoencoder's distribution every time, `mean` takes its mean.
        flip: takes the mirror image half of the time, where it is stored.
        pooled: gives the pooled vectors of captions too, which have to be stored.

    Raises:
        UserError: no such posterior.
    """

    def __init__(
        self,
        records: Split,
        *,
        mean_Z: np.ndarray | float = 0.0,
        std_Z: np.ndarray | float = 1.0,
        posterior: str = "sample",
        flip: bool = False,
        pooled: bool = False,
    ):
        if posterior not in POSTERIORS:
            raise UserError(f"posterior is {posterior!r}; choose one of {', '.join(POSTERIORS)}")
        self.records = records
        self._mean_Z, self._std_Z = np.float32(mean_Z), np.float32(std_Z)
        self._sample, self._flip, self._pooled = posterior == "sample", flip, pooled

    def read(self, index: int) -> tuple[EncodedRecord, int]:
        """Reads a record."""
        return self.records[index], index

    def row(self, example: tuple[EncodedRecord, int], rng: np.random.Generator | None) -> Row:
        """Draws a latent and a caption."""
        record, index = example
        mirrored, caption = False, 0
        if rng is not None:
            mirrored = rng.random() < 0.5  # Drawn for every example, so that `flip` changes no other draw.
            caption = choose(record.weights, len(record.captions), rng)
        mean_YXZ, std_YXZ = record.latents[1 if mirrored and self._flip and len(record.latents) > 1 else 0]
        latent_YXZ = mean_YXZ.astype(np.float32)
        if self._sample:
            rng = rng or np.random.default_rng(index)
            latent_YXZ += std_YXZ * rng.standard_normal(std_YXZ.shape, np.float32)
        text = Text(record.text_TM(caption), record.texts[caption][1])
        if self._pooled:
            text = text._replace(pooled_BM=record.pooled[caption].astype(np.float32))
        return Row((latent_YXZ - self._mean_Z) / self._std_Z, text, index)
