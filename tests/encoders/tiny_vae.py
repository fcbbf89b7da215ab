"""Autoencoders of a few thousand parameters."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ec_dit.core import export, name_map
from ec_dit.core.mesh import make_mesh
from ec_dit.core.tree import named_leaves
from ec_dit.encoders import vae
from ec_dit.nn import param

LEVELS = 4
BASE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * LEVELS,
    "up_block_types": ["UpDecoderBlock2D"] * LEVELS,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 64,
}


def mesh(ways=1):
    return make_mesh((ways, 1, 1, 1), jax.devices()[:ways])


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def published(folder, change=lambda weights: weights, **changes):
    """A folder of random weights in diffusers' layout, written without diffusers."""
    found = BASE | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(found))
    spec = vae.VaeSpec.from_config(found, str(folder))
    _, shapes, _ = param.split(nnx.eval_shape(lambda: vae.Vae(spec, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    entries = vae.entries(name for name, _ in named_leaves(params))
    export.write(folder, "diffusion_pytorch_model", change(dict(name_map.tensors(params, entries))).items())
    return folder
