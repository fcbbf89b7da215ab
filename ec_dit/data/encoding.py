"""What the records of an encoded data set were made with, and what training and sampling need of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy

from ec_dit.core import json_file
from ec_dit.core.differences import differences
from ec_dit.data.captions import PLAIN, caption_facts


@dataclass(frozen=True)
class Encoding:
    """How pictures and captions were encoded.

    Attributes:
        facts: JSON: 'autoencoder' (sha256, factor, channels, path), 'text' (sha256s, width, pooled, length, type, paths, and
            the fields of CaptionSpec), 'pictures' (resolution, shapes, ...), 'computed' (dtype, devices, jax).
        null_text_TM: float32, the embedding of the empty caption; null_mask_T: where its tokens are.
        mean_Z, std_Z: float32, of the training latents, each channel by itself.
        null_pooled_M: float32, the pooled vector of the empty caption; None where no encoder gives one.
    """

    facts: Mapping[str, Any]
    null_text_TM: np.ndarray
    null_mask_T: np.ndarray
    mean_Z: np.ndarray
    std_Z: np.ndarray
    null_pooled_M: np.ndarray | None = None

    def to_bytes(self) -> bytes:
        """Writes a safetensors file."""
        arrays = {"null_text": self.null_text_TM, "null_mask": self.null_mask_T, "mean": self.mean_Z, "std": self.std_Z}
        if self.null_pooled_M is not None:
            arrays["null_pooled"] = self.null_pooled_M
        return safetensors.numpy.save(arrays, {"facts": json.dumps(dict(self.facts), sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes, where: str, advice: str = "") -> "Encoding":
        """Reads what `to_bytes` wrote.

        Args:
            where: they come from, and `advice` on what to do, for the message.

        Raises:
            UserError: if the bytes are damaged, or of something else.
        """
        with json_file.whole(where, advice):
            length = int.from_bytes(data[:8], "little")
            facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["facts"])
            try:
                arrays = safetensors.numpy.load(data)
            except safetensors.SafetensorError as error:
                raise json_file.damaged(where, str(error), advice) from error
            facts["text"] = _EARLIER | facts["text"]
            null_text = arrays["null_text"], arrays["null_mask"]
            found = cls(facts, *null_text, arrays["mean"], arrays["std"], arrays.get("null_pooled"))
            found._check()
            return found

    def _check(self) -> None:
        """ValueError, or what a missing part raises, where facts and arrays are not what they should be."""
        for part, kinds in _FACTS.items():
            for key, kind in kinds.items():
                if type(self.facts[part][key]) is not kind:
                    raise ValueError(f"{part}.{key} is {self.facts[part][key]!r}")
        length, width = self.facts["text"]["length"], self.facts["text"]["width"]
        channels = (self.facts["autoencoder"]["channels"],)
        found = {"null_text": self.null_text_TM, "null_mask": self.null_mask_T, "mean": self.mean_Z, "std": self.std_Z}
        shapes = {"null_text": (length, width), "null_mask": (length,), "mean": channels, "std": channels}
        if self.facts["text"]["pooled"]:
            found["null_pooled"] = np.zeros(0) if self.null_pooled_M is None else self.null_pooled_M
            shapes["null_pooled"] = (self.facts["text"]["pooled"],)
        for name, array in found.items():
            if array.shape != shapes[name] or not np.isfinite(array).all():
                raise ValueError(f"{name} is not {shapes[name]} finite numbers")

    @property
    def autoencoder_path(self) -> str:
        """Where the autoencoder lay."""
        return str(self.facts["autoencoder"]["path"])

    def difference(self, other: "Encoding") -> list[str]:
        """Gives lines 'autoencoder.sha256: old -> new' for all that makes latents or embeddings of another kind."""
        return list(map(str, differences(_kind(self.facts), _kind(other.facts))))


_EARLIER = {"pooled": 0} | caption_facts(PLAIN)  # what data sets were before they could be otherwise
_FACTS = {
    "autoencoder": {"sha256": str, "factor": int, "channels": int, "path": str},
    "text": {"sha256": list, "width": int, "pooled": int, "length": int, "type": str, "paths": list}
    | {name: type(value) for name, value in caption_facts(PLAIN).items()},
}


def _kind(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that a model depends on: the encoders, and what they were given; not where they lay, or what is stored how."""
    return {
        part: {key: value for key, value in facts[part].items() if key not in ("path", "paths", "type", "pooled")}
        for part in ("autoencoder", "text")
    }
