"""The composition root: a config becomes mesh, model, optimizer, step, data and generator. What is below sees no config."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from ec_dit.core import sharding
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import MESH_AXES, make_mesh
from ec_dit.data import images
from ec_dit.data.loader import Share
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.eval.generate import Generator, SampleSettings
from ec_dit.models import objective
from ec_dit.models.spec import DiTSpec, SparseSpec, TowerSpec
from ec_dit.models.text_to_image import Text, TextToImage
from ec_dit.nn import param
from ec_dit.nn.routing import RoutingKind, RoutingSpec, capacity, group_tokens
from ec_dit.train.optimizer import OptimizerSpec, make_optimizer
from ec_dit.train.state import TrainState, init_state, state_shardings
from ec_dit.train.step import make_step

# The compiler refuses asynchronous all-to-alls on two-dimensional tori, and v5e has no SparseCores.
_NOT_ON_FLAT = (
    "xla_tpu_enable_async_all_to_all",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce",
)


def make_config_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The config's mesh over `devices` (default: all).

    Raises:
        UserError: if it does not fit their number.
    """
    return make_mesh([config.mesh[axis] for axis in MESH_AXES], devices)


def dit_spec(config: ConfigDict) -> DiTSpec:
    """The transformer's structure."""
    m, e = config.model, config.moe
    return DiTSpec(
        width=m.width,
        num_blocks=m.num_blocks,
        num_heads=m.num_heads,
        num_kv_heads=m.num_kv_heads,
        head_dim=m.head_dim,
        ffn_factor=m.ffn_factor,
        patch=m.patch,
        latent_size=config.data.size,
        channels=config.data.channels,
        out_channels=config.data.channels,
        text_width=config.text.width,
        modulation=m.modulation,
        qk_norm=m.qk_norm,
        attention=m.attention,
        bias=m.bias,
        position_scale=m.position_scale,
        sparse=SparseSpec(e.num_experts, e.first, e.every),
        remat=m.remat,
    )


def tower_spec(config: ConfigDict, tokenizer: Tokenizer | None) -> TowerSpec | None:
    """The jointly trained text tower's structure, None where text comes from a cache."""
    if config.text.encoder == "cached":
        return None
    t = config.text
    if tokenizer is None:
        raise UserError("text.encoder=tower needs a tokenizer: prepare a data set first (python -m ec_dit.prepare).")
    return TowerSpec(tokenizer.vocab_size, t.width, t.tower_blocks, t.tower_heads, t.length)


def kept_tokens(config: ConfigDict) -> int:
    """Tokens of one image that training sees."""
    return round(dit_spec(config).image_tokens * (1 - config.flow.mask_ratio))


def train_routing(config: ConfigDict) -> RoutingSpec:
    """How training routes; checks that groups and capacity come out whole.

    Raises:
        UserError: naming the numbers that do not fit.
    """
    e, tokens = config.moe, kept_tokens(config)
    size = 0 if e.group_size == "image" else int(e.group_size)
    kind: RoutingKind = "expert_choice" if e.routing == "dense" else e.routing
    spec = RoutingSpec(kind, e.capacity_factor, size, e.combine)
    if e.routing != "dense":
        micro_batch = config.train.batch_size // config.train.accumulate
        capacity(group_tokens(micro_batch * tokens, tokens, size), e.num_experts, e.capacity_factor)
    return spec


def sample_settings(config: ConfigDict) -> SampleSettings:
    """How sampling integrates and routes.

    Raises:
        UserError: if a routing group would span images, or a capacity does not come out whole.
    """
    s, tokens = config.sample, dit_spec(config).image_tokens
    base = replace(train_routing(config), capacity_factor=s.capacity_factor or config.moe.capacity_factor)
    sizes = {"pair": 2 * tokens, "image": tokens}
    size = sizes.get(str(s.group_size)) or int(s.group_size)
    if size > 2 * tokens or (2 * tokens) % size:
        raise UserError(
            f"--config.sample.group_size={size}: an image has {tokens} tokens, with its unconditional copy {2 * tokens}; a "
            f"group must divide that, so that no image depends on another. Use pair, image or a divisor of {2 * tokens}."
        )
    alone = min(size, tokens)
    if tokens % alone:
        raise UserError(
            f"--config.sample.group_size={size}: an image alone has {tokens} tokens, which groups of {size} do not divide; one "
            f"would hold tokens of two images. Use pair, image or a divisor of {tokens}."
        )
    if config.moe.routing != "dense":
        for group in {size, alone} if s.guidance != 1 else {alone}:
            capacity(group, config.moe.num_experts, base.capacity_factor)
    return SampleSettings(
        steps=s.steps,
        sampler=s.sampler,
        guidance=s.guidance,
        guidance_interval=tuple(s.guidance_interval),
        time_shift=s.time_shift,
        batch_size=s.batch_size,
        prediction=config.flow.prediction,
        routing=replace(base, group_size=alone),
        paired_routing=replace(base, group_size=size),
    )


