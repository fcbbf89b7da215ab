import pytest

from ec_dit.data.captions import may_mirror


@pytest.mark.parametrize(
    "caption", ["a red circle", "a bright house", "signature dish", "ten apples", "two upright men"]
)
def test_true_either_way(caption):
    assert may_mirror(caption)


@pytest.mark.parametrize(
    "caption",
    ["a cat LEFT of a dog", "to the right", "man running facing right", "three o'clock", "a sign", '"hello"', "bus 42"],
)
def test_sides_and_writing_are_not(caption):
    assert not may_mirror(caption)
