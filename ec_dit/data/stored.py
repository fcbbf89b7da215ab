"""What a data set's files hold of one example: a picture as it is, or what frozen encoders made of it and its captions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

from ec_dit.data.records import Record

Fields = Mapping[str, bytes | bool]  # of a tf.train.Example
TEXT_TYPES = ("bfloat16", "int8")
_LATENT = np.dtype(np.float16)  # finer than bfloat16, and latents are far inside its range


@dataclass(frozen=True)
class EncodedRecord:
    """One picture with its captions, as frozen encoders see them.

    Attributes:
        id, captions, weights, meta: as in Record.
        latents: one latent, or two where the picture may be mirrored, each a pair of mean_YXZ and std_YXZ; float16.
        texts: of each caption its tokens (n, M), bfloat16 or float32, and mask_T, with n True.
        pooled: of each caption one vector, bfloat16 or float32; empty where no encoder gives one.
    """

    id: str
    captions: tuple[str, ...]
    weights: tuple[float, ...]
    latents: tuple[tuple[np.ndarray, np.ndarray], ...]
    texts: tuple[tuple[np.ndarray, np.ndarray], ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    pooled: tuple[np.ndarray, ...] = ()

    @property
    def caption(self) -> str:
        """The first caption."""
        return self.captions[0]

    def text_TM(self, caption: int = 0) -> np.ndarray:
        """Fills up the embedding of a caption, bfloat16, with zeros where it has no token."""
        tokens, mask_T = self.texts[caption]
        text_TM = np.zeros((len(mask_T), tokens.shape[1]), ml_dtypes.bfloat16)
        text_TM[mask_T] = tokens
        return text_TM


def _facts(record: Record | EncodedRecord) -> dict[str, bytes | bool]:
    return {
        "id": record.id.encode(),
        "captions": json.dumps(record.captions, ensure_ascii=False).encode(),
        "weights": json.dumps(record.weights).encode(),
        "meta": json.dumps(dict(record.meta), sort_keys=True, ensure_ascii=False).encode(),
    }


def _from_facts(example: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": example["id"].decode(),
        "captions": tuple(json.loads(example["captions"])),
        "weights": tuple(json.loads(example["weights"])),
        "meta": json.loads(example["meta"]),
    }


_FACTS = {"id": tfds.features.Text(), "captions": tfds.features.Text(doc="JSON list")}
_FACTS |= {"weights": tfds.features.Text(doc="JSON list"), "meta": tfds.features.Text(doc="JSON object")}


def picture_features() -> tfds.features.FeaturesDict:
    """Describes the fields of pictures as they are."""
    image = tfds.features.Image(doc="PNG, JPEG or WebP")
    return tfds.features.FeaturesDict(_FACTS | {"image": image, "flip": tfds.features.Scalar(dtype=np.bool_)})


def picture_fields(record: Record) -> Fields:
    """Gives the fields of a picture as it is."""
    return _facts(record) | {"image": record.image, "flip": record.flip}


def picture_record(example: Mapping[str, Any], split: str) -> Record:
    """Makes the record of `picture_fields` again; the image not decoded."""
    return Record(**_from_facts(example), image=example["image"], split=split, flip=bool(example["flip"]))


def encoded_features() -> tfds.features.FeaturesDict:
    """Describes the fields of latents and embeddings; arrays are their bytes, little-endian, row by row."""
    text = tfds.features.Text
    return tfds.features.FeaturesDict(
        _FACTS
        | {
            "latent": text(
                doc="float16 (1 or 2, 2, Y, X, Z): of the picture, then of its mirror image: mean, deviation"
            ),
            "text": text(
                doc="bfloat16 or int8 (n, M): the tokens of all captions, one after the other, without padding"
            ),
            "scale": text(doc="float32 (n,), of each row of int8 text; nothing for bfloat16"),
            "pooled": text(doc="bfloat16 (captions, M): a vector of each caption; nothing where no encoder gives one"),
            "mask": text(doc="bits (captions, T), the first in the highest bit: where tokens stand"),
        }
    )


class Codec:
    """Encoded records as fields of a file, and back.

    Args:
        shape_YXZ: of the latents.
        text_width, text_length: M and T.
        text_type: bfloat16; or int8, one scale a token, for half of the bytes.
        pooled_width: M of a whole caption's vector; 0: there is none.
    """

    def __init__(
        self,
        shape_YXZ: tuple[int, int, int],
        text_width: int,
        text_length: int,
        text_type: str,
        pooled_width: int = 0,
    ):
        self._pooled_width = pooled_width
        self._shape, self._width, self._length, self._int8 = shape_YXZ, text_width, text_length, text_type == "int8"

    def fields(self, record: EncodedRecord) -> Fields:
        """Gives what a file holds of a record."""
        masks, tokens = [mask for _, mask in record.texts], np.concatenate([text for text, _ in record.texts])
        text, scale = _to_int8(tokens) if self._int8 else (tokens.astype(ml_dtypes.bfloat16), np.zeros(0, np.float32))
        return _facts(record) | {
            "latent": np.asarray(record.latents, _LATENT).tobytes(),
            "text": text.tobytes(),
            "scale": scale.tobytes(),
            "pooled": np.asarray(record.pooled, ml_dtypes.bfloat16).tobytes(),
            "mask": np.packbits(np.stack(masks), axis=1).tobytes(),
        }

    def record(self, example: Mapping[str, Any]) -> EncodedRecord:
        """Makes the record of `fields` again. Raises ValueError where the bytes do not fill the shapes."""
        facts = _from_facts(example)
        latents = np.frombuffer(example["latent"], _LATENT).reshape(-1, 2, *self._shape)
        if len(latents) not in (1, 2):
            raise ValueError(f"{len(latents)} latents, not one or two")
        bits = np.frombuffer(example["mask"], np.uint8).reshape(len(facts["captions"]), -(-self._length // 8))
        masks = np.unpackbits(bits, axis=1, count=self._length).astype(bool)
        if self._int8:
            tokens = np.frombuffer(example["text"], np.int8).reshape(-1, self._width).astype(np.float32)
            tokens *= np.frombuffer(example["scale"], np.float32).reshape(len(tokens), 1)
        else:
            tokens = np.frombuffer(example["text"], ml_dtypes.bfloat16).reshape(-1, self._width)
        counts = masks.sum(1)
        if counts.sum() != len(tokens):
            raise ValueError(f"{len(tokens)} tokens where the masks have {counts.sum()}")
        parts = np.split(tokens, np.cumsum(counts)[:-1])
        pairs = tuple((mean, std) for mean, std in latents)
        pooled: tuple[np.ndarray, ...] = ()
        if self._pooled_width:
            pooled_BM = np.frombuffer(example["pooled"], ml_dtypes.bfloat16).reshape(len(masks), self._pooled_width)
            pooled = tuple(pooled_BM)
        return EncodedRecord(**facts, latents=pairs, texts=tuple(zip(parts, masks, strict=True)), pooled=pooled)


def _to_int8(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of int8, and float32 scales that make them the tokens again: |error| <= scale / 2."""
    scale = np.maximum(np.abs(tokens).max(axis=1), 1e-12).astype(np.float32) / 127
    return np.clip(np.rint(tokens / scale[:, None]), -127, 127).astype(np.int8), scale
