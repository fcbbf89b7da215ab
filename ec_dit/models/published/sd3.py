"""Stable Diffusion 3 and 3.5 in diffusers' layout: config.json as a DiTSpec and back, and the names of the tensors."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ec_dit.core.errors import UserError
from ec_dit.core.hub import fields, supported
from ec_dit.core.name_map import FLAT, LINEAR, SAME, Rules, Table, Way, patches, table
from ec_dit.models.published.layers import attention, check_holds, feed_forward, mlp, within
from ec_dit.models.sparse_spec import MoESpec
from ec_dit.models.spec import DiTSpec
from ec_dit.models.stages import block_numbers
from ec_dit.nn.positions import sincos_2d

CLASS = "SD3Transformer2DModel"
MEDIUM: dict[str, Any] = {  # Stable Diffusion 3 medium, 2 B parameters
    "_class_name": CLASS,
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
POSITIONS = "pos_embed.pos_embed"  # of every place of the grid, kept in the file
_TEXT_NAMES = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def _outside(patch: int) -> Rules:
    return {
        "patch_embed/w_PD": ("pos_embed.proj.weight", patches(patch)),
        "patch_embed/b_D": ("pos_embed.proj.bias", SAME),
        **within("time_embed/mlp", mlp("time_text_embed.timestep_embedder")),
        **within("pooled_embed", mlp("time_text_embed.text_embedder")),
        "text_embed/w_MD": ("context_embedder.weight", LINEAR),
        "text_embed/b_D": ("context_embedder.bias", SAME),
        "out_modulation/w_IAD": ("norm_out.linear.weight", replace(LINEAR, mirrored=1)),
        "out_modulation/b_AD": ("norm_out.linear.bias", replace(FLAT, mirrored=0)),
        "w_out_DP": ("proj_out.weight", LINEAR),
        "b_out_P": ("proj_out.bias", SAME),
    }


def _block(*, last: bool) -> Rules:
    """One block; the text of the last one has shift and scale alone, in the opposite order."""
    weight, bias = (replace(LINEAR, mirrored=1), replace(FLAT, mirrored=0)) if last else (LINEAR, FLAT)
    rules: dict[str, tuple[str, Way]] = {
        "modulation/w_IAD": ("norm1.linear.weight", LINEAR),
        "modulation/b_AD": ("norm1.linear.bias", FLAT),
        "text_modulation/w_IAD": ("norm1_context.linear.weight", weight),
        "text_modulation/b_AD": ("norm1_context.linear.bias", bias),
        **within("attention", attention("attn")),
        **within("text_attention", attention("attn", *_TEXT_NAMES)),
        **within("dual_attention", attention("attn2")),
        **within("ffn", feed_forward("ff")),
        **within("text_ffn", feed_forward("ff_context")),
    }
    for ours, theirs in (
        ("attention", "attn.norm"),
        ("text_attention", "attn.norm_added"),
        ("dual_attention", "attn2.norm"),
    ):
        rules |= {f"{ours}/norm_{of}/scale_K": (f"{theirs}_{of}.weight", SAME) for of in "qk"}
    return {ours: (f"transformer_blocks.{{i}}.{theirs}", way) for ours, (theirs, way) in rules.items()}


def entries(names: Iterable[str], spec: DiTSpec) -> Table:
    """Where the parameters `names` of a dense DiT stand in a file of SD3's."""
    blocks = block_numbers(spec.stages())
    last = spec.num_blocks - 1
    stacks = {start: (numbers, _block(last=last in numbers)) for start, numbers in blocks.items()}
    return table(names, _outside(spec.patch), stacks)


