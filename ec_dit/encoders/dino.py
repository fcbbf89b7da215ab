"""DINOv2 (small, base, large, giant), frozen, with weights as transformers publishes them: features of whole pictures.

Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import hub, name_map, sharding
from ec_dit.core.errors import UserError
from ec_dit.core.name_map import FLAT, LINEAR, LINEAR_INTO, SAME, Way, patches
from ec_dit.encoders import vit, weights
from ec_dit.encoders.clip_tower import exact_gelu
from ec_dit.encoders.vit import PictureTokens
from ec_dit.nn import param
from ec_dit.nn.attention import Attention
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.norms import LayerNorm
from ec_dit.nn.stack import Stack

IGNORED = ("embeddings.mask_token",)  # stands for hidden patches in training
_REGISTERS = "dinov2_with_registers"
_OF_ONE = Way(SAME.groups, lambda shape: (1,) * (3 - len(shape)) + shape)  # theirs is a batch of one


@dataclass(frozen=True)
class DinoSpec:
    """Sizes of a model.

    Attributes:
        gated: feed-forward layers silu(x W_gate) * (x W_up), of giant; else gelu(x W_up).
        size: pixels of a side of the pictures that positions were learned for; others will do.
        patch: pixels of a patch's side.
    """

    width: int
    num_blocks: int
    num_heads: int
    hidden: int
    gated: bool
    size: int
    patch: int
    eps: float

    @classmethod
    def from_config(cls, found: Mapping[str, Any], where: str) -> "DinoSpec":
        """Reads the spec that a config.json, which comes from `where`, describes.

        Raises:
            UserError: for another model's, one with register tokens, or a setting that is not supported.
        """
        if found.get("model_type") == _REGISTERS:
            raise UserError(
                f"{where}: model_type is {_REGISTERS!r}; supported: 'dinov2', the model without register tokens, such as "
                f"facebook/dinov2-base."
            )
        hub.supported(found, where, model_type="dinov2", hidden_act="gelu", qkv_bias=True, num_channels=vit.CHANNELS)
        values = hub.fields(
            found,
            where,
            hidden_size=int,
            num_hidden_layers=int,
            num_attention_heads=int,
            mlp_ratio=4,
            use_swiglu_ffn=False,
            image_size=224,
            patch_size=14,
            layer_norm_eps=1e-6,
        )
        hub.divisible(values, where, hidden_size="num_attention_heads", image_size="patch_size")
        hidden, gated = values["hidden_size"] * values["mlp_ratio"], values["use_swiglu_ffn"]
        return cls(
            width=values["hidden_size"],
            num_blocks=values["num_hidden_layers"],
            num_heads=values["num_attention_heads"],
            hidden=(hidden * 2 // 3 + 7) // 8 * 8 if gated else hidden,
            gated=gated,
            size=values["image_size"],
            patch=values["patch_size"],
            eps=values["layer_norm_eps"],
        )


class SwiGlu(nnx.Module):
    """(silu(x W_gate + b_gate) * (x W_up + b_up)) W_down + b_down, widths D -> F -> D.

    W_gate and W_up, in this order, are one array, as they are published.
    """

    def __init__(self, width: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.w_in_D2F = param.matrix(rngs, (width, 2, hidden), (None, None, "hidden"), "ioo")
        self.b_in_2F = param.table(jnp.zeros((2, hidden)), (None, "hidden"))
        self.w_down_FD = param.matrix(rngs, (hidden, width), ("hidden", None), "io")
        self.b_down_D = param.table(jnp.zeros(width), ("embed",))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """(B, S, D) -> (B, S, D)."""
        w_in = param.gather(self.w_in_D2F, self.dtype).reshape(x_BSD.shape[-1], -1)
        both = x_BSD.astype(self.dtype) @ w_in + param.gather(self.b_in_2F, self.dtype).reshape(-1)
        gate_BSF, up_BSF = jnp.split(both, 2, axis=-1)
        down_BSD = (jax.nn.silu(gate_BSF) * up_BSF) @ param.gather(self.w_down_FD, self.dtype)
        return sharding.psum(down_BSD, "hidden") + param.gather(self.b_down_D, self.dtype)


class DinoBlock(nnx.Module):
    """Pre-norm attention and feed-forward layer, each scaled by a vector before it is added."""

    def __init__(self, spec: DinoSpec, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, heads = spec.width, spec.num_heads
        self.norm_attention = LayerNorm(width, eps=spec.eps)
        self.attention = Attention(width, width, heads, heads, width // heads, bias=True, dtype=dtype, rngs=rngs)
        self.scale_attention_D = param.table(jnp.ones(width), ("embed",))
        self.norm_mlp = LayerNorm(width, eps=spec.eps)
        self.mlp: SwiGlu | Mlp
        if spec.gated:
            self.mlp = SwiGlu(width, spec.hidden, dtype=dtype, rngs=rngs)
        else:
            self.mlp = Mlp(width, spec.hidden, bias=True, act=exact_gelu, dtype=dtype, rngs=rngs)
        self.scale_mlp_D = param.table(jnp.ones(width), ("embed",))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """One block."""
        x_BSD += self.attention(self.norm_attention(x_BSD)) * param.gather(self.scale_attention_D)
        return x_BSD + self.mlp(self.norm_mlp(x_BSD)) * param.gather(self.scale_mlp_D)


class Dino(nnx.Module):
    """Pixels (B, Y, X, Z) -> features (B, D): the class token, normed. Sums over blocks are kept in float32."""

    def __init__(self, spec: DinoSpec, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.spec, self.dtype = spec, dtype
        grid = spec.size // spec.patch
        self.tokens = PictureTokens(spec.width, spec.patch, grid, bias=True, dtype=dtype, rngs=rngs)
        self.stack = Stack(
            lambda key: DinoBlock(spec, dtype=dtype, rngs=nnx.Rngs(key)),
            jax.random.split(rngs.params(), spec.num_blocks),
        )
        self.norm_out = LayerNorm(spec.width, eps=spec.eps)

    def __call__(self, pixels_BYXZ: jax.Array) -> jax.Array:
        """Describes pictures that `pixels.Processor` made, of any size that divides into patches.

        Raises:
            UserError: for pictures that do not.
        """
        images = (("batch", None, None, None),)
        run = param.per_device(self, Dino._forward, images, ("batch", None), name="pictures of the batch")
        return run(pixels_BYXZ)

    def _forward(self, pixels_BYXZ: jax.Array) -> jax.Array:
        """The pictures of one device."""
        x_BSD, _ = self.stack(self.tokens(pixels_BYXZ), lambda block, x: (block(x), None))
        return self.norm_out(x_BSD[:, 0]).astype(self.dtype)


def entries(names: Iterable[str], spec: DinoSpec) -> name_map.Table:
    """Lists which tensors of the published files hold the parameters `names`."""
    plain: name_map.Rules = {
        "tokens/w_PD": ("embeddings.patch_embeddings.projection.weight", patches(spec.patch)),
        "tokens/b_D": ("embeddings.patch_embeddings.projection.bias", SAME),
        "tokens/class_D": ("embeddings.cls_token", _OF_ONE),
        "tokens/position_SD": ("embeddings.position_embeddings", _OF_ONE),
        "norm_out/scale_D": ("layernorm.weight", SAME),
        "norm_out/shift_D": ("layernorm.bias", SAME),
    }
    block: name_map.Rules = {
        "norm_attention/scale_D": ("norm1.weight", SAME),
        "norm_attention/shift_D": ("norm1.bias", SAME),
        "attention/w_q_DHK": ("attention.attention.query.weight", LINEAR),
        "attention/b_q_HK": ("attention.attention.query.bias", FLAT),
        "attention/w_k_MNK": ("attention.attention.key.weight", LINEAR),
        "attention/b_k_NK": ("attention.attention.key.bias", FLAT),
        "attention/w_v_MNK": ("attention.attention.value.weight", LINEAR),
        "attention/b_v_NK": ("attention.attention.value.bias", FLAT),
        "attention/w_o_HKD": ("attention.output.dense.weight", LINEAR_INTO),
        "attention/b_o_D": ("attention.output.dense.bias", SAME),
        "scale_attention_D": ("layer_scale1.lambda1", SAME),
        "norm_mlp/scale_D": ("norm2.weight", SAME),
        "norm_mlp/shift_D": ("norm2.bias", SAME),
        "mlp/w_up_DF": ("mlp.fc1.weight", LINEAR),
        "mlp/b_up_F": ("mlp.fc1.bias", SAME),
        "mlp/w_in_D2F": ("mlp.weights_in.weight", LINEAR),
        "mlp/b_in_2F": ("mlp.weights_in.bias", FLAT),
        "mlp/w_down_FD": ("mlp.weights_out.weight" if spec.gated else "mlp.fc2.weight", LINEAR),
        "mlp/b_down_D": ("mlp.weights_out.bias" if spec.gated else "mlp.fc2.bias", SAME),
        "scale_mlp_D": ("layer_scale2.lambda1", SAME),
    }
    stacked = {ours: (f"encoder.layer.{{i}}.{theirs}", way) for ours, (theirs, way) in block.items()}
    return name_map.table(names, plain, {"stack/blocks/": (range(spec.num_blocks), stacked)})


def load(path: str | Path, mesh: Mesh, dtype: jnp.dtype) -> tuple[DinoSpec, weights.Frozen]:
    """Loads the model of a published folder, or of one file in it, over `mesh`, in memory and computing in `dtype`.

    Raises:
        UserError: if the folder holds something else, or damaged files.
    """
    files = hub.TensorFiles(path)
    spec = hub.described(files.path, DinoSpec.from_config)

    def make(rngs: nnx.Rngs) -> Dino:
        return Dino(spec, dtype=dtype, rngs=rngs)

    return spec, weights.load(make, functools.partial(entries, spec=spec), files, mesh, dtype, IGNORED)
