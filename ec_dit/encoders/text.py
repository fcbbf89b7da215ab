"""Captions to the embeddings of frozen text encoders: of one published folder, or of several joined as SD3 or Flux join them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import hub, json_file, sharding
from ec_dit.core.errors import UserError
from ec_dit.core.padding import padded
from ec_dit.data.captions import PLAIN, CaptionSpec, Join
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.encoders import clip, clip_tokenizer, json_tokenizer, qwen3, t5
from ec_dit.encoders.clip_tokenizer import ClipTokenizer
from ec_dit.encoders.qwen3_tokenizer import Qwen3Tokenizer
from ec_dit.encoders.t5_tokenizer import T5JsonTokenizer

Kind = Literal["t5", "clip", "qwen3"]
States = Literal["last", "penultimate", "none"]

_KINDS: dict[str, Kind] = {"t5": "t5", "clip": "clip", "clip_text_model": "clip"}  # by model_type
_KINDS |= dict.fromkeys(qwen3.KINDS, "qwen3")
PIPELINE = ("text_encoder", "text_encoder_2", "text_encoder_3")  # folders of a pipeline, in the order of their join
_T5_TOKENIZER = "spiece.model"
_TOKENIZERS: dict[Kind, tuple[str, ...]] = {
    "t5": (_T5_TOKENIZER, json_tokenizer.JSON),
    "clip": (clip_tokenizer.JSON, clip_tokenizer.VOCAB),
    "qwen3": (json_tokenizer.JSON,),
}


class Encoded(NamedTuple):
    """Captions as NumPy arrays.

    Attributes:
        text_BTM: float32 embeddings.
        mask_BT: True on tokens of the captions, the end-of-text token included.
        pooled_BM: float32, one vector a caption; None where no encoder gives one.
    """

    text_BTM: np.ndarray
    mask_BT: np.ndarray
    pooled_BM: np.ndarray | None


class TextEncoder:
    """One text encoder with its tokenizer, from a folder as hubs publish it, over a mesh.

    Args:
        path: of the folder, or of one file of weights in it. The tokenizer lies in the folder, or beside it as in diffusers'
            pipelines: that of text_encoder_2 in tokenizer_2.
        dtype: of the parameters in memory and of the computation: float32, or bfloat16 for half the memory.
        layer: of a decoder: states of so many layers before the last.

    Attributes:
        kind: 't5', 'clip' or 'qwen3'.
        width: M.
        limit: most tokens of a text; None: any number.
        pooled_width: of CLIP's pooled vector; 0 for others, which have none.

    Raises:
        UserError: if files are missing, damaged, or those of something else; for float16, whose range T5 leaves.
    """

    def __init__(self, path: str | Path, mesh: Mesh, dtype: jnp.dtype = jnp.float32, *, layer: int = 0):
        if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
            raise UserError(
                f"text encoders run in float32 or bfloat16, not {jnp.dtype(dtype).name}: T5 leaves its range."
            )
        self.folder, self._mesh = hub.folder_of(hub.local(path)), mesh
        self.kind = _kind(self.folder)
        self.limit: int | None = None
        self.pooled_width = 0
        self.tokenizer = _tokenizer(self.folder, self.kind)
        if layer and self.kind != "qwen3":
            raise UserError(f"{self.folder} is no decoder: leave text.layer at 0.")
        spec: t5.T5Spec | clip.ClipSpec | qwen3.Qwen3Spec
        if self.kind == "qwen3":
            spec, (graphdef, self._params) = qwen3.load(path, mesh, dtype, layer)
        elif self.kind == "t5":
            spec, (graphdef, self._params) = t5.load(path, mesh, dtype)
        else:
            spec, (graphdef, self._params) = clip.load(path, mesh, dtype)
            self.limit, self.pooled_width = spec.length, spec.projection or spec.width
        self.width = spec.width
        if self.tokenizer.vocab_size > spec.vocab_size:
            raise UserError(
                f"{self.folder} embeds {spec.vocab_size} tokens, but its tokenizer has {self.tokenizer.vocab_size}: "
                "it is another model's."
            )

        def forward(params: Any, ids_BT: jax.Array, mask_BT: jax.Array, states: States) -> tuple[Any, Any]:
            module = nnx.merge(graphdef, params)
            if isinstance(module, t5.T5Encoder | qwen3.Qwen3Text):
                return module(ids_BT, mask_BT), None
            out: clip.ClipOutput = module(ids_BT)
            text_BTM = out.penultimate_BTM if states == "penultimate" else out.last_BTM
            return text_BTM[..., :0] if states == "none" else text_BTM, out.pooled_BM

        everywhere = sharding.replicated(mesh)  # every process gets every caption
        self._forward = jax.jit(forward, static_argnames="states", out_shardings=everywhere)

    def encode(
        self, captions: Sequence[str], length: int, states: States = "last", *, reads_padding: bool = False
    ) -> Encoded:
        """One batch, compiled once for its size.

        Args:
            captions: as many as `sharding.batch_ways` of the mesh divides; every process gives all of them.
            length: T.
            states: which of CLIP's become text_BTM: 'last' are normed, 'penultimate' not, 'none' leave it a width of 0.
            reads_padding: what fills up a caption counts as text, for this encoder and for who reads what it gives.
        """
        ids_BT, mask_BT = self.tokenizer.encode(captions, length)
        mask_BT = np.ones_like(mask_BT) if reads_padding else mask_BT
        with jax.set_mesh(self._mesh):
            out = self._forward(self._params, *sharding.place((ids_BT, mask_BT), self._mesh), states=states)
        text_BTM, pooled_BM = jax.tree.map(lambda a: np.asarray(a, np.float32), jax.device_get(out))
        return Encoded(text_BTM, mask_BT, pooled_BM)


class TextEncoders:
    """One or several text encoders as one.

    One alone gives its last states. Joined as 'sd3', CLIPs' penultimate states lie side by side in width, filled up with zeros to
    the width of T5, whose states follow along the sequence; pooled vectors lie side by side. Joined as 'flux', T5 gives the
    states and CLIP the pooled vector alone.

    Args:
        lengths: T of each encoder.
        spec: how captions are read and encoders joined.
        batch_size: captions that are encoded at a time, rounded up to a multiple of what the mesh splits a batch into.

    Attributes:
        width: M of the text.
        length: T of the text.
        pooled_width: of the pooled vector; 0: there is none.

    Raises:
        UserError: if the encoders or lengths do not go together.
    """

    def __init__(
        self,
        encoders: Sequence[TextEncoder],
        lengths: Sequence[int],
        mesh: Mesh,
        spec: CaptionSpec = PLAIN,
        batch_size: int = 32,
    ):
        if not encoders:
            raise UserError("no text encoder is given.")
        _check_lengths(encoders, lengths)
        self._encoders, self._lengths, self._spec, join = encoders, lengths, spec, spec.join
        self._clips = [i for i, encoder in enumerate(encoders) if encoder.kind == "clip"]
        self._t5s = [i for i, encoder in enumerate(encoders) if encoder.kind != "clip"]  # or others of tokens alone
        if join == "flux" and not (self._clips and self._t5s):
            raise UserError("text encoders joined as flux are a T5, for the tokens, and a CLIP, for the pooled vector.")
        if join == "sd3" and len({lengths[i] for i in self._clips}) > 1:
            given = ", ".join(str(lengths[i]) for i in self._clips)
            raise UserError(f"CLIP's tokens lie side by side: give all of them one length, not {given}.")
        self._clip_states: States = "none" if join == "flux" else "last" if len(encoders) == 1 else "penultimate"
        beside = [] if join == "flux" else self._clips
        self.width = max([sum(encoders[i].width for i in beside), *(encoders[i].width for i in self._t5s)])
        self.length = sum(lengths[i] for i in [*beside[:1], *self._t5s])
        self.pooled_width = sum(encoder.pooled_width for encoder in encoders)
        self.batch_size = sharding.even_batch(batch_size, mesh)

    @classmethod
    def load(
        cls,
        paths: Sequence[str | Path],
        lengths: Sequence[int] | int,
        mesh: Mesh,
        dtype: jnp.dtype = jnp.float32,
        spec: CaptionSpec = PLAIN,
        batch_size: int = 32,
    ) -> "TextEncoders":
        """Reads the encoders from their folders.

        Args:
            lengths: of each; or T of the whole text, of which CLIPs get what they can take and T5 the rest.

        Raises:
            UserError: as this class and TextEncoder do.
        """
        encoders = [TextEncoder(path, mesh, dtype, layer=spec.layer) for path in paths]
        if isinstance(lengths, int):
            lengths = _shares(encoders, lengths, spec.join)
        return cls(encoders, lengths, mesh, spec, batch_size)

    def encode(self, captions: Sequence[str]) -> Encoded:
        """Embeds any number of captions; every process gives, and gets, all of them."""
        texts, masks, pooled = [], [], []
        prompts = [self._spec.prompt(caption) for caption in captions or [""]]  # of no captions, arrays of no rows
        for _, batch in padded(prompts, self.batch_size, self._spec.prompt("")):
            text_BTM, mask_BT, pooled_BM = self._batch(batch)
            texts.append(text_BTM)
            masks.append(mask_BT)
            if pooled_BM is not None:
                pooled.append(pooled_BM)
        real = len(captions)
        all_pooled = np.concatenate(pooled)[:real] if pooled else None
        return Encoded(np.concatenate(texts)[:real], np.concatenate(masks)[:real], all_pooled)

    def cut(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than an encoder takes, by its own tokenizer."""
        pairs = list(zip(self._encoders, self._lengths, strict=True))
        prompts = [self._spec.prompt(caption) for caption in captions]
        return sum(any(encoder.tokenizer.length(text) > length for encoder, length in pairs) for text in prompts)

    def _batch(self, captions: Sequence[str]) -> Encoded:
        """Prompts of one batch."""
        outs = [
            encoder.encode(captions, length, self._clip_states, reads_padding=self._spec.padding == "read")
            for encoder, length in zip(self._encoders, self._lengths, strict=True)
        ]
        clips, t5s = [outs[i] for i in self._clips], [outs[i] for i in self._t5s]
        parts = [(out.text_BTM, out.mask_BT) for out in t5s]
        if clips and self._clip_states != "none":
            side_by_side_BTM = np.concatenate([out.text_BTM for out in clips], axis=2)
            parts.insert(0, (side_by_side_BTM, np.logical_or.reduce([out.mask_BT for out in clips])))
        texts = [np.pad(text_BTM, ((0, 0), (0, 0), (0, self.width - text_BTM.shape[2]))) for text_BTM, _ in parts]
        pooled = [out.pooled_BM for out in clips if out.pooled_BM is not None]
        return Encoded(
            np.concatenate(texts, axis=1),
            np.concatenate([mask_BT for _, mask_BT in parts], axis=1),
            np.concatenate(pooled, axis=1) if pooled else None,
        )