def compute_dtype(config: ConfigDict, mesh: Mesh) -> jnp.dtype:
    """bfloat16 on accelerators, float32 on CPU, unless the config says."""
    auto = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return jnp.dtype(auto if config.model.dtype == "auto" else config.model.dtype)


@dataclass(frozen=True)
class System:
    """A model on a mesh.

    Attributes:
        config: read-only from here on.
        mesh: of all devices.
        graphdef: merges with parameters to a TextToImage.
        infos: ParamInfo of every parameter.
        init_params: random key -> parameters; to be traced under jit.
        tokenizer: of the captions; None for cached text.
    """

    config: ConfigDict
    mesh: Mesh
    graphdef: nnx.GraphDef
    infos: Any
    init_params: Callable[[jax.Array], Any]
    tokenizer: Tokenizer | None

    @property
    def compiler_options(self) -> dict[str, str] | None:
        """For what runs on the mesh: the config's for a TPU, less what its kind does not know; none elsewhere."""
        device = self.mesh.devices.flat[0]
        if device.platform != "tpu":
            return None
        flat = "lite" in device.device_kind  # v5e, v6e: two-dimensional tori
        return {key: value for key, value in self.config.tpu_options.items() if not (flat and key in _NOT_ON_FLAT)}

    @property
    def dtype(self) -> jnp.dtype:
        """Of the computation."""
        return compute_dtype(self.config, self.mesh)

    def optimizer(self) -> optax.GradientTransformation:
        """The config's optimizer for these parameters."""
        return make_optimizer(optimizer_spec(self.config), self.infos)

    def abstract_state(self, tx: optax.GradientTransformation) -> tuple[TrainState, TrainState]:
        """(shapes, shardings) of the training state; takes no memory."""
        abstract = jax.eval_shape(lambda: init_state(self.init_params, tx, self.config.seed))
        return abstract, state_shardings(abstract, self.infos, self.mesh)

    def sampling_params(self, abstract: Any) -> Any:
        """What sampling holds of abstract parameters: matrices in the dtype in which they are used."""

        def of(leaf: jax.ShapeDtypeStruct, info: param.ParamInfo) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, self.dtype if info.roles else leaf.dtype, sharding=leaf.sharding)

        return jax.tree.map(of, abstract, self.infos)

    def init_state(self, tx: optax.GradientTransformation, shardings: TrainState) -> TrainState:
        """A fresh state, every device making its own part."""
        # Dozens of random draws run once: on CPU, optimising their code takes several times as long as running it plain.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

        def init() -> TrainState:
            return init_state(self.init_params, tx, self.config.seed)

        with jax.set_mesh(self.mesh):
            return jax.jit(init, out_shardings=shardings, compiler_options=options)()

    def step(self, tx: optax.GradientTransformation, shardings: TrainState) -> jax.stages.Wrapped:
        """The jitted training step; batches as `batch` gives them. Lower it to inspect what would run."""
        null_text = self.null_text()
        goal = training_objective(self.config)

        def loss_fn(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            # A micro-batch is a slice of the batch: say again how it lies.
            x0_BYXZ, text = jax.tree.map(lambda a: sharding.constrain(a, "batch", *(None,) * (a.ndim - 1)), batch)
            return objective.loss_fn(self.graphdef, goal, params, x0_BYXZ, text, null_text, key)

        step = make_step(loss_fn, tx, self.config.optimizer.ema_decay, self.config.train.accumulate)
        everywhere = sharding.replicated(self.mesh)
        return jax.jit(
            step, out_shardings=(shardings, everywhere), donate_argnums=0, compiler_options=self.compiler_options
        )

    def validation(self) -> Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]]:
        """Jitted (params, batch, record numbers) -> (sum of the images' losses, number of images).

        Images are routed as sampling routes an image alone; record number -1 leaves an image out.
        """
        routing = sample_settings(self.config).routing
        prediction = self.config.flow.prediction

        def loss_fn(params: Any, batch: tuple[jax.Array, Text], record_B: jax.Array) -> tuple[jax.Array, jax.Array]:
            real_B, seed_B = record_B >= 0, jnp.maximum(record_B, 0)
            loss_B = objective.validation_loss(self.graphdef, prediction, routing, params, *batch, seed_B)
            return jnp.where(real_B, loss_B, 0).sum(), real_B.sum()

        return jax.jit(loss_fn, out_shardings=sharding.replicated(self.mesh))

    def batch(self, arrays: dict[str, np.ndarray]) -> tuple[jax.Array, Text]:
        """A loader's arrays of this process as one global batch on the mesh: (clean images or latents, text)."""
        pixels = "image_BYXZ" in arrays
        x = arrays["image_BYXZ" if pixels else "latent_BYXZ"]
        tokens = arrays["ids_BT" if "ids_BT" in arrays else "text_BTM"]
        return sharding.place_parts((x, Text(tokens, arrays["mask_BT"])), self.mesh)

    @property
    def share(self) -> Share:
        """What this process loads of every global batch: the rows that lie on its devices."""
        return Share(sharding.local_parts(self.mesh), sharding.batch_ways(self.mesh))

    def encode(self, captions: Sequence[str]) -> Text:
        """Captions as the model takes them."""
        if self.tokenizer is None:
            raise UserError(
                "this config reads cached text embeddings: prompts need its frozen text encoder, which is not loaded."
            )
        return Text(*self.tokenizer.encode(captions, self.config.text.length))

    def null_text(self) -> Text:
        """The empty caption, without a batch dimension."""
        if self.tokenizer is None:
            t = self.config.text
            return Text(np.zeros((t.length, t.width), np.float32), np.arange(t.length) == 0)
        return jax.tree.map(lambda a: a[0], self.encode([""]))

    def generator(self, settings: SampleSettings | None = None) -> Generator:
        """Prompts to pictures, for models of pixels.

        Raises:
            UserError: for latents, whose autoencoder is not part of the run.
        """
        d = self.config.data
        if d.space != "pixels":
            raise UserError("this config denoises latents: pictures need its autoencoder, which is not loaded.")
        settings = settings or sample_settings(self.config)
        shape_YXZ = (d.size, d.size, d.channels)
        return Generator(
            self.graphdef, settings, self.mesh, shape_YXZ, self.encode, images.to_uint8, self.compiler_options
        )


