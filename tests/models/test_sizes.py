"""The formulas of whole models and of blocks against what is built and what is traced; the table against the page in docs."""

import json
import subprocess
import sys
import typing
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ec_dit.core import tree
from ec_dit.models import sizes
from ec_dit.models.block import Condition, Streams
from ec_dit.models.blocks import BLOCKS
from ec_dit.models.cross_attention import CrossAttentionBlock
from ec_dit.models.dit import DiT
from ec_dit.models.paper import PAPER
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.spec import BlockKind, DiTSpec
from ec_dit.models.stages import Kind
from ec_dit.models.text_spec import TowerSpec
from ec_dit.models.text_tower import TextTower
from ec_dit.nn.cost import Cost, Load
from ec_dit.nn.routing.spec import RoutingSpec
from tests.nn.test_cost import traced_flops

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = DiTSpec(width=32, num_blocks=5, num_heads=4, num_kv_heads=2, head_dim=8, text_width=24, latent_size=8)
SPECS = {
    "dense": SMALL,
    "sparse": replace(SMALL, sparse=SparseSpec(4)),
    "sparse_from_0_every_3": replace(SMALL, sparse=SparseSpec(4, first=0, every=3), ffn_factor=3),
    "adaln_single": replace(SMALL, modulation="adaln_single", sparse=SparseSpec(2)),
    "text_projection": replace(SMALL, text_projection=True, learned_sigma=True, patch=4),
    "size_embedding": replace(SMALL, width=36, modulation="adaln_single", size_embedding=True),
    "narrow_gated_experts": replace(
        SMALL, activation="swiglu", ffn_width=40, sparse=SparseSpec(4, expert_width=12, shared_width=20)
    ),
    "router_of_time": replace(SMALL, sparse=SparseSpec(4, router_input="normed_time"), bias=True),
    "capacity_by_block": replace(SMALL, sparse=SparseSpec(4, every=1, capacity_factors=(4.0, 4.0, 2.0, 2.0))),
    "joint_kv": replace(
        SMALL,
        block="joint_kv",
        position="rope",
        position_fit="centred",
        rope_axes=(2, 2, 4),
        time_embedding="wide",
        text_norm=True,
        qk_norm=True,
        sparse=SparseSpec(4, first=3, every=1, router_input="normed_time"),
    ),
    "mmdit": replace(
        SMALL,
        block="mmdit",
        pooled_width=6,
        dual_blocks=2,
        position_fit="crop",
        position_grid=6,
        bias=True,
        qk_norm=True,
    ),
    "sparse_mmdit": replace(SMALL, block="mmdit", text_projection=True, sparse=SparseSpec(4, every=1, shared_width=16)),
    "bias_and_qk_norm": replace(SMALL, bias=True, qk_norm=True, sparse=SparseSpec(4)),
}
TOWER = TowerSpec(vocab_size=50, width=16, num_blocks=3, num_heads=2, length=6)


def built_params(spec: DiTSpec) -> int:
    model = nnx.eval_shape(lambda: DiT(spec, rngs=nnx.Rngs(0)))
    return tree.num_params(nnx.state(model, nnx.Param))


@pytest.mark.parametrize("name", PAPER)
def test_total_equals_the_built_model(name):
    assert sizes.sizes(PAPER[name].spec).total == built_params(PAPER[name].spec)


@pytest.mark.parametrize("name", SPECS)
def test_total_of_every_option_equals_the_built_model(name):
    assert sizes.sizes(SPECS[name]).total == built_params(SPECS[name])


