"""What experts cost in sampling over a dense model, beside what their FLOPs say: docs/performance.md.

    python benchmarks/overhead.py --predicted                                  from docs/plans.json
    python benchmarks/overhead.py --measured [--sizes=512:8,512:16] [--cores=1] [--images=4] [--rounds=15]
    python benchmarks/overhead.py --groups [--workdir=RUN] [--prompts=48]      the paper's table of S and f_c

`--predicted` compares compiled programs, on the paper's slices and on eight chips. `--measured` runs one network evaluation of
four blocks of the paper's kind, 256 tokens and 77 text tokens an image, dense and sparse in turn on the device that is here, and
the parts of the sparse layer by themselves; --cores holds the process to so many cores. `--groups` draws pictures of a run with
other group sizes and capacity factors: seconds, how far pictures move from the run's own settings, and their score.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import process

PAIRS = {  # sparse -> dense; what the paper measured beside it, and by its own theory at most
    "xl_32e": ("dense_xl", "20 to 28 %"),
    "xxl_32e": ("dense_xxl", "20 to 28 %"),
    "3xl_32e": ("dense_3xl", "20 to 28 %"),
    "m_64e": ("dense_m", "23 %"),
    "gs_xl_32e": ("dense_xl", ""),
    "gs_xxl_32e": ("dense_xxl", ""),
}
EIGHT = " v5p:2x2x2"
# S in tokens of an image, f_c. The paper's S = 1024, two images and their unconditional copies, would let a picture depend on
# another one, which no setting here does.
GROUPS = ((0.5, 1.0), (0.5, 2.0), (1, 1.0), (1, 2.0), (2, 1.0), (2, 2.0))
_BLOCKS, _HEAD = 4, 64


def predicted() -> list[str]:
    """Rows of compiled programs."""
    plans = json.loads((process.ROOT / "docs" / "plans.json").read_text())
    lines = [
        "| sparse / dense | chips | images a chip | by FLOPs | predicted | gap, points | paper, measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for where in ("", EIGHT):
        for sparse, (dense, paper) in PAIRS.items():
            pair = [plans.get(f"{name} sample{where}") for name in (sparse, dense)]
            if not all(pair):
                continue
            images = [plan["images_per_second"] * plan["step_seconds"] / plan["devices"] for plan in pair]
            if round(images[0]) != round(images[1]):
                continue  # planned at different times: no comparison
            flops, step = (
                pair[0][key] / images[0] / (pair[1][key] / images[1])
                for key in ("model_flops_per_chip", "step_seconds")
            )
            lines.append(
                f"| `{sparse}` / `{dense}` | {pair[0]['topology']} | {images[0]:.0f} | {flops - 1:.1%} | {step - 1:.1%} | "
                f"{100 * (step - flops):.1f} | {paper} |"
            )
    return lines


def small(width: int, experts: int, images: int) -> Any:
    """Four blocks of the paper's kind; experts = 0: dense."""
    import steps

    from ec_dit.core import settings

    config = steps.steady("xl_8e" if experts else "dense_xl", images, steps.ALL_DATA)
    changes = {"model.width": width, "model.num_blocks": _BLOCKS, "model.num_heads": width // _HEAD}
    changes |= {"model.num_kv_heads": max(1, width // _HEAD // 3), "model.dtype": "auto", "sample.guidance": 1.0}
    changes |= {"text.length": 77} | ({"moe.num_experts": experts, "moe.group_size": "image"} if experts else {})
    return settings.changed(config, changes)


def parts(width: int, experts: int, images: int) -> dict[str, Callable[[], Any]]:
    """The parts of a sparse layer of these sizes, each by itself on what the part before gives."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ec_dit.nn import experts as layers
    from ec_dit.nn.dispatch import combine, dispatch
    from ec_dit.nn.routing import scores
    from ec_dit.nn.routing.rules import route
    from ec_dit.nn.routing.spec import RoutingSpec

    rng, tokens, hidden = np.random.default_rng(0), 256, 4 * width
    x_GSD, w_DE = (
        jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((images, tokens, width), (width, experts))
    )
    up_EDF, down_EFD = (
        jnp.asarray(0.02 * rng.normal(size=size), jnp.float32)
        for size in ((experts, width, hidden), (experts, hidden, width))
    )
    weights, spec = layers.ExpertWeights(up_EDF, down_EFD, None, None, None), RoutingSpec()

    def router(x_GSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = route(scores.scores(scores.logits(x_GSD, w_DE, spec.router), spec.score), spec, None, None, None)
        return found.index_GEC, found.gate_GEC

    def dense(x_GSD: jax.Array) -> jax.Array:
        return jax.nn.gelu(x_GSD @ up_EDF[0]) @ down_EFD[0]

    programs = {
        "router": (jax.jit(router), (x_GSD,)),
        "dense layer": (jax.jit(dense), (x_GSD,)),
        "dense layer, f_c times": (jax.jit(dense), (jnp.concatenate([x_GSD, x_GSD]),)),
    }
    index_GEC, gate_GEC = programs["router"][0](x_GSD)
    programs["dispatch"] = (jax.jit(dispatch, static_argnums=2), (x_GSD, index_GEC, jnp.float32))
    slots_EGCD = programs["dispatch"][0](*programs["dispatch"][1])
    programs["experts"] = (jax.jit(layers.compute), (slots_EGCD[None], weights))
    programs["combine"] = (
        jax.jit(combine, static_argnums=(3, 4)),
        (slots_EGCD, index_GEC, gate_GEC, tokens, "scatter"),
    )
    calls = {name: functools.partial(program, *given) for name, (program, given) in programs.items()}
    jax.block_until_ready([call() for call in calls.values()])  # all are compiled now
    return calls


def measured(sizes: str, images: int, rounds: int) -> list[str]:
    """Rows of one network evaluation, sparse over dense, on the device that is here."""
    import clock
    import jax
    import steps

    from ec_dit.planning import compile as compiler

    device, cores = jax.devices()[0].device_kind, len(os.sched_getaffinity(0))
    lines = [
        f"{jax.device_count()} x {device}, {cores} cores, jax {jax.__version__}; {images} images, {rounds} rounds.",
        "",
        "| width | experts | by FLOPs | measured (quartiles) | gap, points | router | dispatch | experts | combine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for width, count in (tuple(map(int, size.split(":"))) for size in sizes.split(",")):
        runs, flops = {}, {}
        for experts in (0, count):
            lowered = compiler.lower(small(width, experts, images), jax.devices(), "sample")
            runs[str(experts)] = steps.runner(lowered, lowered.compile().program, "sample")
            flops[experts] = steps.model_flops(lowered.system, "sample")
        jax.block_until_ready([run() for run in runs.values()])
        times = clock.in_turn(runs, rounds)
        ratios = [sparse / dense for sparse, dense in zip(times[str(count)], times["0"], strict=True)]
        theory, found = flops[count] / flops[0], statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4)
        own = clock.in_turn(parts(width, count, images), rounds)
        dense = statistics.median(times["0"])
        extra = {name: 2 * statistics.median(seconds) / dense for name, seconds in own.items()}  # of two sparse blocks
        extra["experts"] -= extra["dense layer, f_c times"]
        lines.append(
            f"| {width} | {count} | {theory - 1:.1%} | {found - 1:.1%} ({low - 1:.1%} to {high - 1:.1%}) | "
            f"{100 * (found - theory):.1f} | {extra['router']:.1%} | {extra['dispatch']:.1%} | {extra['experts']:+.1%} | "
            f"{extra['combine']:.1%} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return [
        *lines,
        "",
        "Of the parts: shares of the dense evaluation; of experts, over dense layers on as many tokens.",
    ]


def groups(workdir: str, prompts: int, seed: int = 0) -> list[str]:
    """The paper's table, of a run."""
    import numpy as np

    from ec_dit.evaluators.shapes.scoring import score
    from ec_dit.preparation.drawing.shapes_scene import ShapesOptions, eval_prompts
    from ec_dit.runs import loaded

    run = loaded.load(workdir)
    tokens = (run.config.data.size // run.config.model.patch) ** 2
    options = run.workdir.data_options(ShapesOptions)
    asked = eval_prompts(options, -(-prompts // 6), seed)[:prompts]
    texts = [caption for _, caption, _ in asked]
    pictures, seconds = {}, {}
    for share, factor in GROUPS:
        size = int(tokens * share)
        how: dict[str, Any] = {"group_size": str(size), "capacity_factor": factor}
        run.draw(texts[:1], **how)
        start = time.perf_counter()
        pictures[size, factor] = run.draw(texts, seed=seed, **how)
        seconds[size, factor] = time.perf_counter() - start
    own = pictures[2 * tokens, 2.0].astype(np.float32)
    lines = ["| S | f_c | seconds / 500 images | PSNR to the last row | score |", "|---|---|---|---|---|"]
    for (size, factor), made in pictures.items():
        error = np.square(made - own).mean()
        drift = "-" if not error else f"{10 * np.log10(255**2 / error):.1f} dB"
        result = score(made, [requirement for _, _, requirement in asked], options.shapes, options.colors)
        lines.append(
            f"| {size} | {factor:g} | {500 * seconds[size, factor] / len(texts):.1f} | {drift} | {result['mean']:.3f} |"
        )
    return lines


def main() -> None:
    """Prints what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predicted", action="store_true")
    parser.add_argument("--measured", action="store_true")
    parser.add_argument("--groups", action="store_true")
    parser.add_argument("--sizes", default="512:8,512:16,768:8,768:16", help="width:experts, with commas between")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cores", type=int, help="of this process")
    parser.add_argument("--workdir", help="of a run on shapes")
    parser.add_argument("--prompts", type=int, default=48)
    arguments = parser.parse_args()
    if arguments.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    lines: list[str] = []
    if arguments.predicted:
        lines += [*predicted(), ""]
    if arguments.measured:
        lines += [*measured(arguments.sizes, arguments.images, arguments.rounds), ""]
    if arguments.groups:
        lines += groups(arguments.workdir, arguments.prompts)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
