"""The formula beside every layer, against the parameters of what is built and the products of what is traced."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from ec_dit.core import tree
from ec_dit.nn import modulation
from ec_dit.nn.attention import Attention
from ec_dit.nn.cost import Cost, Load, linear, total
from ec_dit.nn.embeddings import PatchEmbed, SizeEmbed, TimeEmbed
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.modulation import ModulationTable, TimeModulation
from ec_dit.nn.moe import MoE
from ec_dit.nn.norms import RMSNorm
from ec_dit.nn.routing.spec import RoutingSpec

S, T, D, M = 8, 5, 16, 12  # tokens, text tokens, their widths


def traced_flops(jaxpr) -> int:
    """2 x multiply-adds of every product in a jaxpr, scans counted as often as they run; of branches by platform, the TPU's."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "ragged_dot_general":
            (num, width), (_, _, out) = (each.aval.shape for each in equation.invars[:2])
            total += 2 * num * width * out
        if equation.primitive.name == "cond" and "branches_platforms" in equation.params:
            platforms = equation.params["branches_platforms"]
            index = next(
                (i for i, names in enumerate(platforms) if names and "tpu" in names),
                platforms.index(None) if None in platforms else 0,
            )
            total += traced_flops(equation.params["branches"][index].jaxpr)
            continue
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += repeats * sum(traced_flops(inner) for inner in jaxprs_in_params(equation.params))
    return total


def counted(make, *inputs) -> tuple[int, int]:
    """(parameters, FLOPs) of a layer as it is built, and called with zeros of these shapes."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(dtype=jnp.float32, rngs=nnx.Rngs(0))))
    arrays = [jnp.zeros(each) if type(each) is tuple else each for each in inputs]
    jaxpr = jax.make_jaxpr(lambda state: nnx.merge(graphdef, state)(*arrays))(state)
    return tree.num_params(state), traced_flops(jaxpr.jaxpr)


def check(cost: Cost, make, *inputs) -> None:
    assert (cost.params, cost.flops) == counted(make, *inputs)
    assert cost.activated == cost.params


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention(bias, qk_norm):
    how = {"bias": bias, "qk_norm": qk_norm}
    sizes = (4, 2, 8)  # heads, key-value heads, head dim
    check(Attention.cost(D, D, *sizes, **how, queries=S, keys=S), partial(Attention, D, D, *sizes, **how), (1, S, D))
    cross = Attention.cost(D, M, *sizes, **how, queries=S, keys=T)
    check(cross, partial(Attention, D, M, *sizes, **how), (1, S, D), (1, T, M))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("out", [None, 6])
def test_mlp(bias, out):
    check(Mlp.cost(D, 40, out, bias=bias, rows=S), partial(Mlp, D, 40, out, bias=bias), (1, S, D))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("capacity_factor", [1.0, 2.0])
def test_moe(bias, capacity_factor):
    """Every slot is computed: of 8 tokens and four experts, 2 or 4 slots each."""
    cost = MoE.cost(D, 40, 4, bias=bias, load=Load(S, T, capacity_factor))
    routing = RoutingSpec(capacity_factor=capacity_factor)
    built = counted(partial(MoE, D, 40, 4, bias=bias), (1, S, D), routing)
    assert (cost.params, cost.flops) == built
    everyone = MoE.cost(D, 40, 4, bias=bias, load=Load(S, T, 4.0))
    assert everyone.activated == everyone.params == cost.params
    assert cost.params - cost.activated == (4 - capacity_factor) * Mlp.cost(D, 40, bias=bias).params


def test_modulations():
    check(TimeModulation.cost(D), partial(TimeModulation, D), (1, D))
    table = partial(lambda dtype, rngs, vectors: ModulationTable(D, vectors, rngs=rngs), vectors=2)
    check(ModulationTable.cost(D, 2), table, (1, 2, D))
    for kind, shape in (("adaln", (1, D)), ("adaln_single", (1, 3, D))):
        check(modulation.cost(kind, D, 3), partial(modulation.make, kind, D, 3), shape)


def test_embeddings():
    check(TimeEmbed.cost(D), partial(TimeEmbed, D), (1,))
    check(PatchEmbed.cost(10, D, S), partial(PatchEmbed, 10, D), (1, S, 10))
    params, flops = counted(partial(SizeEmbed, 24), 64, 32)
    assert SizeEmbed.cost(24) == Cost(params, params, 0)
    assert flops == 3 * 2 * (256 * 8 + 8 * 8)  # of a whole batch: two sides and their ratio


def test_norms_multiply_nothing():
    check(RMSNorm.cost(D), lambda dtype, rngs: RMSNorm(D), (1, S, D))


def test_sums_by_hand():
    assert linear(3, 4, rows=5, bias=True) == Cost(16, 16, 2 * 5 * 12)
    assert total([Cost(1, 2, 3) * 2, Cost(10, 20, 30)]) == Cost(12, 24, 36)
    assert total([]) == Cost(0, 0, 0)
