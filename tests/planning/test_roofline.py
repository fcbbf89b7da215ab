"""Times of collectives and kernels against arithmetic by hand."""

import dataclasses
import itertools

import pytest

from ec_dit.core.hardware import EFFICIENCY, Chip
from ec_dit.planning.collectives import Collective
from ec_dit.planning.kernels import Work
from ec_dit.planning.roofline import collective_seconds, exposed_seconds, roofline

CHIP = Chip(flops=1e12, hbm_bytes=1e9, hbm_bandwidth=1e10, link_bandwidth=1e9, ring=4)
TORUS = list(itertools.product(range(4), range(8)))  # wraps both ways
ROW, ALL = (tuple(range(8)),), (tuple(range(32)),)
SPEED = 1e9 * EFFICIENCY["ici"]


@pytest.mark.parametrize(
    ("kind", "groups", "seconds"),
    [
        ("all-gather", ROW, 7 / 8 * 1e9 / (2 * SPEED)),  # a ring of 8, both directions
        ("reduce-scatter", ROW, 7 / 8 * 1e9 / (2 * SPEED)),
        ("all-reduce", ROW, 2 * 7 / 8 * 1e9 / (2 * SPEED)),
        ("all-gather", ALL, 31 / 32 * 1e9 / (4 * SPEED)),  # two rings at once
        ("all-gather", ((0, 1, 2),), 2 / 3 * 1e9 / SPEED),  # a line that does not wrap
        ("all-to-all", ROW, 1e9 * 8 / (4 * 2 * SPEED)),  # a byte crosses 2 links on average, 2 of 4 directions each
        ("collective-permute", ((0, 1),), 1e9 / SPEED),
        ("all-gather", ((5,),), 0.0),
    ],
)
def test_collectives(kind, groups, seconds):
    assert collective_seconds(Collective(kind, 1, int(1e9), groups), CHIP, TORUS) == pytest.approx(seconds)


def test_slices_that_do_not_close_to_rings_have_half_the_speed():
    ring = Collective("all-gather", 1, int(1e9), ROW)
    once, line = 7 / 8 * 1e9 / (2 * SPEED), 7 / 8 * 1e9 / SPEED
    assert collective_seconds(ring, dataclasses.replace(CHIP, ring=16), TORUS) == pytest.approx(line)
    for depth, seconds in ((4, once), (2, line)):  # of a cube with a side of 2 nothing closes
        cube = [(z, x, y) for z in range(depth) for x, y in TORUS]
        assert collective_seconds(ring, CHIP, cube) == pytest.approx(seconds)


def test_a_step_is_its_kernels_and_what_they_do_not_hide():
    computing, reading = Work(int(1e10), 8), Work(2, int(1e9))
    alone = 7 / 8 * 1e9 / (2 * SPEED)
    beside = 1e10 / (1e12 * EFFICIENCY["compute"])
    half_hidden = Collective("all-gather", 3, int(1e9), ROW, hidden=(computing,))
    assert exposed_seconds(half_hidden, CHIP, TORUS) == pytest.approx(alone - beside)
    hidden = Collective("all-gather", 1, 1000, ROW, hidden=(computing, reading))
    assert exposed_seconds(hidden, CHIP, TORUS) == 0

    found = roofline(CHIP, [(computing, 4), (reading, 2)], [half_hidden, hidden], TORUS)
    kernels = 4 * beside + 2 * 1e9 / (1e10 * EFFICIENCY["hbm"])
    assert found.kernels_s == pytest.approx(kernels)
    assert found.step_s == pytest.approx(max(kernels + 3 * (alone - beside), found.ici_s))
    assert found.bound == "ici" and found.ici_s == pytest.approx(3 * alone + 7 / 8 * 1000 / (2 * SPEED))
