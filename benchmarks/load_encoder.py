"""How much memory the host needs to load a text encoder as large as T5-XXL, and how long it takes: docs/pretrained.md.

    python benchmarks/load_encoder.py --folder=/somewhere/with/10/GB [--devices=8] [--width=4096 --blocks=24 --hidden=10240]

Writes a random encoder in bfloat16 as hubs publish it, in shards with an index, and loads it in a process of its own onto
emulated CPU devices, over which it is split. The peak is the largest resident memory that the kernel saw, the devices' memory
included, since theirs is the host's.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import process

GIB = 2**30
_MEASURE = "--measure"


def write(folder: Path, width: int, blocks: int, hidden: int) -> None:
    """The encoder; random bytes would take longer to draw than to write, so one block of numbers repeats."""
    import ml_dtypes
    import numpy as np

    from ec_dit.core import export

    numbers = np.random.default_rng(0).normal(0, 0.02, 2**20).astype(ml_dtypes.bfloat16)
    found = {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": width,
        "d_kv": 64,
        "d_ff": hidden,
        "num_layers": blocks,
        "num_heads": width // 64,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
    }

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        yield "shared.weight", np.resize(numbers, (32128, width))
        yield "encoder.final_layer_norm.weight", np.resize(numbers, (width,))
        bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield bias, np.resize(numbers, (32, width // 64))
        for block in range(blocks):
            attention, mlp = (f"encoder.block.{block}.layer.{layer}" for layer in (0, 1))
            for name in "qkvo":
                yield f"{attention}.SelfAttention.{name}.weight", np.resize(numbers, (width, width))
            for name, shape in (("wi_0", (hidden, width)), ("wi_1", (hidden, width)), ("wo", (width, hidden))):
                yield f"{mlp}.DenseReluDense.{name}.weight", np.resize(numbers, shape)
            for layer in (attention, mlp):
                yield f"{layer}.layer_norm.weight", np.resize(numbers, (width,))

    export.write(folder, "model", tensors())
    (folder / "config.json").write_text(json.dumps(found))


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes (Linux)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(folder: Path, devices: int, figures: Path) -> None:
    """Loads, and writes what it took."""
    import jax
    import jax.numpy as jnp

    from ec_dit.core.mesh import make_mesh
    from ec_dit.core.tree import num_params
    from ec_dit.encoders import t5

    jax.config.update("jax_num_cpu_devices", devices)
    mesh = make_mesh((1, devices, 1, 1))
    start, before = time.monotonic(), peak_memory()
    _, (_, params) = t5.load(folder, mesh, jnp.dtype("bfloat16"))
    jax.block_until_ready(params)
    found = {
        "seconds": time.monotonic() - start,
        "parameters": num_params(params),
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "bytes_on_one_device": sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params)),
        "peak": peak_memory(),
        "before": before,
    }
    figures.write_text(json.dumps(found))


def main() -> None:
    """Writes the files where they are missing, measures in a process of its own, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--devices", type=int, default=8)
    for name, default in (("width", 4096), ("blocks", 24), ("hidden", 10240)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(_MEASURE, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.folder, given.devices, given.measure)
        return
    if not (given.folder / "config.json").exists():
        write(given.folder, given.width, given.blocks, given.hidden)
    own = ["benchmarks/load_encoder.py", f"--folder={given.folder.absolute()}", f"--devices={given.devices}"]
    found = process.figures("load_encoder", lambda path: [*own, f"{_MEASURE}={path}"])
    sys.stdout.write(
        f"{found['parameters']:,} parameters, {found['bytes'] / GIB:.2f} GiB in bfloat16, "
        f"{found['bytes_on_one_device'] / GIB:.2f} GiB on each of {given.devices} devices, in {found['seconds']:.0f} s.\n"
        f"peak resident memory {found['peak'] / GIB:.2f} GiB, {(found['peak'] - found['bytes']) / GIB:.2f} GiB above the model "
        f"({found['before'] / GIB:.2f} GiB before loading)\n"
    )


if __name__ == "__main__":
    main()
