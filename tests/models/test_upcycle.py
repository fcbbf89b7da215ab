"""Sparse upcycling on tiny trees: which weights come from where, block by block."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.core.errors import UserError
from ec_dit.models import upcycle
from ec_dit.models.dit import DiT
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.spec import DiTSpec
from ec_dit.nn import param

pytestmark = pytest.mark.slow

DENSE = DiTSpec(width=8, num_blocks=5, num_heads=2, num_kv_heads=1, head_dim=4, text_width=4, latent_size=4, bias=True)
SPARSE = replace(DENSE, sparse=SparseSpec(3, first=2, every=2))  # blocks 2 and 4


def randomised(spec, seed):
    """Parameters of which no two numbers are equal."""
    _, params, _ = param.split(nnx.eval_shape(lambda: DiT(spec, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)


def blocks_of(spec, params):
    """The blocks one by one, in the order in which they run."""
    for (pattern, repeats, _), stage in zip(spec.stages(), params["stages"].values(), strict=True):
        for repeat in range(repeats):
            for place in range(len(pattern)):
                yield jax.tree.map(lambda leaf, repeat=repeat: leaf[repeat], stage["blocks"][place])


def test_every_expert_is_a_copy_of_its_blocks_own_layer():
    dense, fresh = randomised(DENSE, 0), randomised(SPARSE, 1)
    grown = upcycle.upcycle(dense, fresh, DENSE, SPARSE, jax.random.key(0), noise=0.0)
    assert jax.tree.structure(grown) == jax.tree.structure(fresh)
    trios = list(zip(*(blocks_of(*pair) for pair in ((DENSE, dense), (SPARSE, fresh), (SPARSE, grown))), strict=True))
    assert len(trios) == 5
    for number, (old, new, made) in enumerate(trios):
        for name in old.keys() - {"ffn"}:
            jax.tree.map(np.testing.assert_array_equal, made[name], old[name])
        if number not in (2, 4):
            jax.tree.map(np.testing.assert_array_equal, made["ffn"], old["ffn"])
            continue
        np.testing.assert_array_equal(made["ffn"]["w_router_DE"], new["ffn"]["w_router_DE"])
        for expert in range(3):
            for ours, theirs in (("w_up_EDF", "w_up_DF"), ("w_down_EFD", "w_down_FD"), ("b_up_EF", "b_up_F")):
                np.testing.assert_array_equal(made["ffn"][ours][expert], old["ffn"][theirs])
    for name in dense.keys() - {"stages"}:
        jax.tree.map(np.testing.assert_array_equal, grown[name], dense[name])


def test_noise_is_a_share_of_each_layers_own_spread_and_leaves_biases():
    dense, fresh = randomised(DENSE, 0), randomised(SPARSE, 1)
    key = jax.random.key(0)
    exact, noisy = (upcycle.upcycle(dense, fresh, DENSE, SPARSE, key, noise) for noise in (0.0, 0.1))
    for plain, changed in zip(*(blocks_of(SPARSE, tree) for tree in (exact, noisy)), strict=True):
        if "w_router_DE" not in plain["ffn"]:
            continue
        np.testing.assert_array_equal(changed["ffn"]["b_up_EF"], plain["ffn"]["b_up_EF"])
        for name in ("w_up_EDF", "w_down_EFD"):
            noise = changed["ffn"][name] - plain["ffn"][name]
            assert noise.std() == pytest.approx(0.1 * plain["ffn"][name].std(), rel=0.15)
            assert jnp.abs(noise[0] - noise[1]).max() > 0.05


@pytest.mark.parametrize(
    ("dense", "sparse", "message"),
    [
        (DENSE, DENSE, "a sparse model of a dense one"),
        (SPARSE, SPARSE, "a sparse model of a dense one"),
        (
            DENSE,
            replace(SPARSE, ffn_factor=2, qk_norm=True),
            "differ in ffn_factor, qk_norm[.]|differ in qk_norm, ffn_factor[.]",
        ),
    ],
)
def test_other_structures_are_refused(dense, sparse, message):
    with pytest.raises(UserError, match=message):
        upcycle.check(dense, sparse)


def test_memory_and_kernels_may_differ():
    upcycle.check(DENSE, replace(SPARSE, remat="full", attention="cudnn"))
