"""A model on its mesh: what it is made of, how its parameters lie, and what it takes for text."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ec_dit.config import RunConfig, specs
from ec_dit.core import hardware, sharding
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import MESH_AXES, make_mesh
from ec_dit.data.batch import Text
from ec_dit.data.encoding import Encoding
from ec_dit.data.loader import Share
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.models.text_to_image import TextToImage
from ec_dit.nn import param

# The compiler refuses asynchronous all-to-alls on two-dimensional tori, and v5e has no SparseCores.
_NOT_ON_FLAT = (
    "xla_tpu_enable_async_all_to_all",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce",
)


@dataclass(frozen=True)
class System:
    """A model on a mesh; no parameter takes memory here.

    Attributes:
        config: of the run.
        mesh: of all devices.
        graphdef: merges with parameters to a TextToImage.
        infos: ParamInfo of every parameter.
        init_params: random key -> parameters; to be traced under jit.
        tokenizer: of the captions; None for cached text.
        encoding: how the latents and embeddings were made that it trains on; None where nothing is known of that.
        noted: of the encoders of a converted model, as `frozen.noted` has it.
    """

    config: RunConfig
    mesh: Mesh
    graphdef: nnx.GraphDef
    infos: Any
    init_params: Callable[[jax.Array], Any]
    tokenizer: Tokenizer | None
    encoding: Encoding | None = None
    noted: Mapping[str, str] = field(default_factory=dict)

    @property
    def compiler_options(self) -> dict[str, str] | None:
        """For what runs on the mesh: the config's for a TPU, less what its kind does not know; none elsewhere."""
        device = self.mesh.devices.flat[0]
        if device.platform != "tpu":
            return None
        tpu = hardware.tpu(device.device_kind)
        flat = tpu is not None and not tpu.cubes
        return {key: value for key, value in self.config.tpu_options.items() if not (flat and key in _NOT_ON_FLAT)}

    @property
    def dtype(self) -> jnp.dtype:
        """Of the computation."""
        return compute_dtype(self.config, self.mesh)

    @property
    def share(self) -> Share:
        """What this process loads of every global batch: the rows that lie on its devices."""
        return Share(sharding.local_parts(self.mesh), sharding.batch_ways(self.mesh))

    @property
    def latent_scale(self) -> tuple[np.ndarray | float, np.ndarray | float]:
        """Mean and deviation, of each channel, of the latents that the model takes for 0 and 1."""
        if self.encoding is None or self.config.data.normalize == "none":
            return 0.0, 1.0
        return self.encoding.mean_Z, self.encoding.std_Z

    def shapes(self) -> Any:
        """Gives shapes and dtypes of the parameters."""
        return _shapes(self.init_params, self.mesh)

    def abstract_params(self) -> Any:
        """Gives shapes and shardings of the parameters."""
        abstract = self.shapes()
        shardings = param.shardings(abstract, self.infos, self.mesh)
        return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)

    def sampling_params(self, abstract: Any) -> Any:
        """Gives what sampling holds of abstract parameters: matrices in the dtype in which they are used."""

        def held(leaf: jax.ShapeDtypeStruct, info: param.ParamInfo) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, self.dtype if info.roles else leaf.dtype, sharding=leaf.sharding)

        return jax.tree.map(held, abstract, self.infos)

    def null_text(self) -> Text:
        """Gives the empty caption, without a batch dimension; zeros for synthetic embeddings, which no encoder made."""
        t = self.config.text
        if self.encoding is not None:
            pooled_M = self.encoding.null_pooled_M if t.pooled else None
            return Text(self.encoding.null_text_TM, self.encoding.null_mask_T, pooled_M)
        if self.tokenizer is None:
            pooled_M = np.zeros(t.pooled, np.float32) if t.pooled else None
            return Text(np.zeros((t.length, t.width), np.float32), np.arange(t.length) == 0, pooled_M)
        return jax.tree.map(lambda a: a[0], Text(*self.tokenizer.encode([""], t.length)))


def make_config_mesh(config: RunConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the config's mesh over `devices` (default: all).

    Raises:
        UserError: if it does not fit their number.
    """
    return make_mesh([getattr(config.mesh, axis) for axis in MESH_AXES], devices)


def compute_dtype(config: RunConfig, mesh: Mesh) -> jnp.dtype:
    """Gives bfloat16 on accelerators, float32 on CPU, unless the config says."""
    auto = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return jnp.dtype(auto if config.model.dtype == "auto" else config.model.dtype)


def make_system(
    config: RunConfig,
    tokenizer: Tokenizer | None,
    devices: Sequence[jax.Device] | None = None,
    *,
    encoding: Encoding | None = None,
    noted: Mapping[str, str] | None = None,
) -> System:
    """Builds the model abstractly.

    Raises:
        UserError: if the mesh does not fit the devices, or groups and capacities do not come out whole.
    """
    mesh = make_config_mesh(config, devices)
    specs.sample_settings(config)
    spec, tower, dtype = specs.dit_spec(config), specs.tower_spec(config, tokenizer), compute_dtype(config, mesh)
    cudnn_runs = dtype == jnp.bfloat16 and mesh.devices.flat[0].platform in ("gpu", "cuda")
    if spec.attention == "cudnn" and not cudnn_runs:
        raise UserError("--config.model.attention=cudnn needs NVIDIA GPUs and bfloat16; leave it at xla here.")

    def build(rngs: nnx.Rngs) -> TextToImage:
        return TextToImage(spec, tower, dtype=dtype, rngs=rngs)

    parts = list[tuple[nnx.GraphDef, Any]]()  # of the one trace that gives shapes and, under the same mesh, values

    @functools.partial(jax.jit, inline=True)
    def init_params(key: jax.Array) -> Any:
        graphdef, params, infos = param.split(build(nnx.Rngs(key)))
        parts.append((graphdef, infos))
        return params

    _shapes(init_params, mesh)
    graphdef, infos = parts[0]
    return System(config, mesh, graphdef, infos, init_params, tokenizer, encoding, noted or {})


def _shapes(init_params: Callable[[jax.Array], Any], mesh: Mesh) -> Any:
    # A real key would be made on the mesh, whose devices need not be there.
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):  # whose absence JAX takes for another trace
        return jax.eval_shape(init_params, key)
