"""How fast pictures and captions are encoded, with encoders of the sizes that the paper's models want: docs/data.md.

    python benchmarks/encode.py [--images=64] [--batch=16] [--side=512] [--small]

Random weights, in the shapes of Stable Diffusion's autoencoder and of OpenCLIP bigG's text tower, encode random JPEGs of 512
pixels at 256: decoding and cropping, latents, embeddings and files are timed one by one, each after a first batch that compiles.
--small takes encoders of a few thousand parameters: what is left is what the rest takes.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from ec_dit.core.mesh import make_mesh
from ec_dit.core.tree import num_params
from ec_dit.data import images, stored
from ec_dit.data.records import Record
from ec_dit.encoders import clip, vae
from ec_dit.nn import param
from ec_dit.preparation import files, filters

_WIDTHS, _SMALL_WIDTHS = [128, 256, 512, 512], [8, 8, 16, 16]
_LENGTH = 77


def drawn(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, nnx.State, int]:
    """A module with random parameters, and how many."""
    graphdef, shapes, _ = param.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    return graphdef, params, num_params(params)


def timed(function: Callable[[], object], times: int) -> float:
    """Seconds of one call, on average, after a first."""
    function()
    start = time.monotonic()
    for _ in range(times):
        function()
    return (time.monotonic() - start) / times


def main() -> None:
    """Measures, and prints seconds per picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 64), ("batch", 16), ("side", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    batches, batch = max(1, given.images // given.batch), given.batch

    noise = np.random.default_rng(0).integers(0, 256, (given.side // 8, given.side // 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((given.side, given.side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    record = Record("0", buffer.getvalue(), ("a picture of noise",))

    def picture(_: int) -> np.ndarray:
        found = filters.look(record, filters.DEFAULT)
        assert isinstance(found, filters.Picture)
        return images.fit(found.image, (256, 256))

    mesh = make_mesh((-1, 1, 1, 1))
    small = _SMALL_WIDTHS if given.small else _WIDTHS
    found = {"_class_name": "AutoencoderKL", "block_out_channels": small, "layers_per_block": 2, "latent_channels": 4}
    found |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    found |= {"norm_num_groups": 4 if given.small else 32, "sample_size": 256}
    spec = vae.VaeSpec.from_config(found, "config.json")
    graph, params, vae_size = drawn(lambda rngs: vae.Vae(spec, rngs=rngs))
    encode = jax.jit(lambda params, x: nnx.merge(graph, params).encode(x))
    width, layers, heads = (64, 2, 1) if given.small else (1280, 32, 20)
    text = {"model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"], "vocab_size": 49408}
    text |= {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "projection_dim": width}
    text |= {
        "num_attention_heads": heads,
        "max_position_embeddings": _LENGTH,
        "hidden_act": "gelu",
        "eos_token_id": 49407,
    }
    tower = clip.ClipSpec.from_config(text, "config.json")
    text_graph, text_params, text_size = drawn(lambda rngs: clip.ClipText(tower, rngs=rngs))
    embed = jax.jit(lambda params, ids: nnx.merge(text_graph, params)(ids).last_BTM)

    pixels_BYXZ = images.to_float(np.stack([picture(0)] * batch))
    ids_BT = np.full((batch, _LENGTH), 49407, np.int32)
    mean, std = (np.asarray(a, np.float16) for a in jax.device_get(encode(params, pixels_BYXZ)))
    text_BTM = np.asarray(embed(text_params, ids_BT), np.float32)
    codec, mask = stored.Codec(mean.shape[1:], width, _LENGTH, "bfloat16"), np.ones(_LENGTH, bool)

    def store(writer: files.Writer) -> None:
        for i in range(batch):
            pair = ((mean[i], std[i]),)
            writer.write(codec.fields(stored.EncodedRecord("0", ("a",), (), pair, ((text_BTM[i], mask),))))

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        writer = files.Writer(Path(folder) / "records")
        took = {
            f"decode {given.side} px JPEG, crop to 256": timed(lambda: list(pool.map(picture, range(batch))), batches),
            f"latents, {vae_size / 1e6:.1f} M parameters": timed(
                lambda: jax.device_get(encode(params, pixels_BYXZ)), batches
            ),
            f"embeddings of 77 tokens, {text_size / 1e6:.1f} M": timed(
                lambda: jax.device_get(embed(text_params, ids_BT)), batches
            ),
            "records of 77 tokens into a file": timed(lambda: store(writer), batches),
        }
        writer.close()
    sys.stdout.write(f"{mesh.size} x {mesh.devices.flat[0].device_kind}, {os.cpu_count()} cores, batches of {batch}\n")
    for name, seconds in took.items():
        sys.stdout.write(f"{name:<48} {1000 * seconds / batch:9.2f} ms  {batch / seconds:9.1f} images/s\n")
    sys.stdout.write(f"{'all, one after the other':<48} {1000 * sum(took.values()) / batch:9.2f} ms\n")


if __name__ == "__main__":
    main()
