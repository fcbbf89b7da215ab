"""The frozen encoders of a data set: an autoencoder and text encoders, and what identifies them."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ec_dit.core import hub
from ec_dit.core.errors import UserError
from ec_dit.data.batch import Text
from ec_dit.data.captions import PLAIN, CaptionSpec, caption_facts
from ec_dit.encoders import text
from ec_dit.encoders.autoencoder import Autoencoder
from ec_dit.encoders.text import TextEncoders


class FrozenEncoders:
    """Encodes pictures and captions; implements data.units.Encoders.

    Args:
        autoencoder_path, text_paths: folders as hubs publish them, or names of such.
        length: T.
        spec: how captions are read.
        dtype: of the text encoders; the autoencoder runs in float32.

    Attributes:
        factor, channels: of latents.
        width, length: M and T.
        pooled_width: M of a whole caption's vector; 0: no encoder gives one.

    Raises:
        UserError: if folders are missing, damaged or of something else, or do not go together.
    """

    def __init__(
        self,
        autoencoder_path: str,
        text_paths: Sequence[str],
        length: int,
        mesh: Mesh,
        *,
        spec: CaptionSpec = PLAIN,
        dtype: jnp.dtype = jnp.float32,
    ):
        self._autoencoder = Autoencoder.load(autoencoder_path, mesh)
        self._texts = TextEncoders.load(text_paths, length, mesh, dtype, spec)
        self._spec, self._paths, self._dtype = spec, (autoencoder_path, *text_paths), jnp.dtype(dtype)
        self.factor, self.channels = self._autoencoder.factor, self._autoencoder.channels
        self.width, self.length, self.pooled_width = self._texts.width, self._texts.length, self._texts.pooled_width
        self._devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"

    def images(self, image_BYXZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the latents of pictures in -1..1, float32."""
        return self._autoencoder.encode(image_BYXZ)

    def texts(self, captions: Sequence[str]) -> Text:
        """Embeddings of captions, float32."""
        return Text(*self._texts.encode(captions))

    def cut(self, captions: Sequence[str]) -> int:
        """How many captions are longer than what is encoded of them."""
        return self._texts.cut(captions)

    def facts(self) -> dict[str, Any]:
        """JSON: what a model depends on ('autoencoder', 'text'), and what else may change a bit ('computed')."""
        autoencoder, *texts = self._paths
        sizes = {"width": self.width, "length": self.length, "pooled": self.pooled_width}
        return {
            "autoencoder": autoencoder_facts(autoencoder) | {"factor": self.factor, "channels": self.channels},
            "text": text_facts(texts) | sizes | caption_facts(self._spec),
            "computed": {"text": self._dtype.name, "devices": self._devices, "jax": jax.__version__},
        }


def folders(text: str) -> list[str]:
    """The folders, or names of such, that a flag or a config key gives: one, several with commas between them, or a JSON list.

    Raises:
        UserError: for what begins as a list and is none.
    """
    if text.startswith("["):
        with contextlib.suppress(ValueError):
            found = json.loads(text)
            if found and isinstance(found, list) and all(isinstance(path, str) for path in found):
                return found
        raise UserError(f'{text} is no list of folders, such as ["first", "second"].')
    return [text] if Path(text).exists() else [path.strip() for path in text.split(",")]


def joined(paths: Sequence[str]) -> str:
    """The inverse of `folders`."""
    return json.dumps(list(paths)) if any(set(path) & set(",[") for path in paths) else ",".join(paths)


def autoencoder_facts(path: str) -> dict[str, Any]:
    """Where an autoencoder lies, or its name with its commit, and the hash of its weights and config.json."""
    return {"path": hub.pinned(path), "sha256": hub.sha256(hub.files(path))}


def text_facts(paths: Sequence[str]) -> dict[str, Any]:
    """Where text encoders lie, or their names with their commits, and the hashes of their weights, config.json and tokenizer."""
    hashes = [hub.sha256([*hub.files(path), *text.tokenizer_files(path)]) for path in paths]
    return {"paths": [hub.pinned(path) for path in paths], "sha256": hashes}


def noted(autoencoder: str = "", texts: Sequence[str] = ()) -> dict[str, str]:
    """The hash of each folder by its path, for `check_noted`."""
    found = {}
    if autoencoder:
        facts = autoencoder_facts(autoencoder)
        found[facts["path"]] = facts["sha256"]
    if texts:
        facts = text_facts(texts)
        found |= dict(zip(facts["paths"], facts["sha256"], strict=True))
    return found


def check_noted(known: Mapping[str, str], autoencoder: str = "", texts: Sequence[str] = ()) -> None:
    """Compares folders with what `noted` found in them when a model was converted; others pass.

    Raises:
        UserError: naming one whose files changed since.
    """
    autoencoder, *texts = (path if path and hub.pinned(path) in known else "" for path in (autoencoder, *texts))
    for path, digest in noted(autoencoder, [path for path in texts if path]).items():
        if digest != known[path]:
            raise UserError(
                f"{path} is not what it was when this model was converted: a file in it is damaged, or was changed. Download it "
                f"again, or convert the model again."
            )


def autoencoder_difference(facts: Mapping[str, Any], path: str) -> str:
    """How the autoencoder in a folder differs from the one that latents were made with; '' if it is the same."""
    made = facts["autoencoder"]
    found = autoencoder_facts(path)
    if made["sha256"] == found["sha256"]:
        return ""
    return f"made with the autoencoder {made['path']} ({made['sha256'][:12]}), not {found['path']} ({found['sha256'][:12]})"


def text_difference(facts: Mapping[str, Any], paths: Sequence[str]) -> str:
    """How text encoders in folders differ from those that embeddings were made with; '' if they are the same."""
    made = facts["text"]
    found = text_facts(paths)
    if made["sha256"] == found["sha256"]:
        return ""
    before, now = (
        ", ".join(f"{path} ({digest[:12]})" for path, digest in zip(each["paths"], each["sha256"], strict=True))
        for each in (made, found)
    )
    return f"made with the text encoder {before}, not {now}"
