"""What training records of experts per token, by noise level: against plain loops, and moved step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.models.dit import DiT
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.spec import DiTSpec
from ec_dit.nn import param
from ec_dit.nn.routing import record
from ec_dit.nn.routing.record import COUNT, KEEP, NOISE_LEVELS, SUM, TABLE

RNG = np.random.default_rng(0)


def test_sums_and_counts_of_levels_equal_plain_loops():
    experts_LBS, t_B = RNG.integers(0, 5, (3, 6, 4)), np.array([0.0, 0.01, 0.5, 0.51, 0.99, 1.0], np.float32)
    found = record.measured(jnp.asarray(experts_LBS), jnp.asarray(t_B))
    expected, counts = np.zeros((3, NOISE_LEVELS)), np.zeros(NOISE_LEVELS)
    for image, t in enumerate(t_B):
        level = min(int(t * NOISE_LEVELS), NOISE_LEVELS - 1)
        counts[level] += 1
        for block in range(3):
            expected[block, level] += experts_LBS[block, image].mean()
    np.testing.assert_allclose(found[SUM], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[COUNT], counts)


def tree(spec):
    """Parameters of a model, zeros, under the name that they have in a run's."""
    _, params, _ = param.split(nnx.eval_shape(lambda: DiT(spec, rngs=nnx.Rngs(0))))
    return {"dit": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)}


@pytest.mark.parametrize("sparse", [SparseSpec(4, record=True), SparseSpec(4, first=0, every=2, record=True)])
def test_tables_move_in_the_order_of_the_blocks(sparse):
    spec = DiTSpec(width=32, num_blocks=7, num_heads=4, num_kv_heads=2, head_dim=8, latent_size=8, sparse=sparse)
    params = tree(spec)
    blocks = spec.num_sparse
    count_Q = np.where(np.arange(NOISE_LEVELS) % 3 == 0, 2, 0)
    first_LQ, second_LQ = RNG.uniform(1, 3, (2, blocks, NOISE_LEVELS))
    metrics = {SUM: first_LQ * count_Q, COUNT: count_Q, "loss": 1.0}
    params, rest = record.updated(params, metrics)
    assert rest == {"loss": 1.0}
    seen = count_Q > 0
    np.testing.assert_allclose(record.tables(params)[:, seen], first_LQ[:, seen], rtol=1e-6)
    assert not record.tables(params)[:, ~seen].any()
    params, _ = record.updated(params, {SUM: second_LQ * count_Q, COUNT: count_Q})
    moved = KEEP * first_LQ + (1 - KEEP) * second_LQ
    np.testing.assert_allclose(record.tables(params)[:, seen], moved[:, seen], rtol=1e-6)
    unseen, _ = record.updated(params, {SUM: 0 * second_LQ, COUNT: 0 * count_Q})
    np.testing.assert_array_equal(record.tables(unseen), record.tables(params))
    assert {leaf.shape[-1] for path, leaf in jax.tree_util.tree_leaves_with_path(params) if leaf.any()} == {16}
    assert any(TABLE in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))


def test_biases_rise_where_an_expert_was_asked_less_than_its_share():
    spec = DiTSpec(
        width=32,
        num_blocks=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        latent_size=8,
        sparse=SparseSpec(4, biases=True),
    )
    asked_LE = np.array([[0.4, 0.1, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]])
    params, rest = record.updated(tree(spec), {record.ASKED: jnp.asarray(asked_LE)}, bias_rate=0.01)
    params, _ = record.updated(params, {record.ASKED: jnp.asarray(asked_LE[::-1])}, bias_rate=0.01)
    (bias_LE,) = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if record.BIAS in str(path)]
    np.testing.assert_allclose(bias_LE, 0.01 * np.array([[0, 2, -1, -1], [0, 2, -1, -1]]), atol=1e-7)
    assert not rest


def test_what_does_not_record_stays():
    params = tree(DiTSpec(width=32, num_blocks=2, num_heads=4, num_kv_heads=2, head_dim=8, sparse=SparseSpec(4)))
    same, rest = record.updated(params, {"loss": 1.0})
    assert same is params and rest == {"loss": 1.0} and record.tables(params) is None
