"""The sparse layer in bfloat16: how far values and gradients may lie from float64, given what is rounded on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.nn.dispatch import combine
from ec_dit.nn.routing.spec import RoutingSpec
from tests import plain
from tests.nn.test_moe import make

pytestmark = pytest.mark.slow

ROUNDING = 2.0**-8  # of bfloat16, relative: half of its last place
SINGLE = 2.0**-24


def rounded(array):
    """Numbers that bfloat16 holds exactly."""
    return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64)


def many_slots(seed=0):
    """Outputs of 512 slots for 3 tokens, their gates and a gradient: what bfloat16 holds, as float64; and the slots' tokens."""
    groups, tokens, experts, slots, width = 2, 3, 64, 8, 5
    rng = np.random.default_rng(seed)
    slots_EGCD = rounded(rng.normal(size=(experts, groups, slots, width)))
    gate_GEC = np.asarray(np.float32(rng.uniform(size=(groups, experts, slots))), np.float64)
    index_GEC = rng.integers(0, tokens, (groups, experts, slots))
    return slots_EGCD, gate_GEC, index_GEC, rounded(rng.normal(size=(groups, tokens, width)))


@pytest.mark.parametrize("how", ["scatter", "one_hot"])
def test_combine_adds_up_in_float32_and_rounds_once(how):
    slots_EGCD, gate_GEC, index_GEC, grad_GSD = many_slots()
    expected, sizes = np.zeros(grad_GSD.shape), np.zeros(grad_GSD.shape)
    for group, expert, slot in np.ndindex(index_GEC.shape):
        part = gate_GEC[group, expert, slot] * slots_EGCD[expert, group, slot]
        expected[group, index_GEC[group, expert, slot]] += part
        sizes[group, index_GEC[group, expert, slot]] += np.abs(part)
    out = jax.jit(combine, static_argnums=(3, 4))(
        jnp.asarray(slots_EGCD, jnp.bfloat16), index_GEC, jnp.asarray(gate_GEC, jnp.float32), 3, how
    )
    assert out.dtype == jnp.bfloat16
    of_gates = ROUNDING * sizes if how == "one_hot" else 0  # which it rounds, the other does not
    bound = ROUNDING * np.abs(expected) + of_gates + 512 * SINGLE * sizes
    assert (np.abs(np.asarray(out, np.float64) - expected) <= bound).all()


@pytest.mark.parametrize("how", ["scatter", "one_hot"])
def test_the_gradient_of_combine_is_rounded_once(how):
    slots_EGCD, gate_GEC, index_GEC, grad_GSD = many_slots()

    @jax.jit
    def gradients(slots_EGCD, gate_GEC, grad_GSD):
        _, backward = jax.vjp(lambda slots, gate: combine(slots, index_GEC, gate, 3, how), slots_EGCD, gate_GEC)
        return backward(grad_GSD)

    of_slots, of_gates = gradients(
        jnp.asarray(slots_EGCD, jnp.bfloat16), jnp.asarray(gate_GEC, jnp.float32), jnp.asarray(grad_GSD, jnp.bfloat16)
    )
    assert (of_slots.dtype, of_gates.dtype) == (jnp.bfloat16, jnp.float32)
    for group, expert, slot in np.ndindex(index_GEC.shape):
        grad, out = grad_GSD[group, index_GEC[group, expert, slot]], slots_EGCD[expert, group, slot]
        wanted = gate_GEC[group, expert, slot] * grad
        error = np.abs(np.asarray(of_slots[expert, group, slot], np.float64) - wanted)
        assert (error <= (ROUNDING + SINGLE) * np.abs(wanted)).all()
        error = abs(float(of_gates[group, expert, slot]) - grad @ out)
        assert error <= 5 * SINGLE * np.abs(grad * out).sum()


def as_bfloat16(params):
    """Weights of experts that bfloat16 holds; the router's stay as they are."""
    return {
        name: leaf if "router" in name else jnp.asarray(rounded(leaf), jnp.float32) for name, leaf in params.items()
    }


def gradients_of_the_layer(graphdef, params, x_BSD, target_BSD, spec):
    """(outputs, gradients of sum(output x target)) of the layer, with tokens in bfloat16."""

    def loss(params, x_BSD):
        out_BSD, _ = nnx.merge(graphdef, params)(x_BSD, spec)
        return (out_BSD.astype(jnp.float32) * target_BSD).sum(), out_BSD

    differentiate = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, out_BSD), (of_params, of_x) = differentiate(params, jnp.asarray(x_BSD, jnp.bfloat16))
    assert out_BSD.dtype == of_x.dtype == jnp.bfloat16
    return out_BSD, of_params | {"x": of_x}


def test_a_token_in_512_slots_gets_the_gradient_of_all():
    """Equal experts that all take every token are one dense layer, whose gradient is known.

    Added up in bfloat16, 512 equal parts stand still at the 256th: the next is half of the sum's last place.
    """
    graphdef, params = make(4, 512, dtype=jnp.bfloat16)
    params = as_bfloat16({name: leaf if "router" in name else leaf[:1].repeat(512, 0) for name, leaf in params.items()})
    params["w_router_DE"] *= 0.01
    rng = np.random.default_rng(1)
    x_BSD, target_BSD = rounded(rng.normal(size=(1, 2, 4))), rounded(rng.normal(size=(1, 2, 4)))
    out_BSD, gradients = gradients_of_the_layer(
        graphdef, params, x_BSD, target_BSD, RoutingSpec("expert_choice", 512.0)
    )
    one = {name: leaf[:1] for name, leaf in plain.wide(params).items() if "router" not in name}
    np.testing.assert_allclose(np.asarray(out_BSD[0], np.float64), plain.expert(one, 0, x_BSD[0]), atol=0.03)

    for token in range(2):
        slopes = []
        for direction in np.eye(4):
            ahead, behind = (
                plain.expert(one, 0, x_BSD[0, token] + step * direction) @ target_BSD[0, token]
                for step in (1e-6, -1e-6)
            )
            slopes.append((ahead - behind) / 2e-6)
        error = np.abs(np.asarray(gradients["x"][0, token], np.float64) - slopes).max()
        assert error <= 8 * ROUNDING * np.abs(slopes).max()  # eight roundings from the target to the token


@pytest.mark.parametrize("kind", ["expert_choice", "token_choice"])
def test_gradients_stay_within_their_roundings(kind):
    """Every number of every gradient, beside central differences in float64 with the same choices."""
    graphdef, params = make(4, 4, bias=True, dtype=jnp.bfloat16, seed=1)
    params = as_bfloat16(params)
    rng = np.random.default_rng(2)
    x_BSD, target_BSD = rounded(rng.normal(size=(1, 16, 4))), rounded(rng.normal(size=(1, 16, 4)))
    _, gradients = gradients_of_the_layer(graphdef, params, x_BSD, target_BSD, RoutingSpec(kind, 2.0))

    inputs = plain.wide(params) | {"x": x_BSD}
    choices = plain.choices(inputs, x_BSD, 16, 8, kind)
    for name, gradient in gradients.items():
        slopes = np.zeros(inputs[name].shape)
        for place in np.ndindex(slopes.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = inputs | {name: inputs[name].copy()}
                moved[name][place] += step
                ends.append((plain.sparse_outputs(moved, moved["x"], choices) * target_BSD).sum())
            slopes[place] = (ends[0] - ends[1]) / 2e-6
        error = np.abs(np.asarray(gradient, np.float64) - slopes).max()
        assert error <= 8 * ROUNDING * np.abs(slopes).max(), (name, error / np.abs(slopes).max())
