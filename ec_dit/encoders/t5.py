"""T5's encoder (v1.0, v1.1, flan), frozen, with weights as transformers publishes them: the encoder alone or the whole model."""

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import hub, name_map, sharding
from ec_dit.core.name_map import LINEAR, LINEAR_INTO, SAME
from ec_dit.encoders import weights
from ec_dit.nn import param
from ec_dit.nn.attention import Attention
from ec_dit.nn.mlp import Mlp, gelu
from ec_dit.nn.norms import RMSNorm
from ec_dit.nn.stack import Stack

IGNORED = ("decoder.", "lm_head.")  # of a whole T5


@dataclass(frozen=True)
class T5Spec:
    """Sizes of an encoder.

    Attributes:
        head_dim: not tied to width / num_heads.
        gated: feed-forward layers gelu(x W_gate) * (x W_up), of v1.1; else relu(x W_up), of v1.0.
        distances: classes of relative positions; `furthest` is the distance from which all are one.
    """

    vocab_size: int
    width: int
    num_blocks: int
    num_heads: int
    head_dim: int
    hidden: int
    gated: bool
    distances: int
    furthest: int
    eps: float

    @classmethod
    def from_config(cls, found: Mapping[str, Any], where: str) -> "T5Spec":
        """The spec that a config.json, read from `where`, describes.

        Raises:
            UserError: for another model's, or a setting that is not supported.
        """
        hub.supported(found, where, model_type="t5", feed_forward_proj=("relu", "gated-gelu"))
        sizes = hub.fields(found, where, vocab_size=int, d_model=int, num_layers=int, num_heads=int, d_kv=int, d_ff=int)
        rest = hub.fields(
            found,
            where,
            feed_forward_proj="relu",
            relative_attention_num_buckets=32,
            relative_attention_max_distance=128,
            layer_norm_epsilon=1e-6,
        )
        return cls(
            vocab_size=sizes["vocab_size"],
            width=sizes["d_model"],
            num_blocks=sizes["num_layers"],
            num_heads=sizes["num_heads"],
            head_dim=sizes["d_kv"],
            hidden=sizes["d_ff"],
            gated=rest["feed_forward_proj"] == "gated-gelu",
            distances=rest["relative_attention_num_buckets"],
            furthest=rest["relative_attention_max_distance"],
            eps=rest["layer_norm_epsilon"],
        )


