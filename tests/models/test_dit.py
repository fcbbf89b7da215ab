"""The whole transformer against float64 NumPy; dropped tokens, other resolutions, masks, precision, size of the program."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.core.tree import named_leaves
from ec_dit.models.dit import DiT, take_tokens
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.spec import DiTSpec
from ec_dit.models.stages import block_numbers
from ec_dit.nn import param
from ec_dit.nn.embeddings import patchify, unpatchify
from ec_dit.nn.routing.spec import IMAGE, RoutingSpec
from tests import plain

pytestmark = pytest.mark.slow

SPEC = DiTSpec(
    width=16,
    num_blocks=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    latent_size=8,
    channels=3,
    text_width=12,
    sparse=SparseSpec(4),
)
DENSE = dataclasses.replace(SPEC, sparse=SparseSpec())
ROUTING = RoutingSpec("expert_choice", 2.0)
KEEP_BS = jnp.array([[3, 9, 0, 15, 7, 4, 12, 10], [1, 2, 5, 6, 8, 11, 13, 14]])


def build(spec, dtype=jnp.float32):
    return lambda: DiT(spec, dtype=dtype, rngs=nnx.Rngs(0))


def example(rows=8, columns=8, batch=2):
    rng = np.random.default_rng(1)
    sizes = ((batch, rows, columns, 3), (batch, 5, 12))
    x_BYXZ, text_BTM = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)
    mask_BT = jnp.array([[True] * 5, [True] * 3 + [False] * 2] * (batch // 2))
    return x_BYXZ, jnp.linspace(0.1, 0.9, batch), text_BTM, mask_BT


@cache
def forward(graphdef, routing):
    """Compiled once for each model and routing, whatever the parameters."""
    return jax.jit(lambda params, inputs, keep: nnx.merge(graphdef, params)(*inputs, routing=routing, keep_BS=keep))


def run(graphdef, params, inputs, keep_BS=None, routing=ROUTING):
    return forward(graphdef, routing)(params, inputs, keep_BS)


ADALN_SINGLE = {"modulation": "adaln_single", "text_projection": True}


@pytest.mark.parametrize(
    ("num_blocks", "first", "every", "parts"),
    [
        pytest.param(5, 1, 2, {}, id="paper-odd"),
        pytest.param(4, 0, 3, {"qk_norm": True, "bias": True}, id="first0-every3"),
        pytest.param(5, 3, 2, ADALN_SINGLE, id="first-beyond-every"),
        pytest.param(2, 1, 3, ADALN_SINGLE | {"size_embedding": True, "width": 24}, id="less-than-a-period"),
    ],
)
def test_the_model_equals_float64(randomise, num_blocks, first, every, parts):
    spec = dataclasses.replace(SPEC, num_blocks=num_blocks, sparse=SparseSpec(4, first, every), **parts)
    graphdef, params = randomise(build(spec), scale=0.2)  # at 0.3 scores saturate, and which tokens are best is chance
    out_BSP, stats = run(graphdef, params, example())
    expected_BSP, routed = plain.dit(spec, params, example())
    np.testing.assert_allclose(out_BSP, expected_BSP, rtol=1e-3, atol=1e-4)
    assert stats.experts_BS.shape == (spec.num_sparse, 2, 16)
    for layer, (scores_BSE, experts_BS) in enumerate(routed):
        np.testing.assert_array_equal(stats.experts_BS[layer], experts_BS)
        entropy = -(scores_BSE * np.log(scores_BSE)).sum(-1).mean()
        np.testing.assert_allclose(stats.gate_entropy[layer], entropy, rtol=1e-4)


@pytest.mark.parametrize("block", ["cross_attention", "joint_kv", "mmdit"])
@pytest.mark.parametrize("sparse", [SparseSpec(4, first=1, every=2), SparseSpec(4, first=0, every=3)])
def test_a_dense_and_a_sparse_twin_begin_alike_but_for_their_feed_forward_layers(block, sparse):
    """Whatever scans their blocks are parted into; each block begins otherwise than its neighbours."""
    spec = dataclasses.replace(SPEC, block=block, num_blocks=5)
    twins = [_by_block(dataclasses.replace(spec, sparse=each)) for each in (SparseSpec(), sparse)]
    common = set.intersection(*map(set, twins))
    assert all("/ffn/" in name for name in set(twins[0]) ^ set(twins[1]))
    assert sum("attention" in name for name in common) >= 5 * 4
    for name in common:
        np.testing.assert_array_equal(*(twin[name] for twin in twins), err_msg=name)
    first = next(name for name in common if name.startswith("0/attention/w_"))
    assert not np.array_equal(twins[0][first], twins[0]["1" + first[1:]])


def _by_block(spec):
    """Fresh parameters by names with the block's number in place of where it is stacked."""
    params = param.split(build(spec)())[1]
    stacked = block_numbers(spec.stages())
    found = {}
    for name, leaf in named_leaves(params):
        start = next((start for start in stacked if name.startswith(start)), None)
        if start is None:
            found[name] = np.asarray(leaf)
        else:
            found |= {f"{n}/{name.removeprefix(start)}": np.asarray(leaf[i]) for i, n in enumerate(stacked[start])}
    return found


