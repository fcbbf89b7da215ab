"""How the examples of one unit of a source become files: as pictures, or as what frozen encoders make of them."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ec_dit.core.errors import UserError
from ec_dit.data import images, layout, stored
from ec_dit.data.batch import Text
from ec_dit.data.records import TRAIN, Record
from ec_dit.preparation import files
from ec_dit.preparation.filters import Picture
from ec_dit.preparation.pace import Pace
from ec_dit.preparation.resolution import Shape, nearest
from ec_dit.preparation.workplace import Workplace

_CAPTIONS_AT_ONCE = 256


class Encoders(Protocol):
    """Frozen encoders.

    Attributes:
        factor: pixels per latent pixel, along a side.
        channels: Z of a latent.
        width, length: M and T of a text.
        pooled_width: M of a whole caption's vector; 0: there is none.
    """

    factor: int
    channels: int
    width: int
    length: int
    pooled_width: int

    def images(self, image_BYXZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gives mean and standard deviation of the latents of pictures in -1..1."""
        ...

    def texts(self, captions: Sequence[str]) -> Text:
        """Gives the embeddings of captions."""
        ...

    def cut(self, captions: Sequence[str]) -> int:
        """Counts the captions that have more tokens than are encoded."""
        ...


@dataclass(frozen=True)
class EncodingPlan:
    """How pictures and captions are to be encoded.

    Attributes:
        encoders: frozen.
        facts: as Encoding.facts has them.
        shapes: in pixels.
        batch_size: pictures encoded at a time.
        text_type: bfloat16 or int8.
        flip: keep a second latent, of the mirror image.
    """

    encoders: Encoders
    facts: Mapping[str, Any]
    shapes: Sequence[Shape]
    batch_size: int = 32
    text_type: str = "bfloat16"
    flip: bool = False


class Files:
    """The files of one unit, one for each split; opened when the first record comes."""

    def __init__(self, place: Workplace, name: Callable[[str], str]):
        self._place, self._name = place, name
        self._writers: dict[str, files.Writer] = {}

    def write(self, split: str, fields: stored.Fields) -> None:
        """Appends a record to the file of a split."""
        if split not in self._writers:
            self._writers[split] = files.Writer(self._place.scratch(self._name(split)))
        self._writers[split].write(fields)

    def close(self) -> dict[str, Any]:
        """Brings the files to their place; tells what each holds, by split."""
        found = {split: writer.close() | {"file": writer.path.name} for split, writer in sorted(self._writers.items())}
        for writer in self._writers.values():
            self._place.put(writer.path)
        return found


class Unit(Protocol):
    """Turns the kept pictures of one unit into records, in their order."""

    def ready(self, picture: Picture) -> Any:
        """Gives what `add` needs of a picture; called in several threads, in any order."""
        ...

    def add(self, record: Record, ready: Any) -> None:
        """Takes the next picture."""
        ...

    def close(self) -> dict[str, Any]:
        """Ends the files; JSON facts of the unit, among them 'files' as Files.close gives them."""
        ...


class PictureUnit:
    """Stores pictures as they are, or shrunk.

    Args:
        size: shrinks pictures whose shorter side is longer than so many pixels; None: none. Uncommon formats become PNG or JPEG.
    """

    def __init__(self, out: Files, size: int | None = None):
        self._files, self._size = out, size
        self._captions: list[str] = []

    def ready(self, picture: Picture) -> bytes:
        """Gives the bytes to store."""
        return images.shrink(picture.image, picture.record.image, self._size)

    def add(self, record: Record, ready: bytes) -> None:
        """Stores a picture."""
        fields = dict(stored.picture_fields(record)) | {"image": ready}
        self._files.write(record.split, fields)
        if record.split == TRAIN:
            self._captions += record.captions

    def close(self) -> dict[str, Any]:
        """Ends the files; the training captions are for the tokenizer."""
        return {"files": self._files.close(), "captions": self._captions}


