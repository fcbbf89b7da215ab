"""PixArt-alpha and PixArt-Sigma in diffusers' layout: config.json as a DiTSpec and back, and the names of the tensors."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ec_dit.core.errors import UserError
from ec_dit.core.hub import fields, supported
from ec_dit.core.name_map import FLAT, LINEAR, SAME, Rules, Table, patches, table
from ec_dit.models.published.layers import attention, check_holds, feed_forward, mlp, within
from ec_dit.models.sparse_spec import MoESpec
from ec_dit.models.spec import DiTSpec

CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")  # the latter in files of older diffusers
# Buffers that published files keep and nothing reads: fixed positions, the embedding of dropped captions.
IGNORED = ("pos_embed.pos_embed", "caption_projection.y_embedding")
_SIZE_CONDITIONS = "adaln_single.emb.resolution_embedder."
_LARGE = 128  # sample_size from which the picture's size enters, where the config does not say
_POSITIONS = 64  # sample_size per unit of interpolation scale, likewise


def _outside(patch: int) -> Rules:
    return {
        "patch_embed/w_PD": ("pos_embed.proj.weight", patches(patch)),
        "patch_embed/b_D": ("pos_embed.proj.bias", SAME),
        "time_modulation/w_IAD": ("adaln_single.linear.weight", LINEAR),
        "time_modulation/b_AD": ("adaln_single.linear.bias", FLAT),
        "out_modulation/b_AD": ("scale_shift_table", SAME),
        "w_out_DP": ("proj_out.weight", LINEAR),
        "b_out_P": ("proj_out.bias", SAME),
        **within("time_embed/mlp", mlp("adaln_single.emb.timestep_embedder")),
        **within("size_embed/sides", mlp("adaln_single.emb.resolution_embedder")),
        **within("size_embed/ratio", mlp("adaln_single.emb.aspect_ratio_embedder")),
        **within("text_projection", mlp("caption_projection")),
    }


_BLOCK: Rules = {
    ours: (f"transformer_blocks.{{i}}.{theirs}", way)
    for ours, (theirs, way) in {
        "modulation/b_AD": ("scale_shift_table", SAME),
        **within("attention", attention("attn1")),
        **within("cross_attention", attention("attn2")),
        **within("ffn", feed_forward("ff")),
    }.items()
}


def entries(names: Iterable[str], spec: DiTSpec) -> Table:
    """Where the parameters `names` of a dense DiT stand in a file of PixArt's."""
    return table(names, _outside(spec.patch), {"stages/0/blocks/0/": (range(spec.num_blocks), _BLOCK)})


def read(found: Mapping[str, Any], names: Collection[str], where: str) -> tuple[DiTSpec, MoESpec]:
    """The structure that a config.json describes; it is dense.

    Args:
        names: of the tensors beside it, which say what files of older diffusers do not.

    Raises:
        UserError: naming `where` and the key, if it is not a PixArt transformer's or has what is not built here.
    """
    if names and found.get("use_additional_conditions") is None:
        sized = any(name.startswith(_SIZE_CONDITIONS) for name in names)
        found = {**found, "use_additional_conditions": sized}
    supported(
        found,
        where,
        _class_name=CLASSES,
        norm_type="ada_norm_single",
        activation_fn="gelu-approximate",
        attention_bias=True,
        attention_type=("default", None),
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        only_cross_attention=False,
        double_self_attention=False,
        use_linear_projection=(False, None),
        num_vector_embeds=None,
        upcast_attention=(False, None),
    )
    side, channels = fields(found, where, sample_size=int, in_channels=int).values()
    sizes = fields(
        found,
        where,
        num_attention_heads=int,
        attention_head_dim=int,
        num_layers=int,
        patch_size=2,
        out_channels=channels,
        caption_channels=0,
        cross_attention_dim=0,
        interpolation_scale=float(max(side // _POSITIONS, 1)),
        use_additional_conditions=side == _LARGE,
    )
    width = sizes["num_attention_heads"] * sizes["attention_head_dim"]
    projects = bool(sizes["caption_channels"])
    if projects and sizes["cross_attention_dim"] != width:
        raise UserError(
            f"{where}: cross_attention_dim is {sizes['cross_attention_dim']}; supported: the width, {width}."
        )
    if sizes["out_channels"] not in (channels, 2 * channels):
        raise UserError(f"{where}: out_channels is {sizes['out_channels']}; supported: once or twice in_channels.")
    spec = DiTSpec(
        width=width,
        num_blocks=sizes["num_layers"],
        num_heads=sizes["num_attention_heads"],
        num_kv_heads=sizes["num_attention_heads"],
        head_dim=sizes["attention_head_dim"],
        patch=sizes["patch_size"],
        latent_size=side,
        channels=channels,
        learned_sigma=sizes["out_channels"] != channels,
        text_width=sizes["caption_channels"] if projects else sizes["cross_attention_dim"],
        text_projection=projects,
        modulation="adaln_single",
        bias=True,
        position_scale=float(sizes["interpolation_scale"]),
        position_fit="sides",
        size_embedding=sizes["use_additional_conditions"],
    )
    return spec, MoESpec()


def write(spec: DiTSpec, moe: MoESpec) -> dict[str, Any]:
    """The config.json with which diffusers loads a model of this structure; the inverse of `read`.

    Raises:
        UserError: naming what PixArt's transformer does not have.
    """
    check_holds(
        "PixArt",
        {
            "moe.routing": (moe.routing, "dense"),
            "model.block": (spec.block, "cross_attention"),
            "model.modulation": (spec.modulation, "adaln_single"),
            "model.bias": (spec.bias, True),
            "model.qk_norm": (spec.qk_norm, False),
            "F / D": (spec.hidden / spec.width, 4),
            "model.num_kv_heads": (spec.num_kv_heads, spec.num_heads),
            "model.activation": (spec.activation, "gelu"),
            "model.width": (spec.width, spec.num_heads * spec.head_dim),
            "model.position": (spec.position, "sincos"),
            "model.position_fit area or sides": (spec.position_fit in ("area", "sides"), True),
            "model.time_embedding": (spec.time_embedding, "dit"),
            "model.text_norm": (spec.text_norm, False),
            "text.pooled_width": (spec.pooled_width, 0),
        },
    )
    return {
        "_class_name": CLASSES[0],
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": spec.head_dim,
        "attention_type": "default",
        "caption_channels": spec.text_width if spec.text_projection else None,
        "cross_attention_dim": spec.width if spec.text_projection else spec.text_width,
        "dropout": 0.0,
        "in_channels": spec.channels,
        "interpolation_scale": spec.position_scale,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_single",
        "num_attention_heads": spec.num_heads,
        "num_embeds_ada_norm": 1000,
        "num_layers": spec.num_blocks,
        "out_channels": spec.out_channels,
        "patch_size": spec.patch,
        "sample_size": spec.latent_size,
        "upcast_attention": False,
        "use_additional_conditions": spec.size_embedding,
    }
