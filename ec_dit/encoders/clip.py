"""CLIP's text tower (OpenAI's, and OpenCLIP's as transformers publishes it), frozen: alone, or out of a whole CLIP's files."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import hub, name_map
from ec_dit.core.name_map import LINEAR, SAME
from ec_dit.encoders import clip_tower, weights
from ec_dit.encoders.clip_tower import ClipBlock, TowerSpec
from ec_dit.nn import param
from ec_dit.nn.norms import LayerNorm
from ec_dit.nn.stack import Stack

# Of a whole CLIP; and positions counted from 0, which older files keep as a tensor.
IGNORED = ("vision_model.", "visual_projection.", "logit_scale", "text_model.embeddings.position_ids")
_PROJECTION = "text_projection.weight"
_LEGACY_EOS = 2  # what config.json files from before 2023 say, wrongly


@dataclass(frozen=True)
class ClipSpec(TowerSpec):
    """Sizes of a text tower.

    Attributes:
        length: most tokens of a text.
        eos_id: the end-of-text token, where texts are pooled; None: the largest id of the text, as `_LEGACY_EOS` asks for.
    """

    vocab_size: int
    length: int
    eos_id: int | None

    @classmethod
    def from_config(cls, found: Mapping[str, Any], where: str) -> "ClipSpec":
        """The spec that a config.json, read from `where`, describes; a whole CLIP's, too.

        Values that may be missing there are those of CLIP ViT-B/32, as transformers has it. The spec has a projection where
        the config gives its width; `load` takes it away where the files hold none.

        Raises:
            UserError: for another model's, or a setting that is not supported.
        """
        found, where = clip_tower.config(found, where, "text")
        sizes = clip_tower.sizes(found, where, hidden_size=512, num_attention_heads=8, intermediate_size=2048)
        rest = hub.fields(found, where, vocab_size=49408, max_position_embeddings=77, eos_token_id=49407)
        eos = rest["eos_token_id"]
        return cls(
            **sizes,
            vocab_size=rest["vocab_size"],
            length=rest["max_position_embeddings"],
            eos_id=None if eos == _LEGACY_EOS else eos,
        )


class ClipOutput(NamedTuple):
    """What diffusion models take from a text tower.

    Attributes:
        last_BTM: states of all tokens after the last block and the final norm.
        penultimate_BTM: states that enter the last block, not normed.
        pooled_BM: the last state of the end-of-text token, projected if the published model does.
    """

    last_BTM: jax.Array
    penultimate_BTM: jax.Array
    pooled_BM: jax.Array


class ClipText(nnx.Module):
    """Token ids (B, T) -> ClipOutput; sums over blocks are kept in float32.

    There is no mask: no token sees a later one, and so none of the text sees the padding.
    """

    def __init__(self, spec: ClipSpec, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.spec, self.dtype = spec, dtype
        key = rngs.params()
        self.token_VM = param.table(jax.random.normal(key, (spec.vocab_size, spec.width)) * 0.02, (None, "embed"))
        key = rngs.params()
        self.position_TM = param.table(jax.random.normal(key, (spec.length, spec.width)) * 0.02, (None, "embed"))
        self.stack = Stack(
            lambda key: ClipBlock(spec, causal=True, dtype=dtype, rngs=nnx.Rngs(key)),
            jax.random.split(rngs.params(), spec.num_blocks),
        )
        self.norm_out = LayerNorm(spec.width, eps=spec.eps)
        if spec.projection is not None:
            self.w_pooled_MD = param.matrix(rngs, (spec.width, spec.projection), (None, "embed"), "io")

    def __call__(self, ids_BT: jax.Array) -> ClipOutput:
        """Embeds captions of at most `spec.length` tokens, an end-of-text token among them."""
        tokens, pooled = ("batch", None, None), ("batch", None)
        run = param.per_device(
            self,
            ClipText._forward,
            (("batch", None),),
            ClipOutput._make((tokens, tokens, pooled)),
            name="captions of the batch",
        )
        return run(ids_BT)

    def _forward(self, ids_BT: jax.Array) -> ClipOutput:
        """The captions of one device."""
        tokens_BTM = param.gather(self.token_VM, self.dtype)[ids_BT].astype(jnp.float32)
        x_BTM = tokens_BTM + param.gather(self.position_TM)[: ids_BT.shape[1]]
        # Beside the states themselves go those that entered the block: after the last, the penultimate.
        (x_BTM, before_BTM), _ = self.stack((x_BTM, x_BTM), lambda block, xs: ((block(xs[0]), xs[0]), None))
        last_BTM = self.norm_out(x_BTM)
        eos_id = self.spec.eos_id
        end_B = jnp.argmax(ids_BT if eos_id is None else ids_BT == eos_id, axis=1)
        pooled_BM = jnp.take_along_axis(last_BTM, end_B[:, None, None], axis=1)[:, 0]
        if self.spec.projection is not None:
            pooled_BM = pooled_BM.astype(self.dtype) @ param.gather(self.w_pooled_MD, self.dtype)
        return ClipOutput(*(a.astype(self.dtype) for a in (last_BTM, before_BTM, pooled_BM)))


def entries(names: Iterable[str], spec: ClipSpec) -> name_map.Table:
    """Which tensors of the published files hold the parameters `names`."""
    plain: name_map.Rules = {
        "token_VM": ("text_model.embeddings.token_embedding.weight", SAME),
        "position_TM": ("text_model.embeddings.position_embedding.weight", SAME),
        "norm_out/scale_D": ("text_model.final_layer_norm.weight", SAME),
        "norm_out/shift_D": ("text_model.final_layer_norm.bias", SAME),
        "w_pooled_MD": (_PROJECTION, LINEAR),
    }
    return name_map.table(names, plain, {"stack/blocks/": (range(spec.num_blocks), clip_tower.rules("text"))})


def load(path: str | Path, mesh: Mesh, dtype: jnp.dtype) -> tuple[ClipSpec, weights.Frozen]:
    """The text tower of a published folder, or of one file in it, over `mesh`, in memory and computing in `dtype`.

    Raises:
        UserError: if the folder holds something else, or damaged files.
    """
    files = hub.TensorFiles(path, functools.partial(clip_tower.name, tower="text"))
    spec = clip_tower.described(files, ClipSpec.from_config, _PROJECTION, "CLIPTextModelWithProjection")

    def make(rngs: nnx.Rngs) -> ClipText:
        return ClipText(spec, dtype=dtype, rngs=rngs)

    return spec, weights.load(make, functools.partial(entries, spec=spec), files, mesh, dtype, IGNORED)