class EncodedUnit:
    """Stores latents and embeddings.

    Pictures of one shape are encoded together, always `batch_size` of them, filled up where the unit ends: so what a picture
    becomes depends on its unit alone, whoever encodes it and whatever came before.

    Args:
        plan: how; a picture gets the nearest of its shapes.
        pace: told of the steps that may compile.
    """

    def __init__(self, out: Files, plan: EncodingPlan, pace: Pace):
        self._files, self._plan, self._encoders, self._pace = out, plan, plan.encoders, pace
        self._waiting: dict[Shape, list[tuple[Record, np.ndarray]]] = {}
        self._moments = np.zeros((2, plan.encoders.channels))  # of training latents: sums of z and z^2
        self._pixels = 0
        self._texts = {"captions": 0, "cut": 0}

    def ready(self, picture: Picture) -> np.ndarray:
        """Brings the picture to its shape, uint8."""
        return images.fit(picture.image, nearest(self._plan.shapes, *picture.image.size))

    def add(self, record: Record, ready: np.ndarray) -> None:
        """Encodes as soon as a batch is full."""
        waiting = self._waiting.setdefault(ready.shape[:2], [])
        waiting.append((record, ready))
        if len(waiting) == self._plan.batch_size:
            self._encode(self._waiting.pop(ready.shape[:2]))

    def close(self) -> dict[str, Any]:
        """Encodes what is left; 'moments' and 'pixels' are of the training latents, 'texts' counts captions and those cut."""
        for shape in sorted(self._waiting):
            self._encode(self._waiting[shape])
        measured = {"moments": self._moments.tolist(), "pixels": self._pixels}
        return {"files": self._files.close(), "texts": self._texts, **measured}

    def _encode(self, batch: list[tuple[Record, np.ndarray]]) -> None:
        records = [record for record, _ in batch]
        pixels_BYXZ = np.stack([pixels for _, pixels in batch])
        latents = [self._latents(pixels_BYXZ)]
        if self._plan.flip and any(record.flip for record in records):
            latents.append(self._latents(pixels_BYXZ[:, :, ::-1]))
        captions = [caption for record in records for caption in record.captions]
        self._texts["captions"] += len(captions)
        self._texts["cut"] += self._encoders.cut(captions)
        texts = self._embed(captions)
        sizes = self._encoders.width, self._encoders.length
        codec = stored.Codec(latents[0][0].shape[1:], *sizes, self._plan.text_type, self._encoders.pooled_width)
        for i, record in enumerate(records):
            own = list(itertools.islice(texts, len(record.captions)))
            encoded = stored.EncodedRecord(
                id=record.id,
                captions=record.captions,
                weights=record.weights,
                meta=record.meta,
                latents=tuple((mean[i], std[i]) for mean, std in latents[: 1 + record.flip]),
                texts=tuple((tokens, mask_T) for tokens, mask_T, _ in own),
                pooled=tuple(pooled_M for _, _, pooled_M in own if pooled_M is not None),
            )
            self._files.write(layout.split_name(record.split, latents[0][0].shape[1:3]), codec.fields(encoded))
            if record.split == TRAIN:
                self._measure(*encoded.latents[0])

    def _embed(self, captions: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """Tokens, mask and pooled vector of captions; a picture may have many, so that not all are held with their padding."""
        for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
            with self._pace.step("texts"):
                text_BTM, mask_BT, pooled_BM = self._encoders.texts(captions[start : start + _CAPTIONS_AT_ONCE])
            pooled = [None] * len(mask_BT) if pooled_BM is None else pooled_BM
            for text_TM, mask_T, pooled_M in zip(text_BTM, mask_BT, pooled, strict=True):
                yield text_TM[mask_T], mask_T, pooled_M

    def _latents(self, pixels_BYXZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float16 mean and deviation."""
        filling = np.repeat(pixels_BYXZ[-1:], self._plan.batch_size - len(pixels_BYXZ), 0)
        with self._pace.step(pixels_BYXZ.shape[1:3], len(pixels_BYXZ)):
            found = self._encoders.images(images.to_float(np.concatenate([pixels_BYXZ, filling])))
        with np.errstate(over="ignore"):  # it is looked for below
            mean, std = (array[: len(pixels_BYXZ)].astype(np.float16) for array in found)
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise UserError("latents leave the range of float16: is the autoencoder's scaling_factor right?")
        return mean, std

    def _measure(self, mean_YXZ: np.ndarray, std_YXZ: np.ndarray) -> None:
        mean, std = (array.astype(np.float64).reshape(-1, array.shape[-1]) for array in (mean_YXZ, std_YXZ))
        self._moments += [mean.sum(0), (mean**2 + std**2).sum(0)]
        self._pixels += len(mean)


def latent_moments(facts: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and standard deviation of each channel over units, (Z,) float32 each."""
    pixels = sum(fact["pixels"] for fact in facts)
    first, second = sum(np.array(fact["moments"]) for fact in facts) / pixels
    return first.astype(np.float32), np.sqrt(np.maximum(second - first**2, 1e-12)).astype(np.float32)