KINDS = [(name, Kind(sparse)) for name in BLOCKS for sparse in (False, True)]
KINDS += [("mmdit", Kind(True, dual=True)), ("mmdit", Kind(True, last=True))]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_block_costs_what_is_built_and_traced(name, kind):
    """Of every kind, with a text stream or without; all other products of a model are those of `DiT` around it."""
    spec = replace(SMALL, block=name, sparse=SparseSpec(4), text_width=32, bias=True, qk_norm=True)
    make = nnx.eval_shape(lambda: BLOCKS[name](spec, kind, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(make)
    text_BTM, mask_BT = jnp.zeros((1, 6, 32)), jnp.ones((1, 6), bool)
    condition = Condition(jnp.zeros((1, 32)), text_BTM, mask_BT)
    streams = Streams(jnp.zeros((1, 8, 32)), text_BTM if BLOCKS[name].CHANGES_TEXT else None)
    jaxpr = jax.make_jaxpr(lambda state: nnx.merge(graphdef, state)(streams, condition, RoutingSpec()))(state)
    cost = BLOCKS[name].cost(spec, kind, Load(8, 6, 2.0))
    assert (cost.params, cost.flops) == (tree.num_params(state), traced_flops(jaxpr.jaxpr))


def test_a_tiny_block_by_hand():
    """Width 4, one head of 2, hidden 8, text width 3; 5 tokens, 2 text tokens; two experts, one layer a token."""
    spec = DiTSpec(
        width=4, num_blocks=2, num_heads=1, num_kv_heads=1, head_dim=2, ffn_factor=2, text_width=3, sparse=SparseSpec(2)
    )
    modulation, projections, feed_forward = 6 * 4 * 4, 2 * 4 * 2, 2 * 4 * 8  # products of one vector
    products = modulation
    products += 5 * (2 * projections + 2 * 2 * 5)  # self-attention: q, k, v, output; scores and means over 5 tokens
    products += 5 * (projections + 2 * 2 * 2) + 2 * (2 * 3 * 2)  # cross-attention: q and output, over 2 tokens; k, v
    dense = CrossAttentionBlock.cost(spec, Kind(False), Load(5, 2, 1.0))
    params = modulation + 6 * 4 + 2 * projections + projections + 2 * 3 * 2
    assert dense == Cost(params + 64, params + 64, 2 * (products + 5 * feed_forward))
    sparse = CrossAttentionBlock.cost(spec, Kind(True), Load(5, 2, 1.0))
    assert sparse == Cost(params + 8 + 128, params + 8 + 64, 2 * (products + 5 * (feed_forward + 4 * 2)))


def test_every_kind_of_block_is_in_the_table():
    assert set(BLOCKS) == set(typing.get_args(BlockKind))


def test_tower_total_equals_the_built_tower():
    tower = nnx.eval_shape(lambda: TextTower(TOWER, rngs=nnx.Rngs(0)))
    assert TextTower.cost(TOWER, TOWER.length).params == tree.num_params(nnx.state(tower, nnx.Param))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("kept", "reads_text"), [(None, True), (8, True), (None, False)])
def test_forward_flops_equal_the_products_of_the_traced_model(name, kept, reads_text):
    spec, text_length = SPECS[name], 6
    model = nnx.eval_shape(lambda: DiT(spec, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    keep_BS = None if kept is None else jnp.zeros((2, min(kept, spec.image_tokens)), jnp.int32)
    tokens = spec.image_tokens if keep_BS is None else keep_BS.shape[1]

    def read(state, text_BTM, mask_BT):
        return nnx.merge(graphdef, state).read(text_BTM, mask_BT, 1, spec.image_tokens)

    def forward(state, x_BYXZ, t_B, text, mask_BT):
        model, (text_BTM, of_blocks) = nnx.merge(graphdef, state), text if not reads_text else (text, None)
        pooled_BM = jnp.zeros((2, spec.pooled_width)) if spec.pooled_width else None
        how = {
            "routing": RoutingSpec(capacity_factor=2.0),
            "keep_BS": keep_BS,
            "pooled_BM": pooled_BM,
            "kept": of_blocks,
        }
        return model(x_BYXZ, t_B, text_BTM, mask_BT, **how)[0]

    side = spec.latent_size
    text, mask_BT = jnp.zeros((2, text_length, spec.text_width)), jnp.ones((2, text_length), bool)
    jaxpr = jax.make_jaxpr(forward)(
        state,
        jnp.zeros((2, side, side, spec.channels)),
        jnp.zeros(2),
        text if reads_text else jax.eval_shape(read, state, text, mask_BT),
        mask_BT,
    )
    # The model embeds patches before it drops tokens; the formula counts those that it keeps.
    dropped = 2 * (spec.image_tokens - tokens) * spec.patch**2 * spec.channels * spec.width
    third = spec.width // 3
    once = 6 * (256 * third + third**2) if spec.size_embedding else 0  # two sides and their ratio
    assert 2 * (
        sizes.forward_flops(spec, tokens, text_length, 2.0, reads_text=reads_text) + dropped
    ) + once == traced_flops(jaxpr.jaxpr)


def test_tower_flops_equal_the_products_of_the_traced_tower():
    graphdef, state = nnx.split(nnx.eval_shape(lambda: TextTower(TOWER, rngs=nnx.Rngs(0))))
    ids_BT = jnp.zeros((3, TOWER.length), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda state: nnx.merge(graphdef, state)(ids_BT, ids_BT == 0))(state)
    assert 3 * TextTower.cost(TOWER, TOWER.length).flops == traced_flops(jaxpr.jaxpr)


def test_training_costs_three_forward_passes_of_model_and_tower():
    forward = sizes.forward_flops(SPECS["sparse"], 8, 6, 2.0)
    assert sizes.train_flops_per_image(SPECS["sparse"], 8, 6, 2.0) == 3 * forward
    with_tower = sizes.train_flops_per_image(SPECS["sparse"], 8, 6, 2.0, TOWER)
    assert with_tower == 3 * (forward + TextTower.cost(TOWER, 6).flops)


@pytest.mark.parametrize("name", [name for name in PAPER if PAPER[name].routing != "dense"])
def test_sparse_rows_rise_and_activate_by_the_papers_formulas(name):
    spec, ours = PAPER[name].spec, sizes.sizes(PAPER[name].spec)
    d, e, k = spec.width, spec.sparse.num_experts, spec.num_blocks // 2
    assert ours.sparse_blocks == k
    assert ours.total - ours.dense_total == k * ((e - 1) * 8 * d**2 + e * d)
    assert ours.activated - ours.dense_total == k * (8 * d**2 * (2 - 1) + e * d)


def test_activated_follows_the_capacity_factor():
    spec = PAPER["xl_8e"].spec
    one_more = sizes.sizes(spec, 3.0).activated - sizes.sizes(spec, 2.0).activated
    assert one_more == 14 * 8 * 1152**2
    assert sizes.sizes(spec, 8.0).activated == sizes.sizes(spec).total


def test_rises_are_the_papers_own_differences():
    twins = {"xl_32e": 6.08 - 1.47, "xxl_32e": 13.47 - 2.35, "3xl_32e": 32.15 - 4.50}
    for name, difference in twins.items():
        ours = sizes.sizes(PAPER[name].spec)
        assert (ours.total - ours.dense_total) / 1e9 == pytest.approx(difference, abs=0.01)


def command(*arguments: str) -> str:
    line = [sys.executable, "-m", "ec_dit.models.sizes", *arguments]
    return subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True, timeout=100).stdout


def test_command_prints_json_and_the_page_in_docs():
    rows = json.loads(command("--json"))
    assert list(rows) == list(PAPER)
    assert len(rows) == 20
    per_token = rows["m_64e"].pop("flops_per_token")
    assert per_token == sizes.forward_flops(PAPER["m_64e"].spec, 256, 77) // 256
    assert rows["m_64e"] == {
        "total": 97_113_173_008,
        "activated": 8_177_150_992,
        "dense_total": 6_738_963_472,
        "sparse_blocks": 19,
    }
    assert command("--markdown") == (ROOT / "docs/models.md").read_text(), "docs/models.md is stale: run make docs"


def test_text_table_has_aligned_rows_of_every_model():
    lines = sizes.text_table().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines[1:]] == list(PAPER)
