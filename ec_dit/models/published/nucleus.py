"""Nucleus-Image (2604.12163) in diffusers' layout: config.json as a DiTSpec and back, and the names of the tensors.

Its network gives data less noise, the opposite of our velocity: the last matrix changes its sign. Its queries and keys turn in
pairs of neighbours; ours are half a head apart.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ec_dit.core.errors import UserError
from ec_dit.core.hub import fields, supported
from ec_dit.core.name_map import FLAT, LINEAR, LINEAR_PAIRS, PAIRS, SAME, Rules, Table, Way, table
from ec_dit.core.settings import narrow
from ec_dit.models.published.layers import attention, check_holds, gated_feed_forward, mlp, within
from ec_dit.models.sparse_spec import MoESpec, SparseSpec
from ec_dit.models.spec import DiTSpec
from ec_dit.models.stages import block_numbers

_TITLE = "Nucleus-Image"
CLASS = "NucleusMoEImageTransformer2DModel"
IMAGE: dict[str, Any] = {  # the published model: 17 B parameters, about 2 B of which work on a token
    "_class_name": CLASS,
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 32,
    "attention_head_dim": 128,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "joint_attention_dim": 4096,
    "axes_dims_rope": [16, 56, 56],
    "mlp_ratio": 4.0,
    "dense_moe_strategy": "leave_first_three_blocks_dense",
    "num_experts": 64,
    "moe_intermediate_dim": 1344,
    "capacity_factors": [0.0] * 3 + [4.0] * 2 + [2.0] * 27,
    "use_sigmoid": False,
    "route_scale": 2.5,
}
LATENT_SIZE = 128  # rows and columns of the pipeline's own pictures, of 1024 pixels; no matter of the weights
# dense_moe_strategy -> (dense blocks before the sparse ones, whether the last one is dense too)
_STRATEGIES = {
    "leave_first_three_and_last_block_dense": (3, True),
    "leave_first_three_blocks_dense": (3, False),
    "leave_first_block_dense": (1, False),
    "all_moe": (0, False),
}
_MULTIPLE = 128  # of the inner width of dense layers


def _packed(groups: Way, patch: int, into: bool) -> Way:
    """Numbers of a patch: (channel, row, column) with them, (row, column, channel) with us, coming in or going out."""
    order = (2, 0, 1) if into else (3, 1, 2)

    def view(shape: tuple[int, ...]) -> tuple[int, ...]:
        numbers = shape[0] if into else shape[1]
        parts = (patch, patch, numbers // patch**2)
        return (*parts, shape[1]) if into else (shape[0], *parts)

    return replace(groups, groups=lambda _: [(3,), order] if into else [order, (0,)], view=view)


def _outside(patch: int) -> Rules:
    return {
        "patch_embed/w_PD": ("img_in.weight", _packed(LINEAR, patch, into=True)),
        "patch_embed/b_D": ("img_in.bias", SAME),
        **within("time_embed/mlp", mlp("time_text_embed.timestep_embedder")),
        "time_embed/norm/scale_K": ("time_text_embed.norm.weight", SAME),
        "text_norm/scale_K": ("txt_norm.weight", SAME),
        "out_modulation/w_IAD": ("norm_out.linear.weight", replace(LINEAR, mirrored=1)),
        "out_modulation/b_AD": ("norm_out.linear.bias", replace(FLAT, mirrored=0)),
        "w_out_DP": ("proj_out.weight", replace(_packed(LINEAR, patch, into=False), sign=-1)),
    }


_BLOCK: Rules = {
    ours: (f"transformer_blocks.{{i}}.{theirs}", way)
    for ours, (theirs, way) in {
        "modulation/w_IAD": ("img_mod.1.weight", LINEAR),
        "modulation/b_AD": ("img_mod.1.bias", FLAT),
        **within("attention", attention("attn", turned=LINEAR_PAIRS)),
        "attention/norm_q/scale_K": ("attn.norm_q.weight", PAIRS),
        "attention/norm_k/scale_K": ("attn.norm_k.weight", PAIRS),
        "text_embed/w_MD": ("encoder_proj.weight", LINEAR),
        "text_embed/b_D": ("encoder_proj.bias", SAME),
        "text_attention/w_k_MNK": ("attn.add_k_proj.weight", LINEAR_PAIRS),
        "text_attention/w_v_MNK": ("attn.add_v_proj.weight", LINEAR),
        "text_attention/norm_k/scale_K": ("attn.norm_added_k.weight", PAIRS),
        **within("ffn", gated_feed_forward("img_mlp")),
        **within("ffn/shared", gated_feed_forward("img_mlp.shared_expert")),
        "ffn/w_time_DE": ("img_mlp.gate.weight", LINEAR.cut(1, 0)),
        "ffn/w_router_DE": ("img_mlp.gate.weight", LINEAR.cut(1, 1)),
        "ffn/w_gate_EDF": ("img_mlp.experts.gate_up_proj", SAME.cut(2, 0)),
        "ffn/w_up_EDF": ("img_mlp.experts.gate_up_proj", SAME.cut(2, 1)),
        "ffn/w_down_EFD": ("img_mlp.experts.down_proj", SAME),
    }.items()
}


def entries(names: Iterable[str], spec: DiTSpec) -> Table:
    """Where the parameters `names` of a DiT stand in a file of Nucleus-Image's."""
    blocks = block_numbers(spec.stages())
    return table(names, _outside(spec.patch), {start: (numbers, _BLOCK) for start, numbers in blocks.items()})