def tokenizer_files(path: str | Path) -> list[Path]:
    """The files of the tokenizer of the encoder in a folder, or of one file of weights in it.

    Raises:
        UserError: if they are missing, or the folder holds no text encoder.
    """
    folder = hub.folder_of(hub.local(path))
    kind = _kind(folder)
    place = _tokenizer_folder(folder, kind)
    names: Sequence[str] = clip_tokenizer.FILES if kind == "clip" else json_tokenizer.FILES
    if kind == "t5":
        names = (_T5_TOKENIZER,) if (place / _T5_TOKENIZER).is_file() else json_tokenizer.FILES
    return [place / name for name in names if (place / name).is_file()]


def _tokenizer(folder: Path, kind: Kind) -> Tokenizer | T5JsonTokenizer | ClipTokenizer | Qwen3Tokenizer:
    place = _tokenizer_folder(folder, kind)
    if kind == "qwen3":
        return Qwen3Tokenizer(place)
    if kind == "clip":
        return ClipTokenizer.load(place)
    if (place / _T5_TOKENIZER).is_file():  # what T5 was trained with
        try:
            return Tokenizer.load(place / _T5_TOKENIZER)
        except UserError as error:
            raise UserError(f"{error}. {hub.AGAIN}") from error
    return T5JsonTokenizer(place)


