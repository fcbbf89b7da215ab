"""The sparse layer on meshes of eight devices against one device, and the collectives of its compiled program."""

import math
import re
from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.core.mesh import make_mesh
from ec_dit.core.sharding import named_sharding
from ec_dit.nn import param
from ec_dit.nn.moe import MoE, RouterContext, stats_axes
from ec_dit.nn.routing.spec import RoutingSpec, capacity
from tests.nn.test_routers import OPTIONS

pytestmark = pytest.mark.slow

MESHES = [(1, 1, 8, 1), (1, 2, 2, 2), (2, 1, 4, 1)]
MESHES += [pytest.param(mesh, marks=pytest.mark.exhaustive) for mesh in ((8, 1, 1, 1), (2, 2, 2, 1), (1, 4, 1, 2))]
IMAGES, TOKENS, WIDTH, EXPERTS, GROUP = 16, 8, 32, 8, 16
ONCE = [pytest.param(name, marks=pytest.mark.xdist_group(f"expert_parallel {name}")) for name in OPTIONS]  # compiled
STATISTICS = 8  # numbers: the loss and what the layer reports


@cache
def value_and_gradients(spec, shape=None, bias=False, tokens=TOKENS, options=()):
    """(outputs and gradients, compiled program) of one random layer; on one device without a mesh shape.

    `options` are those of the layer, as pairs; where its router reads more than the experts' tokens, that is drawn too.
    """
    kinds = {"bias": bias, **dict(options)}
    graphdef, params, infos = param.split(
        nnx.eval_shape(lambda: MoE(WIDTH, 2 * WIDTH, EXPERTS, **kinds, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, params)
    x_BSD, target_BSD = rng.normal(size=(2, IMAGES, tokens, WIDTH)).astype(np.float32)
    axes, inputs = [("batch", None, None)], [x_BSD]
    if kinds.get("reads", "modulated") != "modulated":
        inputs += list(rng.normal(size=(2, *x_BSD.shape)).astype(np.float32))
        inputs.append(rng.normal(size=(IMAGES, WIDTH)).astype(np.float32))
        axes += [*axes, *axes, ("batch", None)]

    def apply(layer, x_BSD, *others):
        return layer(x_BSD, spec, RouterContext(*others) if others else None)

    def loss(params, inputs):
        layer = param.per_device(nnx.merge(graphdef, params), apply, axes, (axes[0], stats_axes(spec)), "tokens")
        out_BSD, stats = layer(*inputs)
        return (out_BSD * target_BSD).sum() + stats.aux_loss + sum(stats.losses.values()), (out_BSD, stats)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    if shape is None:
        return step(params, inputs), None
    mesh = make_mesh(shape)
    params = jax.tree.map(lambda a, info: jax.device_put(a, named_sharding(info.axes, a.shape, mesh)), params, infos)
    inputs = [jax.device_put(a, named_sharding(axis, a.shape, mesh)) for a, axis in zip(inputs, axes, strict=True)]
    with jax.set_mesh(mesh):
        compiled = step.lower(params, inputs).compile()
        return compiled(params, inputs), compiled.as_text()


def options(name):
    """(of the layer as pairs, of the routing) of one of `test_routers.OPTIONS`."""
    layer, routing = OPTIONS[name]
    return tuple(layer.items()), RoutingSpec(**{"capacity_factor": 2.0, "group_size": GROUP, **routing})


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("shape", MESHES[:4])
def test_every_mesh_gives_what_one_device_gives_with_options(name, shape):
    layer, spec = options(name)
    one, _ = value_and_gradients(spec, options=layer)
    many, _ = value_and_gradients(spec, shape, options=layer)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1e-3, np.abs(b).max()))


@pytest.mark.parametrize("name", [each for each in ONCE if OPTIONS[each.values[0]][1].get("by_threshold")])
def test_filled_slots_alone_give_the_same_where_weights_are_split_otherwise(name):
    """Meshes without an expert axis, on which a device has all experts."""
    layer, spec = options(name)
    one, _ = value_and_gradients(spec, options=layer)
    many, program = value_and_gradients(spec, (1, 4, 1, 2), options=layer)
    assert "all-to-all" not in collectives(program)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1e-3, np.abs(b).max()))


