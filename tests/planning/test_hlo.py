"""Reading compiled programs: against XLA's own count where it counts, against arithmetic where it does not."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from ec_dit.core.mesh import make_mesh
from ec_dit.planning import hlo, kernels
from ec_dit.planning.collectives import Collective, _groups, collectives
from ec_dit.planning.kernels import Work


def compiled(function, *arrays):
    return jax.jit(function).lower(*arrays).compile()


def test_products_of_a_loop_count_as_often_as_they_run():
    def loop(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    program = compiled(loop, jnp.ones((8, 16)), jnp.ones((5, 16, 16)))
    assert kernels.flops(hlo.parse(program.as_text())) == 5 * 2 * 8 * 16 * 16


def test_loops_in_loops_multiply():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)[0], None

    program = compiled(lambda x, ws: jax.lax.scan(inner, x, ws)[0], jnp.ones((8, 16)), jnp.ones((5, 16, 16)))
    assert kernels.flops(hlo.parse(program.as_text())) == 15 * 2 * 8 * 16 * 16


@pytest.mark.parametrize(
    "settings",
    [
        {"padding": "SAME"},
        {"padding": "VALID", "window_strides": (2, 3)},
        {"padding": ((2, 3), (0, 1)), "rhs_dilation": (2, 1)},
        {"padding": ((4, 4), (3, 3)), "lhs_dilation": (2, 3)},
        {"padding": "SAME", "feature_group_count": 2},
    ],
)
def test_convolutions_count_as_xla_counts_them(settings):
    """Products with padding and with the holes of dilation are not counted."""
    settings = {"window_strides": (1, 1)} | settings
    kernel = jnp.ones((6, 4 // settings.get("feature_group_count", 1), 3, 5))
    convolve = functools.partial(jax.lax.conv_general_dilated, **settings)
    program = compiled(convolve, jnp.ones((2, 4, 12, 14)), kernel)
    text = program.as_text()
    assert "convolution(" in text
    assert kernels.flops(hlo.parse(text)) == program.cost_analysis()["flops"]


def test_collectives_with_their_sizes_groups_and_counts():
    mesh = make_mesh((2, 1, 4, 1))

    def body(x, _):
        gathered = jax.lax.all_gather(x, "expert", tiled=True)  # (8, 16) -> (32, 16)
        scattered = jax.lax.psum_scatter(gathered, "expert", tiled=True)
        exchanged = jax.lax.all_to_all(scattered, "expert", 0, 0, tiled=True)
        return exchanged + jax.lax.pmean(exchanged, "data").mean(), None

    def run(x):
        return jax.lax.scan(body, x, None, length=3)[0]

    with jax.set_mesh(mesh):
        spec = P(("data", "expert"))
        program = compiled(jax.shard_map(run, in_specs=spec, out_specs=spec, check_vma=False), jnp.ones((64, 16)))
    found = {c.kind: c for c in collectives(hlo.parse(program.as_text())) if c.bytes > 4}
    whole, part = 32 * 16 * 4, 8 * 16 * 4
    experts = ((0, 1, 2, 3), (4, 5, 6, 7))
    assert found["all-gather"] == Collective("all-gather", 3, whole, experts)
    assert found["reduce-scatter"] == Collective("reduce-scatter", 3, whole, experts)
    assert found["all-to-all"] == Collective("all-to-all", 3, part, experts)
    assert found["all-reduce"].groups == ((0, 4), (1, 5), (2, 6), (3, 7)) and found["all-reduce"].count == 3


def test_groups_in_all_their_spellings():
    assert _groups("replica_groups={{0,2},{1,3}}, x") == ((0, 2), (1, 3))
    assert _groups("replica_groups=[2,4]<=[8], x") == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert _groups("replica_groups=[4,2]<=[2,4]T(1,0), x") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert _groups("replica_groups=mesh['a'=2,'b'=4] {'a'}, x") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert _groups("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, x") == (
        (0, 1, 2, 3),
        (4, 5, 6, 7),
    )
    assert _groups("replica_groups=mesh['a'=8] {'a':(2)2}, x") == ((0, 2), (1, 3), (4, 6), (5, 7))


TPU_PROGRAM = """HloModule jit_step, is_scheduled=true

