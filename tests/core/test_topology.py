"""Which slices of TPUs there are, against Google Cloud's pages and what the compiler takes."""

import pytest

from ec_dit.core import topology
from ec_dit.core.errors import UserError


@pytest.mark.parametrize(
    ("text", "sides", "accelerator"),
    [
        ("v5p:8x8x8", (8, 8, 8), "v5p-1024"),
        ("v5p:2x2x1", (2, 2, 1), "v5p-8"),
        ("v5p:4x4x12", (4, 4, 12), "v5p-384"),
        ("v4:4x8x4", (4, 8, 4), "v4-256"),
        ("v5e:1x1", (1, 1), "v5litepod-1"),
        ("v6e:16x16", (16, 16), "v6e-256"),
        ("cpu:8", (8,), ""),
    ],
)
def test_what_there_is(text, sides, accelerator):
    found = topology.parse(text)
    assert (found.sides, found.accelerator_type, str(found)) == (sides, accelerator, text)


def test_another_name_of_the_same():
    assert topology.parse("v5litepod:2x4") == topology.parse("v5e:2x4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write it as v5p:8x8x8; known are v4, v5p, v5e, v6e, v5litepod, and cpu:8"),
        ("v9:2x2", "known are v4"),
        ("V5P:2x2x2", "known are v4"),
        ("v5:2x2", r"did you mean v5"),
        ("v5p", "there is no such slice; v5p has the shapes 2x2x1, 2x2x2"),
        ("v5p:", "no such slice"),
        ("v5p:axb", "no such slice"),
        ("v5p:0x2x2", "no such slice"),
        ("v5p:-4x4x4", "no such slice"),
        ("v5p:8x8", "and others of whole cubes 4x4x4 up to 8960 chips"),
        ("v5p:3x3x3", "no such slice"),
        ("v5p:6x6x6", "no such slice"),
        ("v5p:400x400x400", "no such slice"),
        ("v5e:4x4x4", "v5e has the shapes 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16[.]"),
        ("v5e:3x3", "no such slice"),
        ("v5e:32x32", "no such slice"),
        ("v6e:2x2x2", "no such slice"),
        ("v6e:\u00b2x2", "no such slice"),
        ("cpu:0", "give the number of emulated devices, from cpu:1 to cpu:4096"),
        ("cpu:2x4", "give the number"),
        ("cpu:100000000", "give the number"),
        ("cpu", "give the number"),
        ("9" * 5000, "9[.][.][.]: write it as"),
    ],
)
def test_what_there_is_not(text, message):
    with pytest.raises(UserError, match=message) as error:
        topology.parse(text, "--config.topology")
    assert str(error.value).startswith("--config.topology=")


def test_emulated_devices_are_no_slice():
    with pytest.raises(UserError, match=r"known are v4, v5p, v5e, v6e, v5litepod\."):
        topology.parse("cpu:8", cpus=False)
