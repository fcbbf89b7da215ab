"""Experts all at once and one after the other: the same values and gradients as a plain loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.nn import experts
from ec_dit.nn.experts import ExpertWeights
from tests import plain


def given(gated, bias, seed=0):
    rng = np.random.default_rng(seed)
    devices, count, groups, slots, width, hidden = 2, 3, 2, 4, 5, 7
    sizes = {"up_EDF": (count, width, hidden), "down_EFD": (count, hidden, width)}
    sizes |= {"gate_EDF": (count, width, hidden)} if gated else {}
    sizes |= {"b_up_EF": (count, hidden)} if bias else {}
    sizes |= {"b_gate_EF": (count, hidden)} if bias and gated else {}
    names = dict.fromkeys(ExpertWeights._fields)
    weights = ExpertWeights(**names | {name: rng.normal(size=size) for name, size in sizes.items()})
    return rng.normal(size=(devices, count, groups, slots, width)), weights


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("how", [experts.at_once, experts.in_turn])
def test_every_slot_gets_its_own_expert(how, gated, bias):
    slots_WEGCD, weights = given(gated, bias)
    expected_WEGCD = np.zeros(slots_WEGCD.shape)
    for device, expert in np.ndindex(slots_WEGCD.shape[:2]):
        own = {name: None if each is None else each[expert] for name, each in weights._asdict().items()}
        rows_GCD = slots_WEGCD[device, expert]
        up = rows_GCD @ own["up_EDF"] + (own["b_up_EF"] if bias else 0)
        if gated:
            gate = rows_GCD @ own["gate_EDF"] + (own["b_gate_EF"] if bias else 0)
            hidden = gate / (1 + np.exp(-gate)) * up
        else:
            hidden = plain.gelu(up)
        expected_WEGCD[device, expert] = hidden @ own["down_EFD"]
    inputs = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (slots_WEGCD, weights))
    np.testing.assert_allclose(jax.jit(how)(*inputs), expected_WEGCD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_are_the_same_in_either_way(gated):
    inputs = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), given(gated, bias=True))
    target = np.random.default_rng(1).normal(size=inputs[0].shape)

    def gradients(how):
        return jax.jit(jax.grad(lambda *inputs: (how(*inputs) * target).sum(), (0, 1)))(*inputs)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        gradients(experts.in_turn),
        gradients(experts.at_once),
    )