%condition (p.1: (s32[], bf16[8,16])) -> pred[] {
  %p.1 = (s32[], bf16[8,16]{1,0}) parameter(0)
  %limit = s32[] constant(7)
  %counter = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

%all-reduce-scatter.1 (input: bf16[64,16]) -> bf16[16,16] {
  %input = bf16[64,16]{1,0:T(8,128)(2,1)} parameter(0)
  %sum = bf16[64,16]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %part = bf16[16,16]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={16,16}
}

%gathering (p.4: bf16[2,16]) -> (bf16[2,16], bf16[8,16]) {
  %p.4 = bf16[2,16]{1,0} parameter(0)
  %gathered.1 = bf16[8,16]{1,0} all-gather(%p.4), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %both = (bf16[2,16]{1,0}, bf16[8,16]{1,0}) tuple(%p.4, %gathered.1)
}

%gathered (p.5: bf16[2,16], p.6: bf16[8,16]) -> bf16[8,16] {
  %p.5 = bf16[2,16]{1,0} parameter(0)
  %p.6 = bf16[8,16]{1,0} parameter(1)
  ROOT %gathered.2 = bf16[8,16]{1,0} all-gather(%p.5), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}, async=true
}

%kept (p.7: bf16[7,8,16], p.8: bf16[8,16], p.9: s32[]) -> bf16[7,8,16] {
  %p.7 = bf16[7,8,16]{2,1,0} parameter(0)
  %p.8 = bf16[8,16]{1,0} parameter(1)
  %p.9 = s32[] parameter(2)
  %one = bf16[1,8,16]{2,1,0} bitcast(%p.8)
  ROOT %update = bf16[7,8,16]{2,1,0} dynamic-update-slice(%p.7, %one, %p.9, %p.9, %p.9)
}

%body (p.2: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p.2 = (s32[], bf16[8,16]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%p.2), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%p.2), index=1
  %stack = bf16[7,8,16]{2,1,0} constant({...})
  %async-collective-start.3 = (bf16[2,16]{1,0}, bf16[8,16]{1,0}) fusion(%x), kind=kCustom, calls=%gathering
  %first = bf16[2,16]{1,0} get-tuple-element(%async-collective-start.3), index=0
  %second = bf16[8,16]{1,0} get-tuple-element(%async-collective-start.3), index=1
  %kernel = bf16[7,8,16]{2,1,0} fusion(%stack, %x, %count), kind=kLoop, calls=%kept
  %async-collective-done.3 = bf16[8,16]{1,0} fusion(%first, %second), kind=kCustom, calls=%gathered
  %on_chip = bf16[64,16]{1,0:T(8,128)(2,1)S(1)} negate(%x)
  %scatter = bf16[16,16]{1,0} fusion(%on_chip), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[], bf16[8,16]{1,0}) tuple(%count, %async-collective-done.3)
}

ENTRY %main (x.0: bf16[8,16]) -> bf16[8,16] {
  %x.0 = bf16[8,16]{1,0} parameter(0)
  %start = s32[] constant(2)
  %copied = s32[]{:T(128)} copy(%start)
  %begin = (s32[], bf16[8,16]{1,0}) tuple(%copied, %x.0)
  %loop = (s32[], bf16[8,16]{1,0}) while(%begin), condition=%condition, body=%body
  ROOT %out = bf16[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_tpu_program_is_read_as_its_compiler_writes_it():
    """Worked out by hand: the loop runs from 2 to 7; a fused all-reduce that keeps a slice is a reduce-scatter.

    A gather begun and ended in kernels of its own counts once, with what lies between; stacks are updated in place; on-chip
    memory is free.
    """
    program = hlo.parse(TPU_PROGRAM)
    assert not program.unknown_loops and program.runs["body"] == 5
    update = Work(flops=0, bytes=2 * 8 * 16 * 2 + 4)  # read x and the counter, write one layer of the stack
    gather, scatter = sorted(collectives(program), key=lambda c: c.kind)
    assert gather == Collective("all-gather", 5, 8 * 16 * 2, ((0, 1, 2, 3),), hidden=(update,))
    assert scatter == Collective("reduce-scatter", 5, 64 * 16 * 2, ((0, 1, 2, 3),))
    negation = Work(flops=0, bytes=8 * 16 * 2)
    assert [(work, times) for work, times in kernels.kernels(program) if work.bytes > 16] == [
        (update, 5),
        (negation, 5),
    ]


def test_a_loop_of_unknown_length_is_named():
    program = hlo.parse(TPU_PROGRAM.replace("direction=LT", "direction=NE"))
    assert program.unknown_loops == ["loop"] and program.runs["body"] == 1
