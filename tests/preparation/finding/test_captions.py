import pytest

from ec_dit.preparation.finding.captions import may_mirror


@pytest.mark.parametrize(
    "caption",
    [
        *("a red circle", "a bright house", "signature dish", "ten apples", "two upright men", "leftovers on a plate"),
        *("a righteous knight", "copyright holders", "a cleft rock", "a playwright", "a priest", "a beast at a feast"),
        *("a swordfish", "a password-free spa", "designers at work", "a mapless hiker", "a contextual dance"),
    ],
)
def test_true_either_way(caption):
    assert may_mirror(caption)


@pytest.mark.parametrize(
    "caption",
    [
        *("a cat LEFT of a dog", "to the right", "man running facing right", "three o'clock", "a sign", '"hello"'),
        *("bus 42", "the leftmost dog", "rightmost man", "lefthand side", "a left-handed player", "upper-left corner"),
        *("a bottomright star", "looking leftwards", "the northeast wall", "a westbound train", "counterclockwise"),
        *("newspaper headline", "a shirt with inscription", "an inscribed stone", "giant letters", "neon signage"),
        *("a handwritten note", "a labelled jar", "graffiti on a wall", "a cake that spells love", "two wall clocks"),
    ],
)
def test_sides_and_writing_are_not(caption):
    assert not may_mirror(caption)
