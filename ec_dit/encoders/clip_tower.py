"""What CLIP's two towers have in common: sizes, blocks, and how transformers' files describe and name them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.core import hub, name_map
from ec_dit.core.errors import UserError
from ec_dit.core.name_map import FLAT, LINEAR, LINEAR_INTO, SAME
from ec_dit.nn.attention import Attention
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.norms import LayerNorm

Tower = Literal["text", "vision"]
_Spec = TypeVar("_Spec", bound="TowerSpec")
_SCALE = "logit_scale"
_LARGEST_SCALE = 20  # of published models none is beyond log 100


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), OpenAI's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


@dataclass(frozen=True)
class TowerSpec:
    """Sizes that each of the towers has.

    Attributes:
        act: of ACTIVATIONS.
        projection: width that the pooled vector is projected to; None: it is not.
    """

    width: int
    num_blocks: int
    num_heads: int
    hidden: int
    act: str
    projection: int | None
    eps: float


def config(found: Mapping[str, Any], where: str, tower: Tower) -> tuple[Mapping[str, Any], str]:
    """Finds the description of one tower in a config.json, of that tower alone or of a whole CLIP, and where it stands.

    Raises:
        UserError: for another model's.
    """
    hub.supported(found, where, model_type=("clip", f"clip_{tower}_model"))
    key = f"{tower}_config"
    if key not in found and found.get("model_type") != "clip":
        return found, where
    where = f"{where}, {key}"
    # Some files give values a second time, which then count.
    once, again = hub.fields(found, where, **{key: {}, f"{key}_dict": {}}).values()
    return once | again | {"projection_dim": found.get("projection_dim")}, where


def sizes(found: Mapping[str, Any], where: str, **defaults: int) -> dict[str, Any]:
    """Reads the fields of a TowerSpec; `defaults` are of keys that may be missing.

    Raises:
        UserError: for a setting that is not supported.
    """
    hub.supported(found, where, hidden_act=tuple(ACTIVATIONS))
    values = hub.fields(
        found,
        where,
        num_hidden_layers=12,
        hidden_act="quick_gelu",
        projection_dim=512,
        layer_norm_eps=1e-5,
        **defaults,
    )
    hub.divisible(values, where, hidden_size="num_attention_heads")
    return {
        "width": values["hidden_size"],
        "num_blocks": values["num_hidden_layers"],
        "num_heads": values["num_attention_heads"],
        "hidden": values["intermediate_size"],
        "act": values["hidden_act"],
        "projection": values["projection_dim"],
        "eps": values["layer_norm_eps"],
    }


class ClipBlock(nnx.Module):
    """Pre-norm attention, causal in the text tower, and feed-forward layer."""

    def __init__(self, spec: TowerSpec, *, causal: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, heads = spec.width, spec.num_heads
        self.norm_attention = LayerNorm(width, eps=spec.eps)
        self.attention = Attention(
            width, width, heads, heads, width // heads, bias=True, causal=causal, dtype=dtype, rngs=rngs
        )
        self.norm_mlp = LayerNorm(width, eps=spec.eps)
        self.mlp = Mlp(width, spec.hidden, bias=True, act=ACTIVATIONS[spec.act], dtype=dtype, rngs=rngs)

    def __call__(self, x_BTM: jax.Array) -> jax.Array:
        """One block."""
        x_BTM += self.attention(self.norm_attention(x_BTM))
        return x_BTM + self.mlp(self.norm_mlp(x_BTM))


def rules(tower: Tower) -> name_map.Rules:
    """Lists which tensors of the published files hold the parameters of a tower's blocks."""
    start = f"{tower}_model.encoder.layers.{{i}}."
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
    return block


def name(stored: str, tower: Tower) -> str:
    """Gives a tensor's name in files by transformers 4, which transformers 5 shortens in a tower alone."""
    alone = ("embeddings.", "encoder.", "final_layer_norm.", "pre_layrnorm.", "post_layernorm.")
    return f"{tower}_model.{stored}" if stored.startswith(alone) else stored


def described(
    files: hub.TensorFiles, read: Callable[[Mapping[str, Any], str], _Spec], projection: str, projecting: str
) -> _Spec:
    """Reads the config.json beside files; the spec has no projection where the published model has none.

    Args:
        projection: the name of its tensor.
        projecting: the class of transformers that has it, beside a whole CLIP.

    Raises:
        UserError: if the file is missing, or describes something else.
    """

    def read_both(found: Mapping[str, Any], where: str) -> _Spec:
        spec = read(found, where)
        projects = projection in files.tensors or {projecting, "CLIPModel"} & set(found.get("architectures") or ())
        return spec if projects else replace(spec, projection=None)

    return hub.described(files.path, read_both)


def logit_scale(path: str | Path) -> float:
    """Reads exp(logit_scale) of a whole CLIP, which its cosines of a text and a picture are multiplied by (1 / temperature).

    Raises:
        UserError: if the files hold none, or are damaged.
    """
    files = hub.TensorFiles(path)
    if _SCALE not in files.tensors:
        raise UserError(f"{files.source} has no {_SCALE}: it is one tower alone. Give the folder of a whole CLIP.")
    value = files.read(_SCALE)
    if value.size != 1 or not abs(value.item()) <= _LARGEST_SCALE:
        raise UserError(
            f"{files.source}: {_SCALE} is {str(value.tolist())[:80]}, not the logarithm of a factor. {hub.AGAIN}"
        )
    return math.exp(value.item())