def test_the_output_starts_at_zero():
    spec = dataclasses.replace(SPEC, num_blocks=1, sparse=SparseSpec())
    out_BSP, _ = jax.jit(lambda inputs: build(spec)()(*inputs, routing=ROUTING))(example())
    np.testing.assert_array_equal(out_BSP, np.zeros((2, 16, 12)))


def test_a_dense_model_has_no_statistics(randomise):
    graphdef, params = randomise(build(DENSE))
    assert run(graphdef, params, example())[1] is None


@pytest.mark.parametrize("group_size", [IMAGE, 16])  # the kept tokens of one image, or of both
def test_dropped_tokens_influence_nothing(randomise, group_size):
    graphdef, params = randomise(build(SPEC))
    routing = RoutingSpec("expert_choice", 2.0, group_size)
    x_BYXZ, *rest = example()

    def loss(x_BYXZ, weights_BSP):
        model = nnx.merge(graphdef, params)
        out_BSP, stats = model(x_BYXZ, *rest, routing=routing, keep_BS=KEEP_BS)
        return (out_BSP * weights_BSP).sum(), (out_BSP, stats.experts_BS)

    weights_BSP = np.random.default_rng(2).normal(size=(2, 8, 12)).astype(np.float32)
    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (out_BSP, experts_LBS)), gradient_BYXZ = differentiate(x_BYXZ, weights_BSP)
    assert out_BSP.shape == (2, 8, 12)
    assert experts_LBS.shape == (2, 2, 8)

    kept_BS = jnp.zeros((2, 16), bool).at[jnp.arange(2)[:, None], KEEP_BS].set(True)
    magnitudes_BS = jnp.abs(patchify(gradient_BYXZ, 2)).max(-1)
    np.testing.assert_array_equal(magnitudes_BS > 0, kept_BS)

    noise_BSP = 100 * np.random.default_rng(3).normal(size=(2, 16, 12)).astype(np.float32)
    other_BSP = jnp.where(kept_BS[..., None], patchify(x_BYXZ, 2), noise_BSP)
    (_, (same_BSP, _)), _ = differentiate(unpatchify(other_BSP, 2, 4, 4), weights_BSP)
    np.testing.assert_array_equal(same_BSP, out_BSP)


def test_kept_tokens_come_in_the_order_named(randomise):
    graphdef, params = randomise(build(SPEC))
    order_BS = jnp.stack([np.random.default_rng(b).permutation(16) for b in range(2)])
    everything, _ = run(graphdef, params, example())
    permuted, _ = run(graphdef, params, example(), order_BS)
    np.testing.assert_allclose(permuted, take_tokens(everything, order_BS), rtol=1e-3, atol=1e-4)


