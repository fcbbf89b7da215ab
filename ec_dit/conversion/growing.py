"""A dense model becomes a sparse one, and how far the two are apart is measured."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ec_dit.config import RunConfig, checks, specs
from ec_dit.conversion.model import Model, Say, make_system
from ec_dit.core import settings, sharding
from ec_dit.core.errors import UserError
from ec_dit.core.tree import num_params
from ec_dit.data.batch import Text
from ec_dit.models import upcycle
from ec_dit.models.text_to_image import TextToImage
from ec_dit.nn.routing.spec import IMAGE, RoutingSpec

_PROMPT = "a red circle"
_TOKENS = 4096  # of the comparison, about


@dataclass(frozen=True)
class Growth:
    """How a dense model becomes a sparse one.

    Attributes:
        experts, first, every: of the sparse blocks.
        capacity_factor: f_c of the sparse model.
        noise: on the copies, as a share of their weights' standard deviation.
        seed: of routers and noise.
    """

    experts: int
    first: int = 1
    every: int = 2
    capacity_factor: float = 2.0
    noise: float = 0.0
    seed: int = 0


def grow(model: Model, how: Growth, say: Say) -> Model:
    """The sparse model that starts as the dense one, with the differences of their first outputs in its origin.

    Raises:
        UserError: if the model is sparse already, or experts and groups do not fit.
    """
    dense = model.system
    if dense.config.moe.routing != "dense":
        raise UserError("this model has experts already; --upcycle takes a dense one.")
    moe = {"routing": "expert_choice", "num_experts": how.experts, "first": how.first, "every": how.every}
    moe |= {"gate": "normalized", "capacity_factor": how.capacity_factor}
    moe |= {"group_size": "1024" if _groups_span_images(dense.config) else IMAGE}
    name = f"{dense.config.name}_{how.experts}e"
    config = settings.changed(dense.config, {**settings.prefixed("moe", moe), "name": name})
    checks.validate(config)
    system = make_system(config, dense.tokenizer, dense.encoding)
    key_fresh, key_noise = jax.random.split(jax.random.key(how.seed))
    both = specs.dit_spec(dense.config), specs.dit_spec(config)

    def make(params: Any) -> Any:
        fresh = system.init_params(key_fresh)["dit"]  # of which the compiler makes the routers alone
        return {**params, "dit": upcycle.upcycle(params["dit"], fresh, *both, key_noise, how.noise)}

    with jax.set_mesh(system.mesh):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, system.abstract_params())
        params = jax.jit(make, out_shardings=shardings)(model.params)
    say(
        f"{num_params(model.params):,} parameters became {num_params(params):,}: {how.experts} experts in "
        f"{both[1].num_sparse} blocks"
    )
    grown = replace(model, system=system, params=params, step=0)
    apart = compare(model, grown)
    for name, figures in apart.items():
        say(
            f"first outputs, {name}: relative difference {figures['relative']:.2e}, tokens of no expert {figures['untaken']:.1%}"
        )
    told = {**asdict(how), "first_outputs": apart}
    return replace(grown, origin={**model.origin, "upcycled": told})


def _groups_span_images(config: RunConfig) -> bool:
    """Whether the paper's training groups of 1024 tokens hold whole images."""
    tokens = specs.kept_tokens(config)
    batch_tokens = config.train.batch_size // config.train.accumulate * tokens
    return 1024 % tokens == 0 and batch_tokens % 1024 == 0


def compare(dense: Model, sparse: Model) -> dict[str, dict[str, float]]:
    """How far the sparse model's outputs are from the dense one's, on random latents at all times: at the capacity at which every
    expert takes every token, and at the config's own in groups of one image.

    `relative` is the root mean square of the difference over that of the dense output; `untaken` the share of tokens, over all
    sparse blocks, that no expert took.
    """
    config = sparse.system.config
    routing = specs.sample_settings(config).routing
    everyone = replace(routing, capacity_factor=float(config.moe.num_experts))
    expected, _ = _outputs(dense, routing)
    found = {}
    for name, spec in (
        ("every expert takes every token", everyone),
        (f"capacity factor {routing.capacity_factor:g}", routing),
    ):
        out, untaken = _outputs(sparse, spec)
        size = np.sqrt(np.mean(np.square(expected)))
        found[name] = {"relative": float(np.sqrt(np.mean(np.square(out - expected))) / size), "untaken": untaken}
    return found


def _outputs(model: Model, routing: RoutingSpec) -> tuple[np.ndarray, float]:
    """(predictions for random latents, share of tokens that no expert took)."""
    system, d, t = model.system, model.system.config.data, model.system.config.text
    images = sharding.even_batch(max(2, _TOKENS // specs.dit_spec(system.config).image_tokens), system.mesh)
    rng = np.random.default_rng(0)
    x_BYXZ = rng.standard_normal((images, d.size, d.size, d.channels), np.float32)
    t_B = ((np.arange(images) + 0.5) / images).astype(np.float32)
    if system.tokenizer is not None:
        text = Text(*system.tokenizer.encode([_PROMPT] * images, t.length))
    else:
        text = Text(rng.standard_normal((images, t.length, t.width), np.float32), np.ones((images, t.length), bool))
        if t.pooled:
            text = text._replace(pooled_BM=rng.standard_normal((images, t.pooled), np.float32))

    def predict(params: Any, x_BYXZ: jax.Array, t_B: jax.Array, text: Text) -> tuple[jax.Array, jax.Array]:
        made: TextToImage = nnx.merge(system.graphdef, params)
        out_BSP, stats = made.predict(x_BYXZ, t_B, made.encode(text), routing)
        untaken = jnp.zeros(()) if stats is None else stats.untaken.mean()
        return out_BSP, untaken

    with jax.set_mesh(system.mesh):
        given = sharding.place((x_BYXZ, t_B, text), system.mesh)
        out_BSP, untaken = jax.jit(predict, out_shardings=sharding.replicated(system.mesh))(model.params, *given)
    return np.asarray(jax.device_get(out_BSP)), float(untaken)
