"""How long the real training and sampling steps of configs take on the accelerator of this machine: docs/results.md.

    python benchmarks/steps.py --configs=dense_xl,gs_xl_8e,xl_8e [--what=train,sample] [--images=32] [--seconds=4] [--json=FILE]

Every config's own step, on random latents and embeddings, on all devices as one data-parallel mesh unless --mesh says
otherwise; only the number of images in a step is set here. All steps are compiled first, side by side; then each is alone on the
devices and repeats for so many seconds, the state going from one step into the next, and the median counts. FLOPs are the model's
own (models/sizes.py), which leave out what routing and remaking activations cost; peaks are those of core/hardware.py. The last
column is the time beside that of the first config of the same kind.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import process

sys.path.insert(0, str(process.ROOT))  # the config files

from ec_dit import config as config_lib
from ec_dit.config import RunConfig, specs
from ec_dit.config.data import SYNTHETIC
from ec_dit.core import settings
from ec_dit.core.mesh import MESH_AXES
from ec_dit.models import sizes
from ec_dit.planning import compile as compiler
from ec_dit.planning.compile import Compiled, Lowered
from ec_dit.system import layout
from ec_dit.system import step as training_step
from ec_dit.system.model import System
from ec_dit.train.flops import peak_flops

_WARM = 3  # steps before the clock starts
ALL_DATA = "-1,1,1,1"


def steady(name: str, images: int, mesh: str) -> RunConfig:
    """The config of a file, on so many images a step."""
    config = config_lib.typed(importlib.import_module(f"configs.{name}").get_config())
    changes: dict[str, Any] = {f"mesh.{axis}": int(size) for axis, size in zip(MESH_AXES, mesh.split(","), strict=True)}
    changes |= {"topology": "", "train.batch_size": images, "train.accumulate": 1, "sample.batch_size": images}
    changes["sample.layout"] = "auto" if mesh == ALL_DATA else "mesh"
    if config.text.encoder == "cached":
        changes["data.source"] = SYNTHETIC  # shapes are all that counts
    return settings.changed(config, changes)


def filled(abstract: Any, seed: int = 0) -> Any:
    """Random arrays of these shapes where they are floats, ones elsewhere, laid out as they say."""
    leaves, structure = jax.tree.flatten(abstract)
    rng = np.random.default_rng(seed)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.device_put(rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype), leaf.sharding)
        return jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding)

    return jax.tree.unflatten(structure, [fill(leaf) for leaf in leaves])


def runner(lowered: Lowered, program: Any, what: str) -> Callable[[], Any]:
    """What runs one step and gives something to wait for."""
    system = lowered.system
    given = filled(lowered.given)
    if what == "sample":
        held = system.sampling_params(system.abstract_params())

        def init(key: jax.Array) -> Any:
            return jax.tree.map(lambda a, like: a.astype(like.dtype), system.init_params(key), held)

        params = jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, held))(jax.random.key(0))
        taken = layout.as_computed(system)(params)
        return lambda: program(taken, *given)
    tx = training_step.optimizer(system)
    _, shardings = training_step.abstract_state(system, tx)
    state = [training_step.init_state(system, tx, shardings)]

    def step() -> Any:
        state[0], metrics = program(state[0], *given)
        return metrics

    return step


def timed(step: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each step, waited for one by one."""
    for _ in range(_WARM):
        jax.block_until_ready(step())
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < _WARM:
        start = time.perf_counter()
        jax.block_until_ready(step())
        times.append(time.perf_counter() - start)
    return times


def model_flops(system: System, what: str) -> int:
    """FLOPs that the model needs for an image."""
    config = system.config
    spec, length = specs.dit_spec(config), config.text.length
    factor = specs.computed_factor(config, sampling_on=system.mesh if what == "sample" else None)
    if what == "train":
        tower = specs.tower_spec(config, system.tokenizer)
        return sizes.train_flops_per_image(spec, specs.kept_tokens(config), length, factor, tower)
    passes = 2 if config.sample.guidance != 1 else 1
    return passes * sizes.forward_flops(spec, specs.image_tokens(config), length, factor, reads_text=False)


def main() -> None:
    """Lowers, compiles, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--configs", required=True, help="names of config files, with commas between; the first is compared with"
    )
    parser.add_argument("--what", default="train,sample")
    parser.add_argument("--images", type=int, default=32, help="of a step, over all devices")
    parser.add_argument("--mesh", default=ALL_DATA, help=f"devices along {', '.join(MESH_AXES)}")
    parser.add_argument("--seconds", type=float, default=4.0, help="that each step repeats")
    parser.add_argument("--threads", type=int, default=8, help="programs compiled at once")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    device = jax.devices()[0]
    peak = peak_flops(device)[0] * jax.device_count()
    print(
        f"{jax.device_count()} x {device.device_kind}, jax {jax.__version__}, {arguments.images} images a step",
        flush=True,
    )
    jobs = [(what, name) for what in arguments.what.split(",") for name in arguments.configs.split(",")]
    begin = time.perf_counter()
    lowered: dict[tuple[str, str], Lowered] = {}
    for what, name in jobs:
        lowered[what, name] = compiler.lower(steady(name, arguments.images, arguments.mesh), jax.devices(), what)
    print(f"lowered in {time.perf_counter() - begin:.0f} s", flush=True)
    with ThreadPoolExecutor(arguments.threads) as pool:
        compiled = dict(zip(jobs, pool.map(lambda job: lowered[job].compile(), jobs), strict=True))
    print(f"compiled after {time.perf_counter() - begin:.0f} s", flush=True)

    rows, first = [], dict[str, float]()
    print(
        "| step | config | ms | images/s | model TFLOP/s | of peak | memory, GB | time beside the first |\n"
        "|---|" + "---|" * 7
    )
    for what, name in jobs:
        try:
            row = measure(compiled.pop((what, name)), what, name, arguments.seconds, peak)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"| {what} | `{name}` | does not fit |", flush=True)
            continue
        row["beside_first"] = row["seconds"] / first.setdefault(what, row["seconds"])
        rows.append(row)
        print(
            f"| {what} | `{name}` | {row['seconds'] * 1e3:.1f} | {row['images_per_second']:.1f} | "
            f"{row['model_flops_per_second'] / 1e12:.3g} | {row['of_peak']:.1%} | {row['bytes'] / 1e9:.1f} | "
            f"{row['beside_first']:.2f} |",
            flush=True,
        )
    if arguments.json:
        facts = {
            "device": device.device_kind,
            "devices": jax.device_count(),
            "jax": jax.__version__,
            "images": arguments.images,
        }
        arguments.json.write_text(json.dumps(facts | {"rows": rows}, indent=1))


def measure(compiled: Compiled, what: str, name: str, seconds: float, peak: float) -> dict[str, Any]:
    """The figures of one step; its arrays are gone afterwards."""
    lowered = compiled.lowered
    with jax.set_mesh(lowered.system.mesh):
        times = timed(runner(lowered, compiled.program, what), seconds)
    median = statistics.median(times)
    flops = model_flops(lowered.system, what) * lowered.images / median
    found = {
        "what": what,
        "config": name,
        "seconds": median,
        "fastest": min(times),
        "slowest": max(times),
        "steps": len(times),
    }
    found |= {"images_per_second": lowered.images / median, "model_flops_per_second": flops, "of_peak": flops / peak}
    return found | {"bytes": compiled.needed, "compile_seconds": compiled.seconds}


if __name__ == "__main__":
    main()
