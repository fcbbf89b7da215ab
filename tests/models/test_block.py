"""One block: where it starts, what it is made of, and what each part may see."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.models.block import Condition, Streams
from ec_dit.models.cross_attention import CrossAttentionBlock
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.spec import DiTSpec
from ec_dit.models.stages import Kind
from ec_dit.nn.routing.spec import RoutingSpec

pytestmark = pytest.mark.slow

SPEC = DiTSpec(width=16, num_blocks=2, num_heads=4, num_kv_heads=2, head_dim=8, text_width=12, sparse=SparseSpec(4))
ROUTING = RoutingSpec("expert_choice", 2.0)


def build(spec, sparse):
    return lambda: CrossAttentionBlock(spec, Kind(sparse), dtype=jnp.float32, rngs=nnx.Rngs(0))


def apply(block, tokens_BSD, condition, routing=ROUTING):
    """(tokens, statistics) of a block without a text stream."""
    streams, stats = block(Streams(tokens_BSD, None), condition, routing)
    assert streams.text_BTM is None
    return streams.tokens_BSD, stats


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    tokens_BSD, time, text_BTM = (
        jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 8, 16), (2, 16), (2, 5, 12))
    )
    return tokens_BSD, Condition(time, text_BTM, jnp.array([[True] * 5, [True] * 3 + [False] * 2]))


@cache
def forward(graphdef, routing):
    """Compiled once for each block and routing, whatever the parameters."""
    return jax.jit(lambda params, *args: apply(nnx.merge(graphdef, params), *args, routing))


def run(graphdef, params, tokens_BSD, condition, routing=ROUTING):
    return forward(graphdef, routing)(params, tokens_BSD, condition)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_block_starts_as_the_identity(inputs, sparse):
    tokens_BSD, condition = inputs
    start = jax.jit(lambda *args: apply(build(SPEC, sparse)(), *args))
    out_BSD, _ = start(tokens_BSD, condition)
    np.testing.assert_array_equal(out_BSD, tokens_BSD)


def test_an_adaln_single_block_starts_as_the_identity(inputs):
    # The shared modulation is zero at the start; the block's own table has zero gates but other shifts and scales.
    tokens_BSD, condition = inputs
    block = build(dataclasses.replace(SPEC, modulation="adaln_single"), False)
    condition = condition._replace(time=jnp.zeros((2, 6, 16)))
    out_BSD, _ = jax.jit(lambda *args: apply(block(), *args))(tokens_BSD, condition)
    np.testing.assert_array_equal(out_BSD, tokens_BSD)


def test_a_sparse_block_of_equal_experts_is_a_dense_block(inputs, randomise):
    sparse_def, sparse = randomise(build(SPEC, True))
    dense_def, dense = randomise(build(SPEC, False))
    one = dense["ffn"]
    dense = sparse | {"ffn": one}
    sparse["ffn"] |= {"w_up_EDF": jnp.stack([one["w_up_DF"]] * 4), "w_down_EFD": jnp.stack([one["w_down_FD"]] * 4)}
    out_BSD, stats = run(sparse_def, sparse, *inputs, RoutingSpec("expert_choice", 4.0))
    expected_BSD, none = run(dense_def, dense, *inputs)
    np.testing.assert_allclose(out_BSD, expected_BSD, rtol=1e-4, atol=1e-4)
    assert none is None
    assert (stats.experts_BS == 4).all()


@pytest.mark.parametrize("what", ["time", "text_BTM"])
def test_the_router_sees_time_and_text(inputs, randomise, what):
    tokens_BSD, condition = inputs
    graphdef, params = randomise(build(SPEC, True))
    _, stats = run(graphdef, params, tokens_BSD, condition)
    _, other = run(graphdef, params, tokens_BSD, condition._replace(**{what: -getattr(condition, what)}))
    assert (stats.experts_BS != other.experts_BS).any()


@pytest.mark.parametrize("sparse", [False, True])
def test_hidden_text_has_no_influence(inputs, randomise, sparse):
    tokens_BSD, condition = inputs
    graphdef, params = randomise(build(SPEC, sparse))
    changed = condition._replace(text_BTM=jnp.where(condition.mask_BT[..., None], condition.text_BTM, 100.0))
    out_BSD, _ = run(graphdef, params, tokens_BSD, condition)
    np.testing.assert_array_equal(out_BSD, run(graphdef, params, tokens_BSD, changed)[0])
    seen = condition._replace(text_BTM=condition.text_BTM.at[:, 0].set(100.0))
    assert jnp.abs(out_BSD - run(graphdef, params, tokens_BSD, seen)[0]).max() > 1e-3
