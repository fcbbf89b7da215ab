"""The filled slots alone: listed, multiplied and added up, against plain loops; and what the TPU's compiler makes of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.nn import rows
from ec_dit.nn.cost import Load
from ec_dit.nn.moe import MoE, RouterContext
from ec_dit.nn.routing.slots import Routing
from ec_dit.nn.routing.spec import RoutingSpec
from ec_dit.planning import hlo, kernels
from tests.nn.test_cost import traced_flops
from tests.nn.test_routers import OPTIONS
from tests.planning.test_pods import figures

COUNTS = {"even": [8, 8, 8, 8], "uneven": [1, 20, 0, 11], "one has all": [0, 0, 32, 0], "none": [0, 0, 0, 0]}
SIZES, TOKENS = (256, 512, 8), 512


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_the_filled_slots_in_the_order_of_experts(seed):
    rng = np.random.default_rng(seed)
    groups, experts, slots, size, places = 3, 4, 5, 7, 40
    index_GEC = np.stack([[rng.permutation(size)[:slots] for _ in range(experts)] for _ in range(groups)])
    gate_GEC = np.where(rng.random(index_GEC.shape) < 0.4, rng.normal(size=index_GEC.shape), 0)
    assert (gate_GEC != 0).sum() < places
    zero = jnp.zeros(())
    routing = Routing(jnp.asarray(index_GEC), jnp.asarray(gate_GEC, jnp.float32), zero, zero, zero)
    found = jax.jit(rows.rows, static_argnums=(1, 2))(routing, size, places)

    wanted = [
        (g * size + index_GEC[g, e, c], np.float32(gate_GEC[g, e, c]), e)
        for e in range(experts)
        for g in range(groups)
        for c in range(slots)
        if gate_GEC[g, e, c]
    ]
    n = len(wanted)
    ours = zip(found.token_N[:n].tolist(), np.asarray(found.gate_N[:n]), found.expert_N[:n].tolist(), strict=True)
    assert list(ours) == wanted
    assert (found.gate_N[n:] == 0).all() and (found.expert_N[n:] == experts - 1).all()
    np.testing.assert_array_equal(found.counts_E, np.bincount(found.expert_N, minlength=experts))


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("repeated", [1, 40])  # tiles of 8, the least, and of 32
def test_products_and_their_gradients_equal_a_loop_over_rows(counts, repeated):
    rng = np.random.default_rng(0)
    counts_E = repeated * np.array(counts if sum(counts) else [0, 0, 0, 32])
    owner_N = np.repeat(np.arange(4), counts_E)
    rows_ND, w_EDF = rng.normal(size=(len(owner_N), 6)), rng.normal(size=(4, 6, 5))
    weight_NF = rng.normal(size=(len(owner_N), 5))
    plain_NF = np.stack([row_D @ w_EDF[owner] for row_D, owner in zip(rows_ND, owner_N, strict=True)])
    grad_EDF = np.zeros_like(w_EDF)
    for row_D, owner, weight_F in zip(rows_ND, owner_N, weight_NF, strict=True):
        grad_EDF[owner] += np.outer(row_D, weight_F)
    grad_ND = np.stack([w_EDF[owner] @ weight_F for owner, weight_F in zip(owner_N, weight_NF, strict=True)])

    narrow = [jnp.asarray(each, jnp.float32) for each in (rows_ND, w_EDF)]
    for product in (rows.product, rows.by_tiles, jax.lax.ragged_dot):
        out_NF, backward = jax.vjp(partial(product), *narrow, jnp.asarray(counts_E, jnp.int32))
        np.testing.assert_allclose(out_NF, plain_NF, rtol=1e-5, atol=1e-5)
        found = backward(jnp.asarray(weight_NF, jnp.float32))
        np.testing.assert_allclose(found[0], grad_ND, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[1], grad_EDF, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("experts", [4, 8, 64])
@pytest.mark.parametrize("share", [64, 100, 1024, 3000])
def test_tiles_cost_about_an_eighth_more(experts, share):
    num, width = experts * share, 4
    jaxpr = jax.make_jaxpr(rows.by_tiles)(
        jnp.zeros((num, width)), jnp.zeros((experts, width, width)), jnp.zeros(experts, jnp.int32)
    )
    exact = 2 * num * width * width
    assert exact <= traced_flops(jaxpr.jaxpr) <= 1.25 * exact


def test_tokens_of_many_rows_are_added_up_in_float32():
    chosen = rows.Rows(jnp.array([1, 1, 1, 0]), jnp.array([1.0, 2**-9, 2**-9, 0.0]), *2 * [jnp.zeros(4, jnp.int32)])
    out_ND = rows.add_up(jnp.ones((4, 2), jnp.bfloat16), chosen, 3)
    assert out_ND.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out_ND, np.array([[0, 0], [1 + 2**-8, 1 + 2**-8], [0, 0]], jnp.bfloat16))


def layer_flops(name, sharding=None) -> tuple[float, int, int]:
    """FLOPs of one option's layer: as compiled for the device of `sharding`, its products as `plan` counts them, in theory."""
    layer, routing = OPTIONS[name]
    spec = RoutingSpec(**{"capacity_factor": 2.0, **routing})
    build = lambda: MoE(*SIZES, **layer, dtype=jnp.float32, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, state = nnx.split(nnx.eval_shape(build))

    def run(state, x_BSD):
        return nnx.merge(graphdef, state)(x_BSD, spec, RouterContext(x_BSD, x_BSD, x_BSD[:, 0]))[0]

    given = (state, jnp.zeros((1, TOKENS, SIZES[0])))
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), given)
    compiled = jax.jit(run).lower(*given).compile()
    theory = MoE.cost(*SIZES, **layer, load=Load(TOKENS, 3, 2.0)).flops
    return compiled.cost_analysis()["flops"], kernels.flops(hlo.parse(compiled.as_text())), theory


ON_A_TPU = """
import json, sys
from pathlib import Path
from ec_dit import plan
from ec_dit.core.topology import parse
plan.prepare_environment(parse("v5e:2x2"))
from ec_dit.planning import compile
from jax.sharding import SingleDeviceSharding
from tests.nn import test_rows
chip = SingleDeviceSharding(compile.devices("v5e:2x2")[0][0])
Path(sys.argv[1]).write_text(json.dumps(test_rows.layer_flops("matched", chip)))
"""


@pytest.mark.slow
def test_a_tpu_computes_what_an_even_share_would_fill(tmp_path):
    """All that its compiler counts, the little beside products too."""
    found, _ = figures(tmp_path / "flops.json", "-c", ON_A_TPU, tmp_path / "flops.json")
    compiled, products, theory = found
    assert 0.99 * theory < compiled < 1.02 * theory
    assert 0.99 * theory < products <= theory