def unread(spec: DiTSpec) -> Iterator[tuple[str, np.ndarray]]:
    """Yields tensors that diffusers' class has and does not read either: a norm of queries, for a text that has none."""
    for block in range(spec.num_blocks):
        yield f"transformer_blocks.{block}.attn.norm_added_q.weight", np.ones(spec.head_dim, np.float32)


def read(found: Mapping[str, Any], where: str) -> tuple[DiTSpec, MoESpec]:
    """The structure and the routing that a config.json describes.

    Raises:
        UserError: naming `where` and the key, if it is not Nucleus-Image's or has what is not built here.
    """
    supported(found, where, _class_name=CLASS)
    channels, heads, head_dim = fields(
        found, where, in_channels=64, num_attention_heads=16, attention_head_dim=128
    ).values()
    patch, layers, text_width = fields(found, where, patch_size=2, num_layers=24, joint_attention_dim=3584).values()
    sizes = fields(found, where, out_channels=channels, num_key_value_heads=heads, mlp_ratio=4.0)
    if sizes["out_channels"] * patch**2 != channels:
        raise UserError(
            f"{where}: a patch of {patch} x {patch} comes in as {channels} numbers, and goes out as {sizes['out_channels']} x "
            f"{patch**2}; supported: as many."
        )
    width = heads * head_dim
    moe = _moe(found, where, layers)
    spec = DiTSpec(
        width=width,
        num_blocks=layers,
        num_heads=heads,
        num_kv_heads=sizes["num_key_value_heads"],
        head_dim=head_dim,
        ffn_width=_inner(width, float(sizes["mlp_ratio"])),
        activation="swiglu",
        patch=patch,
        block="joint_kv",
        qk_norm=True,
        position="rope",
        position_fit="centred",
        rope_axes=tuple(fields(found, where, axes_dims_rope=[16, 56, 56])["axes_dims_rope"]),
        time_embedding="wide",
        text_norm=True,
        latent_size=LATENT_SIZE,
        channels=channels // patch**2,
        text_width=text_width,
        sparse=narrow(SparseSpec, moe),
    )
    return spec, moe


def _moe(found: Mapping[str, Any], where: str, layers: int) -> MoESpec:
    """The `moe` section."""
    usual = next(iter(_STRATEGIES))
    strategy = fields(found, where, dense_moe_strategy=usual)["dense_moe_strategy"]
    if strategy == "all_dense" or not fields(found, where, moe_enabled=True)["moe_enabled"]:
        return MoESpec()
    if strategy not in _STRATEGIES:
        raise UserError(f"{where}: dense_moe_strategy is {strategy!r}; supported: {', '.join(_STRATEGIES)}.")
    told = fields(found, where, num_experts=128, moe_intermediate_dim=1344, use_sigmoid=False, route_scale=2.5)
    first, last_dense = _STRATEGIES[strategy]
    stop = layers - 1 if last_dense else 0
    given = found.get("capacity_factors", 8.0)
    factors = [float(f) for f in given] if isinstance(given, list) else [float(given)] * layers
    if len(factors) != layers:
        raise UserError(
            f"{where}: capacity_factors has {len(factors)} numbers, and there are {layers} blocks: give one each."
        )
    of_sparse = tuple(factors[first : stop or layers])
    alike = len(set(of_sparse)) == 1
    return MoESpec(
        routing="expert_choice",
        num_experts=told["num_experts"],
        first=first,
        every=1,
        stop=stop,
        expert_width=told["moe_intermediate_dim"],
        shared_width=told["moe_intermediate_dim"],
        router_input="normed_time",
        score="sigmoid" if told["use_sigmoid"] else "softmax",
        gate="normalized",
        gate_scale=float(told["route_scale"]),
        group_size="image",
        **{"capacity_factor": of_sparse[0]} if alike else {"capacity_factors": of_sparse},
    )


