"""What config files share: where the paper's and the shapes configs start, and the argument after a config's colon."""

from typing import Any

from ml_collections import ConfigDict

from ec_dit import config
from ec_dit.core import paths, settings
from ec_dit.core import topology as topologies
from ec_dit.core.errors import UserError
from ec_dit.models.paper import CAPACITY_FACTOR, PAPER
from ec_dit.recipes import layouts


def paper(name: str) -> ConfigDict:
    """The default recipe with the structure, routing and slice of one row of `models.paper.PAPER`."""
    row, c = PAPER[name], config.default()
    c.name = name
    spec = row.spec
    c.model.update(
        width=spec.width, num_blocks=spec.num_blocks, num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads
    )
    c.moe.update(routing=row.routing, num_experts=spec.sparse.num_experts, capacity_factor=CAPACITY_FACTOR)
    # An expert of every sparse block a chip, in parts over fsdp; of a dense model the same parts of its dense layers.
    experts = spec.sparse.num_experts
    pod(c, row.topology, **({"expert": experts, "fsdp": -1} if experts else {"fsdp": row.dense_ways, "data": -1}))
    c.sample.batch_size = topologies.parse(row.topology).chips  # an image a chip
    return c


# What the TPU's compiler runs beside what, chosen by comparing compiled programs (docs/scaling.md): collectives while kernels
# compute, and gradients scattered one by one, since combined ones become all-reduces.
TPU_OPTIONS = {
    "xla_jf_crs_combiner_threshold_in_bytes": "0",
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_all_to_all": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}
SPARSE_CORE_OPTIONS = {  # v5p: the SparseCores carry gradients while the TensorCore computes
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
}


def pod(c: ConfigDict, topology: str, **mesh: int) -> None:
    """Places a config on a TPU slice: its topology, the mesh (axes not named have size 1), options of its compiler."""
    c.topology = topology
    c.mesh.update({"data": 1, "fsdp": 1, "expert": 1, "tensor": 1} | mesh)
    c.tpu_options.update(TPU_OPTIONS)
    if topology.startswith("v5p"):
        c.tpu_options.update(SPARSE_CORE_OPTIONS)


def shapes() -> ConfigDict:
    """The small world of configs/shapes.py, which its dense and token-choice twins share."""
    c = config.default()
    c.name = "shapes"
    c.model.update(width=128, num_blocks=4, num_heads=4, num_kv_heads=4, head_dim=32, patch=16)
    c.model.update(qk_norm=True, position_scale=0.25)
    c.moe.update(routing="expert_choice", num_experts=8, group_size="32")
    c.text.update(encoder="tower", width=128, length=12, tower_blocks=2, tower_heads=4)
    c.data.update(source="shapes", path="data/shapes", space="pixels", size=64, channels=3)
    c.data.options = ConfigDict({"image_size": 64, "cells": 4, "placement": "cell", "ground": "plain"})
    c.data.options.update(train=20_000, validation=600, novel=300, seed=0)
    c.flow.update(prediction="data", time_mean=2.3, mask_ratio=0.0)
    c.optimizer.update(name="muon", learning_rate=1e-2, adam_learning_rate=1e-3, warmup_steps=100, schedule="cosine")
    c.optimizer.update(momentum=0.95, decay=0.95, ema_decay=0.999)
    c.train.update(steps=2500, batch_size=64)
    c.checkpoint.every = 500
    c.log.update(every=50, validate_every=500, validate_images=256, sample_every=500, maps=2)
    c.sample.update(steps=20, sampler="euler", guidance=1.5, time_shift=8.0, batch_size=48)
    c.eval.suites = ("shapes",)
    return c


def emoji() -> ConfigDict:
    """The emoji of configs/emoji.py, at its size."""
    c = config.default()
    c.name = "emoji"
    c.model.update(width=160, num_blocks=4, num_heads=5, num_kv_heads=5, head_dim=32, patch=6)
    c.model.update(qk_norm=True, position_scale=0.5)
    c.moe.update(routing="expert_choice", num_experts=8, group_size="512")  # 8 images
    c.text.update(encoder="tower", width=160, length=20, tower_blocks=2, tower_heads=5)
    c.data.update(source="emoji", path="data/emoji", space="pixels", size=48, channels=3)
    c.flow.update(prediction="data", time_mean=1.0, mask_ratio=0.0)
    c.optimizer.update(name="muon", learning_rate=1e-2, adam_learning_rate=1e-3, warmup_steps=100, schedule="cosine")
    c.optimizer.update(momentum=0.95, decay=0.95, ema_decay=0.999)
    c.train.update(steps=1800, batch_size=64)
    c.checkpoint.every = 300
    c.log.update(every=50, validate_every=300, validate_images=256, sample_every=600, maps=2)
    c.sample.update(steps=30, sampler="heun", guidance=1.75, time_shift=2.0, batch_size=32)
    return c


def icons() -> ConfigDict:
    """The icons of configs/icons.py, at their size."""
    c = emoji()
    c.name = "icons"
    c.model.update(width=128, num_heads=4, num_kv_heads=4, patch=4)
    c.text.update(width=128, length=24, tower_heads=4)
    c.data.update(source="icons", path="data/icons", size=32)
    c.data.options = ConfigDict({"path": "node_modules/@iconify-json", "image_size": 32})
    return c


# Routers that were published after the paper, at the activated compute of a small config whose experts are as wide as its dense
# layers (F) and of which two work on a token: what each changes. Widths are shares of F. Formulas: docs/routers.md.
ROUTERS: dict[str, dict[str, Any]] = {
    "race": {"routing": "expert_race", "score": "identity", "similarity_weight": 1e-4},
    "diffmoe": {"routing": "diffmoe"},
    "nucleus": {
        "gate": "normalized",
        "gate_scale": 2.5,
        "router_input": "normed_time",
        "expert_width": 0.75,
        "shared_width": 0.5,
    },
    "promoe": {"router": "cosine", "score": "identity", "expert_width": 0.75, "shared_width": 0.5},
    "dsmoe": {
        "routing": "top_k",
        "top_k": 6,
        "capacity_factor": 6.0,
        "num_experts": 32,
        "score": "sigmoid",
        "gate": "normalized",
        "gate_scale": 2.5,
        "expert_width": 0.25,
        "shared_width": 0.5,
    },
    "hidream": {"routing": "top_k", "top_k": 2, "expert_width": 0.75, "shared_width": 0.5},
    "matched": {"record": True},  # the paper's, sampled by the thresholds of training
    "sorted": {"group_times": "sorted"},  # the paper's, with images of similar times routed together
}


def router(c: ConfigDict, arg: str) -> ConfigDict:
    """The small config c with a router of ROUTERS; arg is NAME, or NAME,smoke.

    Raises:
        UserError: for another argument.
    """
    name, _, rest = arg.partition(",")
    if name not in ROUTERS:
        raise UserError(
            f"config argument ':{arg}': give one of {', '.join(ROUTERS)}, such as --config={c.name}_router:race, and ,smoke "
            "behind it for a short CPU run."
        )
    inner = c.model.ffn_factor * c.model.width
    for key, value in ROUTERS[name].items():
        c.moe[key] = round(value * inner) if key.endswith("_width") else value
    if name == "matched":
        c.sample.capacity = "matched"
    c.name += f"_{name}"
    return variant(c, rest)


def from_run(workdir: str) -> ConfigDict:
    """The config of a workdir, whose parameters another run is to start with.

    Raises:
        UserError: if there is none.
    """
    if not workdir:
        raise UserError("give the workdir to start from: --config=from_run:DIR")
    path = paths.at(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} is no workdir of a run: there is no {path}.")
    saved = config.from_json(path.read_text(), str(path))
    idle = {key: config.KEYS[key].default for key in config.unused(saved)}  # left over in it, and refused in a new one
    return config.to_dict(settings.changed(saved, {**idle, "train.init_from": workdir}))


def smoke(c: ConfigDict) -> ConfigDict:
    """A few CPU steps of the same routing and structure: sparse pattern, key-value groups, modulation, optimizer.

    Sizes shrink, and the data become the embedded shapes in pixels with a jointly trained text tower, so that the run also
    samples. Batch and group shrink together: 8 masked images to a group, as in the paper.
    """
    heads_per_kv = c.model.num_heads // c.model.num_kv_heads
    c.name += "_smoke"
    c.model.update(
        width=32 * heads_per_kv, num_blocks=4, num_heads=2 * heads_per_kv, num_kv_heads=2, head_dim=16, patch=4
    )
    c.model.update(ffn_width=0, rope_axes=(), dual_blocks=min(2, c.model.dual_blocks))
    if c.moe.routing != "dense":
        c.moe.num_experts = min(8, c.moe.num_experts)
        c.moe.top_k = min(2, c.moe.top_k)
        c.moe.capacity_factor = min(2.0, c.moe.capacity_factor)
        for key in ("expert_width", "shared_width"):
            c.moe[key] = min(32, c.moe[key])
        c.moe.update(first=min(1, c.moe.first), stop=0, capacity_factors=())
        c.moe.group_size = "256"  # 8 images x 64 tokens x mask ratio 0.5, as in the paper; 4 images without masking
    c.text.update(encoder="tower", width=64, length=24, tower_blocks=1, tower_heads=2, pooled_width=0)
    c.text.update(padding="masked", template="", layer=0)  # of published encoders
    c.data.update(
        source="shapes", path="data/shapes_smoke", space="pixels", size=32, channels=3, workers=0, normalize="channel"
    )
    c.data.options = ConfigDict({"image_size": 48, "train": 256, "validation": 64, "novel": 16})
    c.optimizer.warmup_steps = 5
    c.train.update(steps=10, batch_size=16, accumulate=1)
    c.mesh.update(data=-1, fsdp=1, expert=1, tensor=1)
    c.checkpoint.every = 5
    c.log.update(every=1, validate_every=10, validate_images=16, sample_every=10, maps=0)
    c.sample.update(steps=4, batch_size=8)
    c.eval.suites = ()
    return c


def published(model: str, name: str) -> ConfigDict:
    """The recipe of a published model of `recipes.layouts.PUBLISHED`, under another name."""
    c = config.to_dict(layouts.recipe_of(model))
    c.name = name
    return c


_SIDES = (256, 512, 1024)  # of pictures, in pixels
_LATENT_PIXEL = 8


def sized(c: ConfigDict, arg: str) -> ConfigDict:
    """The config of a published model for pictures of another size, or `smoke`.

    Raises:
        UserError: for another argument.
    """
    if arg in map(str, _SIDES):
        c.data.size = int(arg) // _LATENT_PIXEL
        c.sample.batch_size *= (max(_SIDES) // int(arg)) ** 2
        c.name += f"_{arg}"
    elif arg not in ("", "smoke"):
        raise UserError(f"config argument ':{arg}': give one of {', '.join(map(str, _SIDES))} pixels, or smoke.")
    return smoke(c) if arg == "smoke" else c


def variant(c: ConfigDict, arg: str) -> ConfigDict:
    """The config that `--config=FILE:arg` asks for: as it is without an argument, `smoke` for a few CPU steps.

    Raises:
        UserError: for another argument.
    """
    if arg not in ("", "smoke"):
        raise UserError(
            f"config argument ':{arg}' is unknown. Use --config={c.name}, or {c.name}:smoke for a short CPU run."
        )
    return smoke(c) if arg else c
