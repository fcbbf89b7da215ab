"""The sparse layer against plain loops over experts and tokens, values and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.nn import param
from ec_dit.nn.dispatch import combine, dispatch
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.moe import MoE
from ec_dit.nn.routing import scores
from ec_dit.nn.routing.spec import IMAGE, RoutingSpec
from tests import plain

pytestmark = pytest.mark.slow

# (images, tokens per image, group size, experts, capacity factor, width)
SIZES = [
    (1, 4, 4, 2, 1.0, 4),
    (1, 6, 6, 3, 2.0, 5),
    (2, 8, 16, 4, 2.0, 8),  # a group of two images
    (4, 4, 8, 2, 1.5, 4),
    (2, 16, IMAGE, 8, 2.0, 4),
    (1, 8, 4, 4, 1.0, 8),  # two groups in an image
    (1, 4, 4, 2, 2.0, 4),  # every expert takes every token
    (2, 15, IMAGE, 4, 2.0, 8),  # C = 7.5, rounded up
    (2, 3, IMAGE, 8, 2.0, 4),  # C = 0.75
]


def make(width, experts, *, bias=False, dtype=jnp.float32, seed=0):
    build = lambda: MoE(width, 2 * width, experts, bias=bias, dtype=dtype, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, params, _ = param.split(nnx.eval_shape(build))
    rng = np.random.default_rng(seed)
    return graphdef, {name: jnp.asarray(rng.normal(size=leaf.shape) / 2, jnp.float32) for name, leaf in params.items()}


def run(graphdef, params, x_BSD, spec):
    return jax.jit(lambda params, x_BSD: nnx.merge(graphdef, params)(x_BSD, spec))(
        params, jnp.asarray(x_BSD, jnp.float32)
    )


def assert_equal_to_plain_loops(graphdef, params, x_BSD, target_BSD, spec, slots):
    """Compares outputs, experts per token, and the gradients of sum(output x target). Returns those of the layer."""

    def loss(params, x_BSD):
        out_BSD, stats = nnx.merge(graphdef, params)(x_BSD, spec)
        return (out_BSD * target_BSD).sum(), (out_BSD, stats.experts_BS)

    (_, (out_BSD, experts_BS)), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        params, jnp.asarray(x_BSD, jnp.float32)
    )
    group = x_BSD.shape[1] if spec.group_size == IMAGE else spec.group_size
    inputs = plain.wide(params) | {"x": x_BSD}
    expected_BSD, expected_BS = plain.moe(inputs, x_BSD, group, slots, spec.routing)
    np.testing.assert_allclose(out_BSD, expected_BSD, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(experts_BS, expected_BS)

    # Central differences along random directions, one input at a time. The choices stay: a step would break a tie.
    choices = plain.choices(inputs, x_BSD, group, slots, spec.routing)

    def plain_loss(inputs):
        return (plain.sparse_outputs(inputs, inputs["x"], choices) * target_BSD).sum()

    rng = np.random.default_rng(2)
    gradients = gradients[0] | {"x": gradients[1]}
    for name, gradient in gradients.items():
        for _ in range(3):
            direction = rng.normal(size=inputs[name].shape)
            ahead, behind = (plain_loss(inputs | {name: inputs[name] + step * direction}) for step in (1e-6, -1e-6))
            slope = (np.asarray(gradient, np.float64) * direction).sum()
            np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-3, atol=1e-4, err_msg=name)
    return gradients


@pytest.mark.parametrize("kind", ["expert_choice", "token_choice"])
@pytest.mark.parametrize(("images", "tokens", "group", "experts", "factor", "width"), SIZES)
def test_values_and_gradients_equal_plain_loops(images, tokens, group, experts, factor, width, kind):
    graphdef, params = make(width, experts, bias=width == 8)
    x_BSD, target_BSD = np.random.default_rng(1).normal(size=(2, images, tokens, width))
    slots = math.ceil((tokens if group == IMAGE else group) * factor / experts)
    assert_equal_to_plain_loops(graphdef, params, x_BSD, target_BSD, RoutingSpec(kind, factor, group), slots)


@pytest.mark.parametrize("how", ["scatter", "one_hot"])
@pytest.mark.parametrize("kind", ["expert_choice", "token_choice"])
def test_ties_go_to_the_first_token_and_so_do_their_gradients(kind, how):
    # Four of each of four different tokens, and every expert takes two of the sixteen.
    graphdef, params = make(4, 4, bias=True, seed=3)
    rng = np.random.default_rng(0)
    x_BSD, target_BSD = np.tile(rng.normal(size=(4, 4)), (1, 4, 1)), rng.normal(size=(1, 16, 4))
    spec = RoutingSpec(kind, 0.5, combine=how)
    gradients = assert_equal_to_plain_loops(graphdef, params, x_BSD, target_BSD, spec, slots=2)
    assert all(np.abs(gradient).max() > 1e-2 for gradient in gradients.values())
    # All experts are full after the first two copies of each token: the others get nothing, not even a share.
    np.testing.assert_array_equal(np.asarray(gradients["x"])[0, 8:], 0)
    assert (np.abs(gradients["x"][0, :8]).max(-1) > 1e-3).any()


def test_a_router_of_zeros_gives_everything_to_the_first_tokens():
    graphdef, params = make(4, 4)
    params["w_router_DE"] = jnp.zeros((4, 4))
    x_BSD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4)), jnp.float32)
    out_BSD, stats = run(graphdef, params, x_BSD, RoutingSpec("expert_choice", 2.0, 8))  # C = 4
    np.testing.assert_array_equal(stats.experts_BS, [[4, 4, 4, 4], [0, 0, 0, 0]])
    np.testing.assert_array_equal(out_BSD[1], np.zeros((4, 4)))
    mean_of_experts = np.mean([plain.expert(plain.wide(params), e, np.asarray(x_BSD[0])) for e in range(4)], axis=0)
    np.testing.assert_allclose(out_BSD[0], mean_of_experts, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats.untaken, 0.5)
    np.testing.assert_allclose(stats.max_experts, 4)
    np.testing.assert_allclose(stats.gate_entropy, math.log(4), rtol=1e-6)


def test_equal_experts_that_take_every_token_are_one_dense_layer():
    graphdef, params = make(6, 3, bias=True)
    one = {name: leaf[0] for name, leaf in params.items() if name != "w_router_DE"}
    same = {name: jnp.stack([leaf] * 3) for name, leaf in one.items()} | {"w_router_DE": params["w_router_DE"]}
    dense, _, _ = param.split(nnx.eval_shape(lambda: Mlp(6, 12, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    names = {"w_up_DF": "w_up_EDF", "b_up_F": "b_up_EF", "w_down_FD": "w_down_EFD", "b_down_D": "b_down_ED"}
    mlp = nnx.merge(dense, {name: one[of_expert] for name, of_expert in names.items()})
    x_BSD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)), jnp.float32)
    out_BSD, stats = run(graphdef, same, x_BSD, RoutingSpec("expert_choice", 3.0))
    np.testing.assert_allclose(out_BSD, mlp(x_BSD), rtol=1e-4, atol=1e-5)
    assert (stats.experts_BS == 3).all()


def test_dispatch_by_hand():
    tokens_GSD = jnp.array([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]]])
    index_GEC = jnp.array([[[2, 0], [0, 1]], [[1, 1], [2, 0]]])
    np.testing.assert_array_equal(
        dispatch(tokens_GSD, index_GEC, jnp.float32),
        [[[[5, 6], [1, 2]], [[-3, -4], [-3, -4]]], [[[1, 2], [3, 4]], [[-5, -6], [-1, -2]]]],
    )


@pytest.mark.parametrize("how", ["scatter", "one_hot"])
def test_combine_by_hand(how):
    # One group of three tokens: token 0 in a slot of both experts, token 1 in none, an empty slot that points at 0.
    slots_EGCD = jnp.array([[[[1.0, 2.0], [10.0, 20.0]]], [[[3.0, 4.0], [99.0, 99.0]]]])
    index_GEC = jnp.array([[[0, 2], [0, 0]]])
    gate_GEC = jnp.array([[[1.0, 0.5], [2.0, 0.0]]])
    np.testing.assert_array_equal(combine(slots_EGCD, index_GEC, gate_GEC, 3, how), [[[7, 10], [0, 0], [5, 10]]])


@pytest.mark.parametrize("how", ["scatter", "one_hot"])
def test_combine_inverts_dispatch_of_a_permutation(how):
    tokens_GSD = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 5)), jnp.float32)
    rng = np.random.default_rng(0)
    index_GEC = jnp.stack([rng.permutation(8) for _ in range(3)]).reshape(3, 4, 2)
    slots_EGCD = dispatch(tokens_GSD, index_GEC, jnp.float32)
    assert slots_EGCD.shape == (4, 3, 2, 5)
    np.testing.assert_array_equal(combine(slots_EGCD, index_GEC, jnp.ones((3, 4, 2)), 8, how), tokens_GSD)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_ways_to_combine_agree(dtype):
    groups, tokens, experts, slots, width = 2, 16, 4, 8, 8
    rng = np.random.default_rng(0)
    slots_EGCD = jnp.asarray(rng.normal(size=(experts, groups, slots, width)), dtype)
    index_GEC = jnp.asarray(rng.integers(0, tokens, (groups, experts, slots)))
    gate_GEC = jnp.asarray(rng.uniform(size=(groups, experts, slots)), jnp.float32)

    def loss(slots_EGCD, gate_GEC, how):
        out_GSD = combine(slots_EGCD, index_GEC, gate_GEC, tokens, how)
        return jnp.square(out_GSD.astype(jnp.float32)).sum(), out_GSD

    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 0.03, "atol": 0.1}
    differentiate = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
    results = [differentiate(slots_EGCD, gate_GEC, how) for how in ("scatter", "one_hot")]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), **tolerance), *results
    )
    assert results[0][0][1].dtype == dtype


def test_router_stats_of_token_choice_by_hand():
    graphdef, params = make(2, 3)
    # x = (1, 0) for every token: scores are the softmax of the router's first row.
    params["w_router_DE"] = jnp.log(jnp.array([[0.6, 0.3, 0.1], [1.0, 1.0, 1.0]]))
    x_BSD = jnp.tile(jnp.array([1.0, 0.0]), (2, 3, 1))
    _, stats = run(graphdef, params, x_BSD, RoutingSpec("token_choice", 1.0, 6))  # C = 2
    np.testing.assert_array_equal(stats.experts_BS, [[2, 2, 0], [0, 0, 0]])
    np.testing.assert_allclose(stats.untaken, 4 / 6, rtol=1e-6)
    np.testing.assert_allclose(stats.max_experts, 2)
    np.testing.assert_allclose(stats.dropped, 8 / 12, rtol=1e-6)
    np.testing.assert_allclose(stats.aux_loss, 3 * 0.6, rtol=1e-6)
    entropy = -sum(p * math.log(p) for p in (0.6, 0.3, 0.1))
    np.testing.assert_allclose(stats.gate_entropy, entropy, rtol=1e-5)


def test_the_auxiliary_loss_reaches_the_router_only():
    graphdef, params = make(4, 4)
    x_BSD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 4)), jnp.float32)
    spec = RoutingSpec("token_choice", 1.0)
    gradient = jax.jit(jax.grad(lambda params: nnx.merge(graphdef, params)(x_BSD, spec)[1].aux_loss))(params)
    assert jnp.abs(gradient.pop("w_router_DE")).max() > 1e-4
    assert all(not leaf.any() for leaf in gradient.values())


def test_bfloat16_routes_in_float32():
    graphdef, params = make(16, 4, dtype=jnp.bfloat16)
    x_BSD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16)), jnp.float32).astype(jnp.bfloat16)
    scores_BSE = scores.scores(scores.logits(x_BSD.astype(jnp.float32), params["w_router_DE"]))
    assert scores_BSE.dtype == jnp.float32
    exact_BSD = np.asarray(x_BSD, np.float64)
    np.testing.assert_allclose(scores_BSE[0], plain.scores(plain.wide(params), exact_BSD[0]), rtol=1e-5)

    out_BSD, stats = jax.jit(lambda params, x_BSD: nnx.merge(graphdef, params)(x_BSD, RoutingSpec()))(params, x_BSD)
    assert out_BSD.dtype == jnp.bfloat16
    assert stats.gate_entropy.dtype == jnp.float32
    expected_BSD, expected_BS = plain.moe(plain.wide(params), exact_BSD, 16, 8, "expert_choice")
    np.testing.assert_array_equal(stats.experts_BS, expected_BS)  # the very same choices as in float64
    assert (expected_BS == 1).any()
    np.testing.assert_allclose(stats.untaken, (expected_BS == 0).mean())
    assert np.abs(np.asarray(out_BSD, np.float64) - expected_BSD).max() < 0.03 * np.abs(expected_BSD).max()