def _inner(width: int, ratio: float) -> int:
    """The inner width of dense layers: two thirds of the usual, as they have three matrices."""
    return int(width * ratio * 2 / 3) // _MULTIPLE * _MULTIPLE


def write(spec: DiTSpec, moe: MoESpec) -> dict[str, Any]:
    """The config.json with which diffusers loads a model of this structure and routing; the inverse of `read`.

    Raises:
        UserError: naming what Nucleus-Image's transformer does not have.
    """
    sparse, first, stop = spec.num_sparse > 0, spec.sparse.first, spec.sparse.stop
    stop = 0 if stop >= spec.num_blocks else stop
    inner = spec.sparse.expert_width or spec.hidden
    strategy = "all_dense"
    if sparse:
        pattern = (first, stop == spec.num_blocks - 1)
        fitting = [name for name, known in _STRATEGIES.items() if known == pattern]
        if not fitting or spec.sparse.every != 1 or (stop and not pattern[1]):
            here = f"{spec.sparse.first}, {spec.sparse.every} and {spec.sparse.stop}"
            check_holds(_TITLE, {"moe.first, every and stop": (here, "0, 1 or 3 dense blocks, then sparse ones")})
        strategy = fitting[0]
    ratio = math.ceil(1000 * 3 * spec.hidden / (2 * spec.width)) / 1000  # of which the same inner width comes
    same: dict[str, tuple[Any, Any]] = {
        "model.block": (spec.block, "joint_kv"),
        "model.qk_norm": (spec.qk_norm, True),
        "model.bias": (spec.bias, False),
        "model.activation": (spec.activation, "swiglu"),
        "model.position": (spec.position, "rope"),
        "model.position_fit": (spec.position_fit, "centred"),
        "model.position_scale": (spec.position_scale, 1.0),
        "model.time_embedding": (spec.time_embedding, "wide"),
        "model.text_norm": (spec.text_norm, True),
        "model.size_embedding": (spec.size_embedding, False),
        "model.learned_sigma": (spec.learned_sigma, False),
        "text.pooled_width": (spec.pooled_width, 0),
        "model.width": (spec.width, spec.num_heads * spec.head_dim),
        f"model.ffn_width, in multiples of {_MULTIPLE},": (spec.hidden, _inner(spec.width, ratio)),
    }
    if sparse:
        same |= {
            "moe.routing": (moe.routing, "expert_choice"),
            "moe.gate": (moe.gate, "normalized"),
            "moe.router": (moe.router, "linear"),
            "moe.router_input": (moe.router_input, "normed_time"),
            "moe.shared_width": (moe.shared_width, inner),
            "moe.record": (moe.record, False),
        }
    check_holds(_TITLE, same)
    factors = list(moe.capacity_factors or (moe.capacity_factor,) * spec.num_sparse)
    return {
        "_class_name": CLASS,
        "patch_size": spec.patch,
        "in_channels": spec.channels * spec.patch**2,
        "out_channels": spec.channels,
        "num_layers": spec.num_blocks,
        "attention_head_dim": spec.head_dim,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "joint_attention_dim": spec.text_width,
        "axes_dims_rope": list(spec.turning),
        "mlp_ratio": ratio,
        "moe_enabled": sparse,
        "dense_moe_strategy": strategy,
        "num_experts": moe.num_experts,
        "moe_intermediate_dim": inner,
        "capacity_factors": [0.0] * first + factors + [0.0] * (spec.num_blocks - first - len(factors))
        if sparse
        else 8.0,
        "use_sigmoid": moe.score == "sigmoid",
        "route_scale": moe.gate_scale,
    }