class GatedMlp(nnx.Module):
    """(gelu(x W_gate) * (x W_up)) W_down, widths D -> F -> D."""

    def __init__(self, width: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.w_gate_DF = param.matrix(rngs, (width, hidden), (None, "hidden"), "io")
        self.w_up_DF = param.matrix(rngs, (width, hidden), (None, "hidden"), "io")
        self.w_down_FD = param.matrix(rngs, (hidden, width), ("hidden", None), "io")

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        x_BTD = x_BTD.astype(self.dtype)
        gate_BTF = gelu(x_BTD @ param.gather(self.w_gate_DF, self.dtype))
        up_BTF = x_BTD @ param.gather(self.w_up_DF, self.dtype)
        return sharding.psum((gate_BTF * up_BTF) @ param.gather(self.w_down_FD, self.dtype), "hidden")


class T5Block(nnx.Module):
    """Pre-norm attention and feed-forward layer, without biases."""

    def __init__(self, spec: T5Spec, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, heads = spec.width, spec.num_heads
        self.norm_attention = RMSNorm(width, eps=spec.eps)
        # Scores are not scaled: T5 was initialised so that they need not be.
        self.attention = Attention(width, width, heads, heads, spec.head_dim, scale=1.0, dtype=dtype, rngs=rngs)
        self.norm_mlp = RMSNorm(width, eps=spec.eps)
        self.mlp: GatedMlp | Mlp
        if spec.gated:
            self.mlp = GatedMlp(width, spec.hidden, dtype=dtype, rngs=rngs)
        else:
            self.mlp = Mlp(width, spec.hidden, act=jax.nn.relu, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTM: jax.Array, mask_BT: jax.Array, offset_HST: jax.Array) -> jax.Array:
        """One block; `offset_HST` is what relative positions add to the scores."""
        x_BTM += self.attention(self.norm_attention(x_BTM), mask_BT=mask_BT, offset_HST=offset_HST)
        return x_BTM + self.mlp(self.norm_mlp(x_BTM))


class T5Encoder(nnx.Module):
    """Token ids (B, T) -> embeddings (B, T, M).

    What the blocks add up stays float32: in T5 it grows by the thousands, too far for bfloat16's 8 bits.
    """

    def __init__(self, spec: T5Spec, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.spec, self.dtype = spec, dtype
        key = rngs.params()
        self.token_VM = param.table(jax.random.normal(key, (spec.vocab_size, spec.width)), (None, "embed"))
        # V counts classes of distance. Published with block 0, used by all.
        self.distance_VH = param.table(jnp.zeros((spec.distances, spec.num_heads)), (None, "heads"))
        self.stack = Stack(
            lambda key: T5Block(spec, dtype=dtype, rngs=nnx.Rngs(key)), jax.random.split(rngs.params(), spec.num_blocks)
        )
        self.norm_out = RMSNorm(spec.width, eps=spec.eps)

    def __call__(self, ids_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Embeds captions of any length; what `mask_BT` hides is not attended to, but embedded nonetheless."""
        run = param.per_device(
            self,
            T5Encoder._forward,
            (("batch", None), ("batch", None)),
            ("batch", None, None),
            name="captions of the batch",
        )
        return run(ids_BT, mask_BT)

    def _forward(self, ids_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """The captions of one device."""
        x_BTM = param.gather(self.token_VM, self.dtype)[ids_BT].astype(jnp.float32)
        class_ST = distance_classes(ids_BT.shape[1], self.spec.distances, self.spec.furthest)
        offset_HST = param.gather(self.distance_VH)[class_ST].transpose(2, 0, 1)
        x_BTM, _ = self.stack(x_BTM, lambda block, x: (block(x, mask_BT, offset_HST), None))
        return self.norm_out(x_BTM).astype(self.dtype)


def distance_classes(length: int, classes: int, furthest: int) -> np.ndarray:
    """(S, T) int32: the class of each key's position relative to each query's.

    One half of the classes is for keys behind. Of a half, one half again is for one distance each, the rest for ranges that
    grow geometrically up to `furthest`.
    """
    away_ST = np.arange(length)[None, :] - np.arange(length)[:, None]
    half, exact = classes // 2, classes // 4
    steps = np.maximum(np.abs(away_ST), 1).astype(np.float32) / np.float32(exact)
    # In float32, with a logarithm rounded correctly: the published weights were trained with its roundings at the bounds.
    logs = np.log(steps.astype(np.float64)).astype(np.float32)
    ranges = exact + (logs / np.float32(math.log(furthest / exact)) * np.float32(half - exact)).astype(np.int32)
    near_ST = np.where(np.abs(away_ST) < exact, np.abs(away_ST), np.minimum(ranges, half - 1))
    return (near_ST + half * (away_ST > 0)).astype(np.int32)


def entries(names: Iterable[str], spec: T5Spec) -> name_map.Table:
    """Which tensors of the published files hold the parameters `names`."""
    plain: name_map.Rules = {
        "token_VM": ("shared.weight", SAME),
        "distance_VH": ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", SAME),
        "norm_out/scale_K": ("encoder.final_layer_norm.weight", SAME),
    }
    start = "encoder.block.{i}.layer."
    attention, mlp = start + "0.SelfAttention.", start + "1.DenseReluDense."
    block: name_map.Rules = {
        "norm_attention/scale_K": (start + "0.layer_norm.weight", SAME),
        "attention/w_q_DHK": (attention + "q.weight", LINEAR),
        "attention/w_k_MNK": (attention + "k.weight", LINEAR),
        "attention/w_v_MNK": (attention + "v.weight", LINEAR),
        "attention/w_o_HKD": (attention + "o.weight", LINEAR_INTO),
        "norm_mlp/scale_K": (start + "1.layer_norm.weight", SAME),
        "mlp/w_gate_DF": (mlp + "wi_0.weight", LINEAR),
        "mlp/w_up_DF": (mlp + ("wi_1.weight" if spec.gated else "wi.weight"), LINEAR),
        "mlp/w_down_FD": (mlp + "wo.weight", LINEAR),
    }
    return name_map.table(names, plain, {"stack/blocks/": (range(spec.num_blocks), block)})


def load(path: str | Path, mesh: Mesh, dtype: jnp.dtype) -> tuple[T5Spec, weights.Frozen]:
    """The encoder of a published folder, or of one file in it, over `mesh`, in memory and computing in `dtype`.

    Raises:
        UserError: if the folder holds something else, or damaged files.
    """
    # Files hold the token table under either name or, twice, under both.
    files = hub.TensorFiles(path, lambda name: {"encoder.embed_tokens.weight": "shared.weight"}.get(name, name))
    spec = hub.described(files.path, T5Spec.from_config)

    def make(rngs: nnx.Rngs) -> T5Encoder:
        return T5Encoder(spec, dtype=dtype, rngs=rngs)

    return spec, weights.load(make, functools.partial(entries, spec=spec), files, mesh, dtype, IGNORED)
