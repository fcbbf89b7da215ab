"""The composition root: a config becomes mesh, model, optimizer, step, data and generator. What is below sees no config."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ec_dit import specs
from ec_dit.core import sharding
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import MESH_AXES, make_mesh
from ec_dit.data import images
from ec_dit.data.encoding import Encoding
from ec_dit.data.loader import Share
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.encoders import frozen
from ec_dit.encoders.autoencoder import Autoencoder, Identity
from ec_dit.encoders.text import TextEncoders
from ec_dit.eval.generate import Generator, SampleSettings
from ec_dit.models import objective
from ec_dit.models.text_to_image import Text, TextToImage
from ec_dit.nn import param
from ec_dit.train.optimizer import make_optimizer
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
        encoding: how the latents and embeddings were made that it trains on; None where nothing is known of that.
        noted: of the encoders of a converted model, as `frozen.noted` has it.
    """

    config: ConfigDict
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
        flat = "lite" in device.device_kind  # v5e, v6e: two-dimensional tori
        return {key: value for key, value in self.config.tpu_options.items() if not (flat and key in _NOT_ON_FLAT)}

    @property
    def dtype(self) -> jnp.dtype:
        """Of the computation."""
        return compute_dtype(self.config, self.mesh)

    def optimizer(self) -> optax.GradientTransformation:
        """The config's optimizer for these parameters."""
        return make_optimizer(specs.optimizer_spec(self.config), self.infos)

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
        goal = specs.training_objective(self.config)

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
        """Jitted (params, batch, positions) -> (sum of the images' losses, number of images).

        Images of any shape are routed as sampling routes an image alone; position -1 leaves an image out.
        """

        def loss_fn(params: Any, batch: tuple[jax.Array, Text], position_B: jax.Array) -> tuple[jax.Array, jax.Array]:
            _, rows, columns, _ = batch[0].shape
            routing = specs.sample_settings(self.config, (rows, columns)).routing
            goal = replace(specs.training_objective(self.config), routing=routing)
            real_B = position_B >= 0
            loss_B = objective.validation_loss(self.graphdef, goal, params, *batch, jnp.maximum(position_B, 0))
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

    @functools.cached_property
    def text_encoders(self) -> TextEncoders:
        """The published encoders of cached embeddings, loaded when they are first asked for.

        Raises:
            UserError: if the config names none, or they are not what the model was made for.
        """
        t = self.config.text
        made = self.encoding.facts["text"] if self.encoding else {}
        paths = frozen.folders(t.path) if t.path else made.get("paths")
        if not paths:
            raise UserError(
                "this model reads the embeddings of a published text encoder, and prompts need it: name its folder, or folders "
                "separated by commas, with --config.text.path."
            )
        if self.encoding and (wrong := frozen.text_difference(self.encoding.facts, paths)):
            raise UserError(f"the captions that this model was trained on were {wrong} (--config.text.path).")
        frozen.check_noted(self.noted, texts=paths)
        found = TextEncoders.load(paths, t.length, self.mesh, self.dtype)
        if (found.width, found.length) != (t.width, t.length):
            raise UserError(
                f"{', '.join(paths)} gives {found.length} embeddings of {found.width} numbers, but this model was made for "
                f"{t.length} of {t.width} (config keys text.length, text.width)."
            )
        return found

    @property
    def autoencoder_path(self) -> str:
        """Where the autoencoder of the latents is looked for; '' where nothing is known of it."""
        return self.config.data.autoencoder or (self.encoding.autoencoder_path if self.encoding else "")

    @functools.cached_property
    def autoencoder(self) -> Autoencoder | Identity:
        """What turns latents into images: the published autoencoder, loaded when it is first asked for; nothing for pixels.

        Raises:
            UserError: if the config names none, or its latents are not those of the model.
        """
        d = self.config.data
        if d.space == "pixels":
            return Identity(d.channels)
        path = self.autoencoder_path
        if not path:
            raise UserError(
                "this model denoises latents, and pictures need their autoencoder: name its folder with "
                "--config.data.autoencoder."
            )
        if self.encoding and (wrong := frozen.autoencoder_difference(self.encoding.facts, path)):
            raise UserError(f"the latents that this model was trained on were {wrong} (--config.data.autoencoder).")
        frozen.check_noted(self.noted, path)
        found = Autoencoder.load(path, self.mesh)
        if found.channels != d.channels:
            raise UserError(
                f"{path} has latents of {found.channels} channels, but this model was made for {d.channels} (config key "
                f"data.channels)."
            )
        return found

    def encode(self, captions: Sequence[str]) -> Text:
        """Captions as the model takes them."""
        if self.tokenizer is None:
            encoded = self.text_encoders.encode([self._cased(caption) for caption in captions])
            return Text(encoded.text_BTM, encoded.mask_BT)
        return Text(*self.tokenizer.encode(captions, self.config.text.length))

    def cuts(self, caption: str) -> bool:
        """Whether the model does not read a caption to its end."""
        if self.tokenizer is None:
            return self.text_encoders.cut([self._cased(caption)]) > 0
        return self.tokenizer.length(caption) > self.config.text.length

    def _cased(self, caption: str) -> str:
        lower = self.encoding.facts["text"]["lower"] if self.encoding else self.config.text.lower
        return caption.lower().strip() if lower else caption

    def null_text(self) -> Text:
        """The empty caption, without a batch dimension; zeros for synthetic embeddings, which no encoder made."""
        if self.encoding is not None:
            return Text(self.encoding.null_text_TM, self.encoding.null_mask_T)
        if self.tokenizer is None:
            t = self.config.text
            return Text(np.zeros((t.length, t.width), np.float32), np.arange(t.length) == 0)
        return jax.tree.map(lambda a: a[0], self.encode([""]))

    @property
    def latent_scale(self) -> tuple[np.ndarray | float, np.ndarray | float]:
        """Mean and deviation, of each channel, of the latents that the model takes for 0 and 1."""
        if self.encoding is None or self.config.data.normalize == "none":
            return 0.0, 1.0
        return self.encoding.mean_Z, self.encoding.std_Z

    def draw(self, latent_BYXZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decodes latents as the model has them.

        Returns:
            The pictures, uint8 (B, rows, columns, 3), and finite_B: False where numbers are not, and the picture is plain grey.
        """
        mean_Z, std_Z = self.latent_scale
        with np.errstate(over="ignore", invalid="ignore"):  # of a model that diverged, which is counted
            latent_BYXZ = np.asarray(latent_BYXZ, np.float32) * std_Z + mean_Z
            image_BYXZ = self.autoencoder.decode(latent_BYXZ)
        finite_B = np.isfinite(image_BYXZ).all((1, 2, 3))
        return images.to_uint8(np.where(finite_B[:, None, None, None], image_BYXZ, 0)), finite_B

    def generator(
        self,
        settings: SampleSettings | None = None,
        shape: specs.Shape | None = None,
        encode: Callable[[Sequence[str]], Text] | None = None,
    ) -> Generator:
        """Prompts to pictures.

        Args:
            settings: of the shape; None: the config's.
            shape: of the latents; None: the square of the config.
            encode: captions as the model takes them; None: what `encode` makes of them.

        Raises:
            UserError: if the model needs published encoders that the config does not name, or cannot draw that shape.
        """
        if encode is None and self.tokenizer is None:
            _ = self.text_encoders  # missing, it should say so now
        encode = encode or self.encode
        null_text = self.null_text() if self.encoding else jax.tree.map(lambda a: a[0], encode([""]))
        _ = self.autoencoder  # likewise
        settings = settings or specs.sample_settings(self.config, shape)
        shape_YXZ = (*(shape or specs.square(self.config)), self.config.data.channels)
        return Generator(
            self.graphdef, settings, self.mesh, shape_YXZ, encode, self.draw, null_text, self.compiler_options
        )


def make_system(
    config: ConfigDict,
    tokenizer: Tokenizer | None,
    devices: Sequence[jax.Device] | None = None,
    *,
    encoding: Encoding | None = None,
    noted: Mapping[str, str] = MappingProxyType({}),
) -> System:
    """Builds the model abstractly; no parameter takes memory until `init_state` or a restore.

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

    def init_params(key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))

    graphdef, _, infos = param.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return System(config, mesh, graphdef, infos, init_params, tokenizer, encoding, noted)


def stream(system: System, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[tuple[Any, np.ndarray]]:
    """A loader's batches on the devices, tagged with their record numbers."""
    for arrays in batches:
        yield system.batch(arrays), arrays["record_B"]
