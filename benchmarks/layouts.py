"""Compares compiled programs of one model under other layouts, remat policies and compiler options: make layouts.

    python benchmarks/layouts.py [--only=m_64e]

Writes docs/layouts.md: the sparse layer alone against its theoretical work, then whole training steps. Each row is compiled in a
process of its own, about a minute on two cores.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import process
from ml_collections import ConfigDict

from ec_dit import config, plan, presets
from ec_dit.config import overrides, specs
from ec_dit.core import topology

FIGURES, PAGE = process.ROOT / "docs" / "layouts.json", process.ROOT / "docs" / "layouts.md"
LAYER = "sparse layer"


def _without(*options: str) -> Callable[[ConfigDict], None]:
    def change(c: ConfigDict) -> None:
        for option in options:
            if option in c.tpu_options:
                del c.tpu_options[option]

    return change


COMBINER = "xla_jf_crs_combiner_threshold_in_bytes"
CHANGES: dict[str, Callable[[ConfigDict], None]] = {
    "as configured": lambda _: None,
    "data in place of fsdp": lambda c: c.mesh.update(data=-1, fsdp=1),
    "remat dots": lambda c: c.model.update(remat="dots"),
    "remat full": lambda c: c.model.update(remat="full"),
    "combine by one-hot products": lambda c: c.moe.update(combine="one_hot"),
    "gradients combined": _without(COMBINER),
    "without SparseCore": _without(*presets.SPARSE_CORE_OPTIONS),
    "no compiler options": _without(*presets.TPU_OPTIONS, *presets.SPARSE_CORE_OPTIONS),
}
MODELS = ("m_64e", "xl_32e")


def jobs() -> list[tuple[str, str]]:
    """(config, change) of every row; the layer's are 'sparse layer: scatter' and the like."""
    layers = [(name, f"{LAYER}: {how}") for name in MODELS for how in ("scatter", "one_hot")]
    steps = [
        (name, change)
        for name in MODELS
        for change in CHANGES
        if name == "m_64e" or change != "without SparseCore"  # a v4 has no SparseCore options
    ]
    return layers + steps


def load(name: str) -> ConfigDict:
    """A config on synthetic data."""
    c = overrides.load(process.ROOT / "configs" / f"{name}.py", "")
    c.data.source = "synthetic"
    return c


def compile_step(name: str, change: str, path: str) -> None:
    """In a process of its own: the plan of a changed config."""
    c = load(name)
    CHANGES[change](c)
    plan.plan(config.typed(c), None, "train", path)


def compile_layer(name: str, how: str, path: str) -> None:
    """In a process of its own: forward and backward pass of one sparse layer, as the training step runs it."""
    loaded = load(name)
    loaded.moe.combine = how
    c = config.typed(loaded)
    plan.prepare_environment(topology.parse(c.topology))

    import jax
    import jax.numpy as jnp
    from flax import nnx

    from ec_dit.core import sharding
    from ec_dit.nn import param
    from ec_dit.nn.moe import MoE, stats_axes
    from ec_dit.planning import compile as compiler
    from ec_dit.planning import hlo
    from ec_dit.planning.collectives import collectives
    from ec_dit.system.model import make_config_mesh

    on, _ = compiler.devices(c.topology)
    mesh, width, experts = make_config_mesh(c, on), c.model.width, c.moe.num_experts
    routing, tokens = specs.train_routing(c), specs.kept_tokens(c)
    hidden = c.model.ffn_factor * width
    graphdef, params, infos = param.split(
        nnx.eval_shape(lambda: MoE(width, hidden, experts, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    )

    def place(axes: Any, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.named_sharding(axes, shape, mesh))

    weights = {key: place(infos[key].axes, leaf.shape, leaf.dtype) for key, leaf in params.items()}
    axes = ("batch", None, None)
    x_BSD = place(axes, (c.train.batch_size, tokens, width), jnp.bfloat16)

    def loss(weights: Any, x_BSD: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, weights)
        layer = param.per_device(
            model, lambda layer, x: layer(x, routing), (axes,), (axes, stats_axes(routing)), "tokens"
        )
        return jnp.square(
            layer(x_BSD)[0].astype(jnp.float32)
        ).sum()  # its gradient needs the output: nothing may be dropped

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, (0, 1)), compiler_options=dict(c.tpu_options))
        compiled = step.lower(weights, x_BSD).compile()
    text = compiled.as_text()
    assert text is not None
    local = c.train.batch_size * tokens // mesh.size
    theory = 3 * 2 * local * (routing.capacity_factor * 2 * width * hidden + width * experts)
    moved: dict[str, list[int]] = {}
    for found in collectives(hlo.parse(text)):
        moved.setdefault(found.kind, []).extend([found.bytes] * found.count)
    figures = {"flops": compiled.cost_analysis()["flops"], "theory": theory, "collectives": moved}
    Path(path).write_text(json.dumps(figures))


