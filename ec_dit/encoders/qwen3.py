"""The text tower of Qwen3 and Qwen3-VL, frozen, with weights as transformers publishes them: of the whole model, or alone.

A decoder: a token sees those before it. Of text alone the three axes of Qwen3-VL's positions are one. States may be taken some
layers before the last; later layers are then not read at all.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import hub, name_map
from ec_dit.core.errors import UserError
from ec_dit.core.name_map import LINEAR, LINEAR_INTO, SAME
from ec_dit.encoders import weights
from ec_dit.nn import param
from ec_dit.nn.attention import Attention
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.norms import RMSNorm
from ec_dit.nn.positions import Turn, turn
from ec_dit.nn.stack import Stack

KINDS = ("qwen3_vl", "qwen3_vl_text", "qwen3")  # model_type
_STARTS = ("model.language_model.", "language_model.", "model.")  # of the names of tensors, in files of whole models
_OTHERS = ("visual.", "lm_head.")  # other parts of them


@dataclass(frozen=True)
class Qwen3Spec:
    """Sizes of a text tower.

    Attributes:
        num_blocks: that are run; `published_blocks` are in the file.
        wavelengths: the base of its positions' wavelengths.
    """

    vocab_size: int
    width: int
    num_blocks: int
    published_blocks: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    wavelengths: float

    @property
    def is_whole(self) -> bool:
        """Whether its last states are taken, which a norm follows."""
        return self.num_blocks == self.published_blocks

    @classmethod
    def from_config(cls, found: Mapping[str, Any], where: str, layer: int = 0) -> "Qwen3Spec":
        """Reads a config.json.

        Args:
            layer: states of so many layers before the last are taken.

        Raises:
            UserError: naming the key, for what is not built here, or a layer that is not there.
        """
        hub.supported(found, where, model_type=KINDS)
        text = found.get("text_config", found)
        hub.supported(text, where, hidden_act="silu", attention_bias=False, rms_norm_eps=1e-6)
        sizes = hub.fields(
            text,
            where,
            vocab_size=int,
            hidden_size=int,
            num_hidden_layers=int,
            num_attention_heads=int,
            intermediate_size=int,
        )
        rest = hub.fields(text, where, num_key_value_heads=sizes["num_attention_heads"], head_dim=128)
        rope = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
        hub.supported(rope, where, rope_type=("default", "mrope"), type=("default", "mrope"))
        told = hub.fields({**text, **rope}, where, rope_theta=5_000_000.0)
        if layer >= sizes["num_hidden_layers"]:
            raise UserError(
                f"{where}: there are {sizes['num_hidden_layers']} layers; none lies {layer} before the last (config key "
                "text.layer)."
            )
        hub.divisible(sizes | rest, where, num_attention_heads="num_key_value_heads")
        return cls(
            vocab_size=sizes["vocab_size"],
            width=sizes["hidden_size"],
            num_blocks=sizes["num_hidden_layers"] - layer,
            published_blocks=sizes["num_hidden_layers"],
            num_heads=sizes["num_attention_heads"],
            num_kv_heads=rest["num_key_value_heads"],
            head_dim=rest["head_dim"],
            hidden=sizes["intermediate_size"],
            wavelengths=float(told["rope_theta"]),
        )


class Qwen3Block(nnx.Module):
    """Pre-norm causal attention and gated feed-forward layer, without biases."""

    def __init__(self, spec: Qwen3Spec, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, heads = spec.width, (spec.num_heads, spec.num_kv_heads, spec.head_dim)
        self.norm_attention = RMSNorm(width)
        self.attention = Attention(width, width, *heads, qk_norm=True, causal=True, dtype=dtype, rngs=rngs)
        self.norm_mlp = RMSNorm(width)
        self.mlp = Mlp(width, spec.hidden, gated=True, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTM: jax.Array, mask_BT: jax.Array, turn: Turn) -> jax.Array:
        """One block; x keeps its type."""
        x_BTM += self.attention(self.norm_attention(x_BTM), mask_BT=mask_BT, turn=turn).astype(x_BTM.dtype)
        return x_BTM + self.mlp(self.norm_mlp(x_BTM)).astype(x_BTM.dtype)


class Qwen3Text(nnx.Module):
    """Token ids (B, T) -> states (B, T, M). What the blocks add up stays float32."""

    def __init__(self, spec: Qwen3Spec, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.spec, self.dtype = spec, dtype
        key = rngs.params()
        self.token_VM = param.table(jax.random.normal(key, (spec.vocab_size, spec.width)), (None, "embed"))
        self.stack = Stack(
            lambda key: Qwen3Block(spec, dtype=dtype, rngs=nnx.Rngs(key)),
            jax.random.split(rngs.params(), spec.num_blocks),
        )
        self.norm_out = RMSNorm(spec.width) if spec.is_whole else None

    def __call__(self, ids_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Embeds texts that are filled up at their end; what `mask_BT` hides is not attended to."""
        run = param.per_device(
            self,
            Qwen3Text._forward,
            (("batch", None), ("batch", None)),
            ("batch", None, None),
            name="captions of the batch",
        )
        return run(ids_BT, mask_BT)

    def _forward(self, ids_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """The captions of one device."""
        x_BTM = param.gather(self.token_VM, self.dtype)[ids_BT].astype(jnp.float32)
        places_T = np.arange(ids_BT.shape[1])
        turns = turn([places_T], [self.spec.head_dim], self.spec.wavelengths)
        x_BTM, _ = self.stack(x_BTM, lambda block, x: (block(x, mask_BT, turns), None))
        return (x_BTM if self.norm_out is None else self.norm_out(x_BTM)).astype(self.dtype)


def entries(names: Iterable[str], spec: Qwen3Spec) -> name_map.Table:
    """Which tensors of the published files hold the parameters `names`."""
    plain: name_map.Rules = {
        "token_VM": ("embed_tokens.weight", SAME),
        "norm_out/scale_K": ("norm.weight", SAME),
    }
    start = "layers.{i}."
    attention, mlp = start + "self_attn.", start + "mlp."
    block: name_map.Rules = {
        "norm_attention/scale_K": (start + "input_layernorm.weight", SAME),
        "attention/w_q_DHK": (attention + "q_proj.weight", LINEAR),
        "attention/w_k_MNK": (attention + "k_proj.weight", LINEAR),
        "attention/w_v_MNK": (attention + "v_proj.weight", LINEAR),
        "attention/w_o_HKD": (attention + "o_proj.weight", LINEAR_INTO),
        "attention/norm_q/scale_K": (attention + "q_norm.weight", SAME),
        "attention/norm_k/scale_K": (attention + "k_norm.weight", SAME),
        "norm_mlp/scale_K": (start + "post_attention_layernorm.weight", SAME),
        "mlp/w_gate_DF": (mlp + "gate_proj.weight", LINEAR),
        "mlp/w_up_DF": (mlp + "up_proj.weight", LINEAR),
        "mlp/w_down_FD": (mlp + "down_proj.weight", LINEAR),
    }
    return name_map.table(names, plain, {"stack/blocks/": (range(spec.num_blocks), block)})


def load(path: str | Path, mesh: Mesh, dtype: jnp.dtype, layer: int = 0) -> tuple[Qwen3Spec, weights.Frozen]:
    """The text tower of a published folder, or of one file in it, over `mesh`, in memory and computing in `dtype`.

    Args:
        layer: states of so many layers before the last.

    Raises:
        UserError: if the folder holds something else, or damaged files.
    """
    files = hub.TensorFiles(path, _name)
    spec = hub.described(files.path, functools.partial(Qwen3Spec.from_config, layer=layer))
    ignored = [*_OTHERS, *(f"layers.{later}." for later in range(spec.num_blocks, spec.published_blocks))]

    def make(rngs: nnx.Rngs) -> Qwen3Text:
        return Qwen3Text(spec, dtype=dtype, rngs=rngs)

    ignored += [] if spec.is_whole else ["norm."]
    return spec, weights.load(make, functools.partial(entries, spec=spec), files, mesh, dtype, ignored)


def _name(theirs: str) -> str:
    """The name of a tensor without what it begins with in files of whole models."""
    return next((theirs.removeprefix(start) for start in _STARTS if theirs.startswith(start)), theirs)