def _kind(folder: Path) -> Kind:
    """What a folder's config.json describes."""
    if (folder / "model_index.json").is_file():
        inside = ", ".join(sorted(path.name for path in folder.glob("text_encoder*")))
        raise UserError(
            f"{folder} is a whole pipeline; give the folders of its text encoders: {inside or 'it has none'}."
        )
    found = hub.config(folder)
    with json_file.whole(str(folder / hub.CONFIG), hub.AGAIN):
        if kind := _KINDS.get(found.get("model_type") or _model_type(found)):
            return kind
    raise UserError(
        f"{folder / hub.CONFIG}: model_type is {found.get('model_type')!r}, architectures {found.get('architectures')}; "
        f"text encoders here are {', '.join(map(repr, _KINDS))}."
    )


def _model_type(found: Mapping[str, Any]) -> str:
    """By its architecture, where a config.json does not give it."""
    names = [str(name) for name in found.get("architectures") or ()]
    return next((kind for kind in ("t5", "clip", "qwen3") for name in names if name.lower().startswith(kind)), "")


def _tokenizer_folder(folder: Path, kind: Kind) -> Path:
    """Where the tokenizer of the encoder in `folder` lies."""
    own = folder.absolute()
    places = [folder]
    if own.name.startswith("text_encoder"):
        places.append(own.with_name(own.name.replace("text_encoder", "tokenizer", 1)))
        places += [own.with_name("processor")] if kind == "qwen3" else []
    for place in places:
        if any((place / name).is_file() for name in _TOKENIZERS[kind]):
            return place
    raise UserError(
        f"no tokenizer ({' or '.join(_TOKENIZERS[kind])}) lies in {' or '.join(map(str, places))}; download it from where the "
        "encoder comes from."
    )


def _shares(encoders: Sequence[TextEncoder], length: int, join: Join) -> list[int]:
    """The length of each encoder of a text of `length` tokens."""
    limits = [encoder.limit for encoder in encoders if encoder.limit is not None]
    if not limits or len(limits) == len(encoders):
        return [length] * len(encoders)
    clip = min(limits)  # one for all that lie side by side
    rest = length if join == "flux" else length - clip
    if rest < 1:
        raise UserError(f"of a text of {length} tokens CLIP takes {clip}, which leaves none for T5; give it more.")
    return [rest if encoder.limit is None else clip for encoder in encoders]


def _check_lengths(encoders: Sequence[TextEncoder], lengths: Sequence[int]) -> None:
    if len(lengths) != len(encoders):
        raise UserError(f"{len(encoders)} text encoders need as many lengths, not {len(lengths)}.")
    for encoder, length in zip(encoders, lengths, strict=True):
        least = 2 if encoder.kind == "clip" else 1  # the tokens that end, or start and end, a text
        most = length if encoder.limit is None else encoder.limit
        if not least <= length <= most:
            bounds = f"at least {least}" + ("" if encoder.limit is None else f" and at most {encoder.limit}")
            raise UserError(f"{encoder.folder} takes texts of {bounds} tokens; length {length} does not do.")