def figures(name: str, change: str) -> dict[str, Any]:
    """One row, from a process of its own."""
    return process.figures(
        f"{name}, {change}", lambda path: [__file__, f"--worker={path}", f"--only={name}", f"--change={change}"]
    )


def page(rows: dict[str, dict[str, Any]]) -> str:
    """docs/layouts.md."""
    lines = [
        "# Layouts compared",
        "",
        "Programs of the TPU compiler for the same model under other settings, one at a time; `make layouts` writes this page",
        "anew. Nothing here ran on a TPU. [scaling.md](scaling.md) says what was chosen, and why.",
        "",
        "## The sparse layer alone, forward and backward",
        "",
        "FLOPs as XLA counts them, against the products of the experts and the router.",
        "",
        "| model | combine | FLOPs of a chip, G | theory | ratio | all-to-alls | other collectives |",
        "|---|---|---|---|---|---|---|",
    ]
    for job, row in rows.items():
        name, change = job.split(" ", 1)
        if not change.startswith(LAYER):
            continue
        moved = dict(row["collectives"])
        slots = moved.pop("all-to-all")
        others = ", ".join(f"{len(sizes)} {kind} (largest {max(sizes) / 1e6:.1f} MB)" for kind, sizes in moved.items())
        lines.append(
            f"| `{name}` | {change.split(': ')[1]} | {row['flops'] / 1e9:.1f} | {row['theory'] / 1e9:.1f} | "
            f"{row['flops'] / row['theory']:.3f} | {len(slots)} of {slots[0] / 1e6:.1f} MB | {others} |"
        )
    for model in MODELS:
        lines += ["", f"## A training step of {model}", ""]
        lines += [
            "| | memory, GB | FLOPs / model | main memory, GB | collectives, GB | nothing hides, ms | step, ms | MFU |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for job, row in rows.items():
            name, change = job.split(" ", 1)
            if name != model or change.startswith(LAYER):
                continue
            if not row.get("devices"):
                lines.append(f"| {change} | does not fit | | | | | | |")
                continue
            lines.append(
                f"| {change} | {row['hbm_bytes_per_chip'] / 1e9:.1f} "
                f"| {row['compiled_flops_per_chip'] / row['model_flops_per_chip']:.3f} "
                f"| {row['hbm_traffic_bytes_per_chip'] / 1e9:.0f} | {sum(c['bytes'] for c in row['collectives']) / 1e9:.1f} "
                f"| {row['roofline']['exposed_ici_s'] * 1e3:.0f} | {row['step_seconds'] * 1e3:.0f} | {row['mfu']:.0%} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compiles every row and writes the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--change", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        if arguments.change.startswith(LAYER):
            compile_layer(arguments.only, arguments.change.split(": ")[1], arguments.worker)
        else:
            compile_step(arguments.only, arguments.change, arguments.worker)
        return
    rows = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for name, change in jobs():
        if arguments.only in (None, name):
            print(f"{name}, {change}", flush=True)
            rows[f"{name} {change}"] = figures(name, change)
            rows = {f"{n} {c}": rows[f"{n} {c}"] for n, c in jobs() if f"{n} {c}" in rows}
            FIGURES.write_text(json.dumps(rows, indent=1) + "\n")
            PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