@pytest.mark.parametrize("name", ONCE)
def test_tokens_travel_by_four_all_to_alls_with_options(name):
    """Losses over all tokens add up matrices of experts by experts; nothing else is sent that has to do with tokens."""
    layer, spec = options(name)
    _, program = value_and_gradients(spec, (1, 1, 8, 1), options=layer)
    found = collectives(program)
    spread = spec.most if spec.routing == "expert_race" or spec.by_threshold else 1
    slots = int(min(GROUP, capacity(GROUP, EXPERTS, spec.capacity_factor) * spread)) * EXPERTS
    assert found.pop("all-to-all") == [slots * WIDTH] * 4
    largest = WIDTH * max(EXPERTS, 2 * dict(layer).get("shared", 0), WIDTH) * 2  # routers, shared experts, predictors
    assert all(size <= largest for kind in ("all-gather", "reduce-scatter") for size in found.pop(kind))
    matrices = 2 * EXPERTS**2 if spec.similarity_weight else 0
    assert sum(found.pop("all-reduce", [])) <= 2 * STATISTICS + 2 * matrices, found  # there and back
    assert not found


@pytest.mark.parametrize("combine", ["scatter", "one_hot"])
@pytest.mark.parametrize("kind", ["expert_choice", "token_choice"])
@pytest.mark.parametrize("shape", MESHES)
def test_every_mesh_gives_what_one_device_gives(kind, combine, shape):
    spec = RoutingSpec(kind, 2.0, GROUP, combine)
    one, _ = value_and_gradients(spec, bias=True)
    many, _ = value_and_gradients(spec, shape, bias=True)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1e-3, np.abs(b).max()))


@pytest.mark.parametrize("kind", ["expert_choice", "token_choice"])
@pytest.mark.parametrize("shape", [(1, 1, 8, 1), (1, 2, 2, 2)])
def test_images_of_any_number_of_tokens_too(kind, shape):
    spec = RoutingSpec(kind, 2.0)  # C = 15 * 2 / 8 = 3.75, rounded up
    one, _ = value_and_gradients(spec, tokens=15)
    many, _ = value_and_gradients(spec, shape, tokens=15)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1e-3, np.abs(b).max()))


def collectives(program):
    """Kind -> sizes in numbers of every collective of a compiled program."""
    found = {}
    for line in program.splitlines():
        if match := re.search(
            r"= (.*?) (all-to-all|all-reduce|all-gather|reduce-scatter|collective-permute)(-start)?\(", line
        ):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            size = sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)
            found.setdefault(match[2], []).append(size)
    return found


@pytest.mark.parametrize("combine", ["scatter", "one_hot"])
@pytest.mark.parametrize("kind", ["expert_choice", "token_choice"])
def test_tokens_travel_by_four_all_to_alls_and_weights_not_at_all(kind, combine):
    _, program = value_and_gradients(RoutingSpec(kind, 2.0, GROUP, combine), (1, 1, 8, 1))
    found = collectives(program)
    slots = GROUP * 2  # of one group, which is what a device has: S f_c
    assert found.pop("all-to-all") == [slots * WIDTH] * 4
    (gathered,) = found.pop("all-gather")
    assert gathered == WIDTH * EXPERTS  # the router
    assert found.pop("reduce-scatter") == [WIDTH * EXPERTS // 8]  # its gradient
    assert all(size <= STATISTICS for size in found.pop("all-reduce"))
    assert not found


def test_weights_sharded_beyond_the_experts_are_gathered_and_their_gradients_scattered():
    _, program = value_and_gradients(RoutingSpec("expert_choice", 2.0, GROUP), (1, 2, 4, 1))
    found = collectives(program)
    experts, weight, router = EXPERTS // 4, WIDTH * 2 * WIDTH, WIDTH * EXPERTS // 4
    assert Counter(found.pop("all-gather")) == Counter([experts * weight] * 2 + [WIDTH * EXPERTS])
    assert Counter(found.pop("reduce-scatter")) == Counter([experts * weight // 2] * 2 + [router])
    assert len(found.pop("all-to-all")) == 4
    assert all(size <= router + STATISTICS for size in found.pop("all-reduce"))  # copies of the router, along fsdp
    assert not found


@pytest.mark.parametrize("kind", ["expert_choice", "token_choice"])
def test_every_device_routes_its_own_groups_only(kind):
    """Left to itself the compiler gathers all scores to sort them on every device."""
    _, program = value_and_gradients(RoutingSpec(kind, 2.0, GROUP), (8, 1, 1, 1))
    assert set(collectives(program)) == {"all-reduce"}
