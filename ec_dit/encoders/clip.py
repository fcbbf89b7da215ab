"""CLIP's text tower (OpenAI's, and OpenCLIP's as transformers publishes it), frozen: alone, or out of a whole CLIP's files."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import hub, name_map
from ec_dit.core.errors import UserError
from ec_dit.core.name_map import FLAT, LINEAR, LINEAR_INTO, SAME
from ec_dit.encoders import weights
from ec_dit.nn import param
from ec_dit.nn.attention import Attention
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.norms import LayerNorm
from ec_dit.nn.stack import Stack

# Of a whole CLIP; and positions counted from 0, which older files keep as a tensor.
IGNORED = ("vision_model.", "visual_projection.", "logit_scale", "text_model.embeddings.position_ids")
_PROJECTION = "text_projection.weight"
_PROJECTED = {"CLIPTextModelWithProjection", "CLIPModel"}  # architectures that have it
_LEGACY_EOS = 2  # what config.json files from before 2023 say, wrongly


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), OpenAI's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


@dataclass(frozen=True)
class ClipSpec:
    """Sizes of a text tower.

    Attributes:
        length: most tokens of a text.
        act: of ACTIVATIONS.
        projection: width that the pooled vector is projected to; None: it is not.
        eos_id: the end-of-text token, where texts are pooled; None: the largest id of the text, as `_LEGACY_EOS` asks for.
    """

    vocab_size: int
    width: int
    num_blocks: int
    num_heads: int
    hidden: int
    length: int
    act: str
    projection: int | None
    eos_id: int | None
    eps: float

    @classmethod
    def from_config(cls, found: Mapping[str, Any], where: str) -> "ClipSpec":
        """The spec that a config.json, read from `where`, describes; a whole CLIP's, too.

        Values that may be missing there are those of CLIP ViT-B/32, as transformers has it. The spec has a projection where
        the config gives its width; `load` takes it away where the files hold none.

        Raises:
            UserError: for another model's, or a setting that is not supported.
        """
        hub.supported(found, where, model_type=("clip", "clip_text_model"))
        if "text_config" in found or found.get("model_type") == "clip":
            outer, where = found, f"{where}, text_config"
            # Some files give values a second time, which then count.
            texts = hub.fields(outer, where, text_config={}, text_config_dict={})
            found = texts["text_config"] | texts["text_config_dict"] | {"projection_dim": outer.get("projection_dim")}
        hub.supported(found, where, hidden_act=tuple(ACTIVATIONS))
        values = hub.fields(
            found,
            where,
            vocab_size=49408,
            hidden_size=512,
            num_hidden_layers=12,
            num_attention_heads=8,
            intermediate_size=2048,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=512,
            eos_token_id=49407,
            layer_norm_eps=1e-5,
        )
        if values["hidden_size"] % values["num_attention_heads"]:
            raise UserError(
                f"{where}: hidden_size {values['hidden_size']} is not divisible by "
                f"num_attention_heads {values['num_attention_heads']}. {hub.AGAIN}"
            )
        eos = values["eos_token_id"]
        return cls(
            vocab_size=values["vocab_size"],
            width=values["hidden_size"],
            num_blocks=values["num_hidden_layers"],
            num_heads=values["num_attention_heads"],
            hidden=values["intermediate_size"],
            length=values["max_position_embeddings"],
            act=values["hidden_act"],
            projection=values["projection_dim"],
            eos_id=None if eos == _LEGACY_EOS else eos,
            eps=values["layer_norm_eps"],
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


class ClipBlock(nnx.Module):
    """Pre-norm causal attention and feed-forward layer."""

    def __init__(self, spec: ClipSpec, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, heads = spec.width, spec.num_heads
        self.norm_attention = LayerNorm(width, eps=spec.eps)
        self.attention = Attention(
            width, width, heads, heads, width // heads, bias=True, causal=True, dtype=dtype, rngs=rngs
        )
        self.norm_mlp = LayerNorm(width, eps=spec.eps)
        self.mlp = Mlp(width, spec.hidden, bias=True, act=ACTIVATIONS[spec.act], dtype=dtype, rngs=rngs)

    def __call__(self, x_BTM: jax.Array) -> jax.Array:
        """One block."""
        x_BTM += self.attention(self.norm_attention(x_BTM))
        return x_BTM + self.mlp(self.norm_mlp(x_BTM))


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
        self.stack = Stack(lambda rngs: ClipBlock(spec, dtype=dtype, rngs=rngs), spec.num_blocks, rngs=rngs)
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
    start = "text_model.encoder.layers.{i}."
    plain: name_map.Rules = {
        "token_VM": ("text_model.embeddings.token_embedding.weight", SAME),
        "position_TM": ("text_model.embeddings.position_embedding.weight", SAME),
        "norm_out/scale_D": ("text_model.final_layer_norm.weight", SAME),
        "norm_out/shift_D": ("text_model.final_layer_norm.bias", SAME),
        "w_pooled_MD": (_PROJECTION, LINEAR),
    }
    block: dict[str, tuple[str, name_map.Way]] = {
        "attention/w_o_HKD": (start + "self_attn.out_proj.weight", LINEAR_INTO),
        "attention/b_o_D": (start + "self_attn.out_proj.bias", SAME),
        "mlp/w_up_DF": (start + "mlp.fc1.weight", LINEAR),
        "mlp/b_up_F": (start + "mlp.fc1.bias", SAME),
        "mlp/w_down_FD": (start + "mlp.fc2.weight", LINEAR),
        "mlp/b_down_D": (start + "mlp.fc2.bias", SAME),
    }
    for ours, theirs in {"q": "q_proj", "k": "k_proj", "v": "v_proj"}.items():
        axes = ("DHK", "HK") if ours == "q" else ("MNK", "NK")
        block |= {
            f"attention/w_{ours}_{axes[0]}": (start + f"self_attn.{theirs}.weight", LINEAR),
            f"attention/b_{ours}_{axes[1]}": (start + f"self_attn.{theirs}.bias", FLAT),
        }
    for ours, theirs in {"norm_attention": "layer_norm1", "norm_mlp": "layer_norm2"}.items():
        block |= {
            f"{ours}/scale_D": (start + f"{theirs}.weight", SAME),
            f"{ours}/shift_D": (start + f"{theirs}.bias", SAME),
        }
    return name_map.table(names, plain, {"stack/blocks/": (range(spec.num_blocks), block)})


def load(path: str | Path, mesh: Mesh, dtype: jnp.dtype) -> tuple[ClipSpec, weights.Frozen]:
    """The text tower of a published folder, or of one file in it, over `mesh`, in memory and computing in `dtype`.

    Raises:
        UserError: if the folder holds something else, or damaged files.
    """
    files = hub.TensorFiles(path, _published_name)

    def read(found: Mapping[str, Any], where: str) -> ClipSpec:
        spec = ClipSpec.from_config(found, where)
        projects = _PROJECTION in files.tensors or _PROJECTED & set(found.get("architectures") or ())
        return spec if projects else replace(spec, projection=None)

    spec = hub.described(files.path, read)

    def make(rngs: nnx.Rngs) -> ClipText:
        return ClipText(spec, dtype=dtype, rngs=rngs)

    return spec, weights.load(make, functools.partial(entries, spec=spec), files, mesh, dtype, IGNORED)


def _published_name(name: str) -> str:
    """A tensor's name in files by transformers 4, which transformers 5 shortens in a tower alone."""
    alone = ("embeddings.", "encoder.", "final_layer_norm.")
    return f"text_model.{name}" if name.startswith(alone) else name
