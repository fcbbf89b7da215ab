"""The plan of blocks: stages must spell out, in order, exactly the blocks that `is_sparse` names."""

import dataclasses
import itertools

import pytest

from ec_dit.core.errors import UserError
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.spec import DiTSpec
from ec_dit.models.stages import Kind

SMALL = DiTSpec(width=32, num_blocks=4, num_heads=4, num_kv_heads=2, head_dim=8)


def plan(spec):
    """(sparse flags of a pattern, repeats) of every stage."""
    return [(tuple(kind.sparse for kind in pattern), repeats) for pattern, repeats, _ in spec.stages()]


def test_the_paper_s_pattern():
    spec = dataclasses.replace(SMALL, num_blocks=28, sparse=SparseSpec(32))
    assert [i for i in range(28) if spec.sparse.is_sparse(i)] == list(range(1, 28, 2))
    assert spec.num_sparse == 14
    assert plan(spec) == [((False, True), 14)]


def test_dense_blocks_before_the_sparse_ones():
    spec = dataclasses.replace(SMALL, num_blocks=46, sparse=SparseSpec(64, first=8, every=1))
    assert spec.num_sparse == 38
    assert plan(spec) == [((False,), 8), ((True,), 38)]


def test_a_dense_model_has_one_stage():
    assert SMALL.num_sparse == 0
    assert plan(SMALL) == [((False,), 4)]


@pytest.mark.parametrize("every", range(1, 6))
@pytest.mark.parametrize("num_blocks", range(1, 11))
def test_stages_spell_out_the_blocks(num_blocks, every):
    for first in range(num_blocks):
        spec = dataclasses.replace(SMALL, num_blocks=num_blocks, sparse=SparseSpec(4, first, every))
        stages = plan(spec)
        spelled = [flag for pattern, repeats in stages for flag in pattern * repeats]
        assert spelled == [i in range(first, num_blocks, every) for i in range(num_blocks)], f"first={first}: {stages}"
        assert spec.num_sparse == sum(spelled)
        assert len(stages) <= 3
        assert all(repeats for _, repeats in stages)


@pytest.mark.parametrize(
    ("first", "every", "factors", "stages"),
    [
        (3, 1, (4.0,) * 2 + (2.0,) * 3, [((False,), 3), ((True,), 2), ((True,), 3)]),  # Nucleus-Image, less deep
        (1, 2, (4.0, 2.0, 2.0, 2.0), [((False, True), 1), ((False, True), 3)]),
        (0, 3, (1.0, 2.0, 2.0), [((True,), 1), ((False, False, True), 2), ((False,), 1)]),
        (1, 2, (2.0,) * 4, [((False, True), 4)]),
    ],
)
def test_stages_part_where_the_capacity_changes(first, every, factors, stages):
    spec = dataclasses.replace(SMALL, num_blocks=8, sparse=SparseSpec(4, first, every, capacity_factors=factors))
    assert plan(spec) == stages
    found = [
        factor
        for pattern, repeats, factor in spec.stages()
        for _ in range(sum(kind.sparse for kind in pattern) * repeats)
    ]
    assert found == list(factors)


def test_stages_do_not_grow_with_depth():
    for first, every in itertools.product(range(6), range(1, 5)):
        shallow, deep = (
            plan(dataclasses.replace(SMALL, num_blocks=12 + every * periods, sparse=SparseSpec(4, first, every)))
            for periods in (0, 10)
        )
        assert [pattern for pattern, _ in shallow] == [pattern for pattern, _ in deep]


def test_dense_blocks_behind_the_sparse_ones():
    spec = dataclasses.replace(SMALL, num_blocks=9, sparse=SparseSpec(64, first=3, every=1, stop=7))
    assert plan(spec) == [((False,), 3), ((True,), 4), ((False,), 2)]
    spec = dataclasses.replace(SMALL, num_blocks=9, sparse=SparseSpec(64, stop=5))
    assert plan(spec) == [((False, True), 2), ((False,), 5)]


def test_blocks_with_a_text_stream_part_where_they_differ():
    """The first ones with attention of their own, the last one whose text goes nowhere; experts and factors within."""
    spec = dataclasses.replace(SMALL, num_blocks=9, block="mmdit", dual_blocks=3)
    assert [kind[1:] for kind in spec.kinds()] == [(i < 3, i == 8) for i in range(9)]
    assert spec.stages() == [
        ((Kind(False, dual=True),), 3, None),
        ((Kind(False),), 5, None),
        ((Kind(False, last=True),), 1, None),
    ]
    sparse = SparseSpec(4, every=1, capacity_factors=(4.0, 4.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0))
    stages = dataclasses.replace(spec, sparse=sparse).stages()
    assert [kind for pattern, repeats, _ in stages for kind in pattern * repeats] == [
        Kind(i > 0, i < 3, i == 8) for i in range(9)
    ]
    factors = [factor for pattern, repeats, factor in stages for kind in pattern * repeats if kind.sparse]
    assert factors == list(sparse.capacity_factors)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 5}, ("2 key-value heads", "5 heads")),
        ({"sparse": SparseSpec(4, first=3, stop=2)}, ("moe.first 3", "moe.stop 2", "no block with experts")),
        ({"block": "mmdit", "modulation": "adaln_single"}, ("adaln_single", "mmdit")),
        ({"block": "joint_kv", "text_projection": True}, ("text_projection", "joint_kv")),
        ({"dual_blocks": 9}, ("dual_blocks is 9", "4 blocks")),
        ({"position": "rope", "rope_axes": (2, 2, 2)}, ("rope_axes (2, 2, 2)", "head_dim, 8")),
        ({"position_fit": "crop", "position_grid": 3}, ("position_grid is 3", "16 patches")),
        ({"patch": 3}, ("patch 3", "32")),
        ({"width": 34}, ("width 34", "multiple of 4")),
        ({"sparse": SparseSpec(4, first=4)}, ("block 4", "4 blocks")),
        ({"sparse": SparseSpec(4, capacity_factors=(2.0,))}, ("capacity_factors", "1 numbers", "2 sparse blocks")),
        (
            {"sparse": SparseSpec(4, router_input="normed_time"), "modulation": "adaln_single"},
            ("router_input=normed_time", "adaln_single"),
        ),
    ],
)
def test_impossible_models_name_their_numbers(changes, words):
    with pytest.raises(UserError) as error:
        dataclasses.replace(SMALL, **changes)
    assert all(word in str(error.value) for word in words), error.value


def test_tokens():
    assert (SMALL.tokens_per_side, SMALL.image_tokens) == (16, 256)