def test_take_tokens_by_hand():
    tokens_BSD = jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(
        take_tokens(tokens_BSD, jnp.array([[2, 0], [1, 1]])), [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    )


@pytest.mark.parametrize("fit", ["area", "sides"])
@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (4, 16), (16, 4), (6, 10)])
def test_other_resolutions_equal_float64(randomise, rows, columns, fit):
    spec = dataclasses.replace(SPEC, position_fit=fit)
    graphdef, params = randomise(build(spec))
    inputs = example(rows, columns)
    out_BSP, _ = run(graphdef, params, inputs)
    assert out_BSP.shape == (2, rows * columns // 4, 12)
    np.testing.assert_allclose(out_BSP, plain.dit(spec, params, inputs)[0], rtol=1e-3, atol=1e-3)
    if rows != columns:  # the columns of a picture that lies the other way
        swapped_SD = plain.positions(spec, columns // 2, rows // 2)
        assert np.abs(out_BSP - plain.dit(spec, params, inputs, positions_SD=swapped_SD)[0]).max() > 0.01


@pytest.mark.parametrize("kind", ["expert_choice", "token_choice"])
def test_images_of_any_shape_are_routed_alone(randomise, kind):
    """An image of 15 tokens, four experts: each takes 7.5 tokens, rounded up."""
    graphdef, params = randomise(build(SPEC))
    routing, (x_BYXZ, *rest) = RoutingSpec(kind, 2.0), example(6, 10, batch=4)
    together, stats = run(graphdef, params, (x_BYXZ, *rest), routing=routing)
    if kind == "expert_choice":
        np.testing.assert_array_equal(stats.experts_BS.sum(-1), 4 * 8)
    others, _ = run(graphdef, params, (x_BYXZ.at[:2].add(1), *rest), routing=routing)
    np.testing.assert_array_equal(others[2:], together[2:])
    alone, _ = run(graphdef, params, jax.tree.map(lambda a: a[2:], (x_BYXZ, *rest)), routing=routing)
    np.testing.assert_allclose(together[2:], alone, rtol=1e-4, atol=1e-5)


def test_images_of_different_groups_do_not_see_each_other(randomise):
    graphdef, params = randomise(build(SPEC))
    inputs = example(batch=4)
    together, _ = run(graphdef, params, inputs, routing=RoutingSpec("expert_choice", 2.0, 32))
    alone, _ = run(
        graphdef, params, jax.tree.map(lambda a: a[2:], inputs), routing=RoutingSpec("expert_choice", 2.0, 32)
    )
    np.testing.assert_allclose(together[2:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text_projection", [False, True])
def test_text_beyond_the_mask_has_no_influence(randomise, text_projection):
    graphdef, params = randomise(build(dataclasses.replace(SPEC, text_projection=text_projection)))
    x_BYXZ, t_B, text_BTM, mask_BT = example()
    out_BSP, _ = run(graphdef, params, (x_BYXZ, t_B, text_BTM, mask_BT))
    hidden, _ = run(graphdef, params, (x_BYXZ, t_B, jnp.where(mask_BT[..., None], text_BTM, 100.0), mask_BT))
    np.testing.assert_array_equal(hidden, out_BSP)
    shorter, _ = run(graphdef, params, (x_BYXZ[1:], t_B[1:], text_BTM[1:, :3], mask_BT[1:, :3]))
    np.testing.assert_allclose(shorter, out_BSP[1:], rtol=1e-4, atol=1e-4)
    changed, _ = run(graphdef, params, (x_BYXZ, t_B, text_BTM.at[:, 0].add(1), mask_BT))
    assert jnp.abs(changed - out_BSP).max() > 1e-3


@pytest.mark.slow
def test_remat_changes_no_gradient(randomise):
    gradients = []
    for remat in ("none", "dots", "full"):
        graphdef, params = randomise(build(dataclasses.replace(SPEC, num_blocks=2, remat=remat)))

        def loss(params, graphdef=graphdef):
            out_BSP, stats = nnx.merge(graphdef, params)(*example(), routing=RoutingSpec("token_choice", 2.0))
            return jnp.square(out_BSP).mean() + stats.aux_loss.sum()

        gradients.append(jax.jit(jax.grad(loss))(params))
    for other in gradients[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradients[0], other)


@pytest.mark.parametrize("spec", [SPEC, DENSE], ids=["sparse", "dense"])
def test_the_program_does_not_grow_with_depth(spec):
    sizes = set()
    for num_blocks in (4, 24):
        graphdef, params, _ = param.split(nnx.eval_shape(build(dataclasses.replace(spec, num_blocks=num_blocks))))

        def loss(params, inputs, graphdef=graphdef):
            return nnx.merge(graphdef, params)(*inputs, routing=ROUTING)[0].sum()

        sizes.add(jax.jit(jax.grad(loss)).lower(params, example()).as_text().count("\n"))
    assert len(sizes) == 1


def test_bfloat16_computes_with_float32_parameters_and_scores(randomise):
    graphdef, params = randomise(build(SPEC, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    out_BSP, stats = run(graphdef, params, example())
    assert out_BSP.dtype == jnp.float32
    assert jnp.isfinite(out_BSP).all()
    assert {stats.gate_entropy.dtype, stats.aux_loss.dtype} == {jnp.dtype(jnp.float32)}

    jaxpr = str(jax.make_jaxpr(lambda params: nnx.merge(graphdef, params)(*example(), routing=ROUTING)[0])(params))
    (top_k,) = [line for line in jaxpr.splitlines() if "top_k[" in line]
    assert "f32[2,4,8]" in top_k
    weight_products = [line for line in jaxpr.splitlines() if "dot_general[" in line]
    assert sum("bf16" in line for line in weight_products) > 10


def test_bfloat16_stays_near_float32(randomise):
    _, params = randomise(build(DENSE), scale=0.2)
    exact, _ = run(nnx.graphdef(nnx.eval_shape(build(DENSE))), params, example())
    rounded, _ = run(nnx.graphdef(nnx.eval_shape(build(DENSE, jnp.bfloat16))), params, example())
    assert jnp.abs(rounded - exact).max() < 0.05 * jnp.abs(exact).max()