def unread(spec: DiTSpec) -> Iterator[tuple[str, np.ndarray]]:
    """Yields tensors that diffusers' class has, and that are no parameters of ours: positions, which follow from the config, and
    queries of the last block's text, whose result goes nowhere.
    """
    grid, inner = spec.position_grid, spec.num_heads * spec.head_dim
    every_SD = sincos_2d(grid, grid, spec.width, spec.tokens_per_side, spec.position_scale, "crop", grid)
    yield POSITIONS, every_SD[None]
    attn = f"transformer_blocks.{spec.num_blocks - 1}.attn"
    yield f"{attn}.add_q_proj.weight", np.zeros((inner, spec.width), np.float32)
    yield f"{attn}.add_q_proj.bias", np.zeros(inner, np.float32)
    if spec.qk_norm:
        yield f"{attn}.norm_added_q.weight", np.ones(spec.head_dim, np.float32)


def read(found: Mapping[str, Any], where: str) -> tuple[DiTSpec, MoESpec]:
    """The structure that a config.json describes; it is dense.

    Raises:
        UserError: naming `where` and the key, if it is not SD3's or has what is not built here.
    """
    supported(found, where, _class_name=CLASS)
    side, patch, channels, layers = fields(
        found, where, sample_size=128, patch_size=2, in_channels=16, num_layers=18
    ).values()
    head_dim, heads, text_width, pooled = fields(
        found,
        where,
        attention_head_dim=64,
        num_attention_heads=18,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
    ).values()
    width = heads * head_dim
    grid, context = fields(found, where, pos_embed_max_size=96, caption_projection_dim=1152).values()
    if context != width:
        raise UserError(f"{where}: caption_projection_dim is {context}; supported: the width, {width}.")
    supported(found, where, out_channels=(channels, None), qk_norm=("rms_norm", None))
    dual = sorted(found.get("dual_attention_layers") or ())
    if dual != list(range(len(dual))):
        raise UserError(f"{where}: dual_attention_layers is {dual}; supported: the first so many blocks.")
    spec = DiTSpec(
        width=width,
        num_blocks=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        patch=patch,
        block="mmdit",
        dual_blocks=len(dual),
        qk_norm=found.get("qk_norm") is not None,
        bias=True,
        position_fit="crop",
        position_grid=grid,
        position_scale=grid * patch / side,
        latent_size=side,
        channels=channels,
        text_width=text_width,
        pooled_width=pooled,
    )
    return spec, MoESpec()


def write(spec: DiTSpec, moe: MoESpec) -> dict[str, Any]:
    """The config.json with which diffusers loads a model of this structure; the inverse of `read`.

    Raises:
        UserError: naming what SD3's transformer does not have.
    """
    side = spec.position_grid * spec.patch / spec.position_scale
    check_holds(
        "SD3",
        {
            "model.block": (spec.block, "mmdit"),
            "moe.routing": (moe.routing, "dense"),
            "model.bias": (spec.bias, True),
            "model.activation": (spec.activation, "gelu"),
            "F / D": (spec.hidden / spec.width, 4),
            "model.num_kv_heads": (spec.num_kv_heads, spec.num_heads),
            "model.width": (spec.width, spec.num_heads * spec.head_dim),
            "model.position": (spec.position, "sincos"),
            "model.position_fit": (spec.position_fit, "crop"),
            "sides of the positions' grid over position_scale": (side, int(side)),
            "model.text_projection": (spec.text_projection, False),
            "model.text_norm": (spec.text_norm, False),
            "model.time_embedding": (spec.time_embedding, "dit"),
            "model.size_embedding": (spec.size_embedding, False),
            "model.learned_sigma": (spec.learned_sigma, False),
            "text.pooled_width above 0": (spec.pooled_width > 0, True),
        },
    )
    return {
        "_class_name": CLASS,
        "sample_size": int(side),
        "patch_size": spec.patch,
        "in_channels": spec.channels,
        "num_layers": spec.num_blocks,
        "attention_head_dim": spec.head_dim,
        "num_attention_heads": spec.num_heads,
        "joint_attention_dim": spec.text_width,
        "caption_projection_dim": spec.width,
        "pooled_projection_dim": spec.pooled_width,
        "out_channels": spec.channels,
        "pos_embed_max_size": spec.position_grid,
        "dual_attention_layers": list(range(spec.dual_blocks)),
        "qk_norm": "rms_norm" if spec.qk_norm else None,
    }