def make_system(config: ConfigDict, tokenizer: Tokenizer | None, devices: Sequence[jax.Device] | None = None) -> System:
    """Builds the model abstractly; no parameter takes memory until `init_state` or a restore.

    Raises:
        UserError: if the mesh does not fit the devices, or groups and capacities do not come out whole.
    """
    mesh = make_config_mesh(config, devices)
    sample_settings(config)
    spec, tower, dtype = dit_spec(config), tower_spec(config, tokenizer), compute_dtype(config, mesh)
    cudnn_runs = dtype == jnp.bfloat16 and mesh.devices.flat[0].platform in ("gpu", "cuda")
    if spec.attention == "cudnn" and not cudnn_runs:
        raise UserError("--config.model.attention=cudnn needs NVIDIA GPUs and bfloat16; leave it at xla here.")

    def build(rngs: nnx.Rngs) -> TextToImage:
        return TextToImage(spec, tower, dtype=dtype, rngs=rngs)

    def init_params(key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))

    graphdef, _, infos = param.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return System(config, mesh, graphdef, infos, init_params, tokenizer)


def check_batch(config: ConfigDict, mesh: Mesh | AbstractMesh) -> None:
    """Batch and routing groups of training must split evenly over the mesh.

    Raises:
        UserError: naming the numbers.
    """
    ways, micro_batch = sharding.batch_ways(mesh), config.train.batch_size // config.train.accumulate
    over = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in sharding.RULES["batch"])
    if micro_batch % ways:
        raise UserError(
            f"--config.train.batch_size={config.train.batch_size} / accumulate {config.train.accumulate} = {micro_batch} images "
            f"do not split over {ways} devices ({over}). Choose a multiple of {ways * config.train.accumulate}."
        )
    routing = train_routing(config)
    tokens = kept_tokens(config)
    groups = micro_batch * tokens // (routing.group_size or tokens)
    if config.moe.routing != "dense" and groups % ways:
        raise UserError(
            f"a batch of {micro_batch} images x {tokens} tokens makes {groups} routing groups of {routing.group_size} tokens, "
            f"which do not split over {ways} devices ({over}). Raise train.batch_size or lower moe.group_size."
        )


def training_objective(config: ConfigDict) -> objective.Objective:
    """The loss's settings."""
    f = config.flow
    weight = config.moe.aux_weight if config.moe.routing == "token_choice" else 0.0
    return objective.Objective(
        prediction=f.prediction,
        time_mean=f.time_mean,
        time_std=f.time_std,
        mask_ratio=f.mask_ratio,
        caption_dropout=f.caption_dropout,
        aux_weight=weight,
        routing=train_routing(config),
    )


def optimizer_spec(config: ConfigDict) -> OptimizerSpec:
    """The optimizer's settings."""
    o = config.optimizer
    names = OptimizerSpec.__dataclass_fields__.keys() - {"steps"}
    return OptimizerSpec(**{name: o[name] for name in names}, steps=config.train.steps)


def stream(system: System, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[tuple[Any, np.ndarray]]:
    """A loader's batches on the devices, tagged with their record numbers."""
    for arrays in batches:
        yield system.batch(arrays), arrays["record_B"]
