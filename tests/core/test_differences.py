"""Differences of small objects, told by hand."""

from ec_dit.core.differences import Difference, differences


def test_differences_are_named_by_their_keys():
    old = {"same": 1, "part": {"a": [1, 2], "b": {"c": None}}, "gone": "x", "none": None}
    new = {"same": 1, "part": {"a": [1, 3], "b": {"c": 0.5}}, "new": {"d": 1}}
    assert list(map(str, differences(old, new))) == [
        'gone: "x" -> null',
        'new: null -> {"d": 1}',
        "part.a: [1, 2] -> [1, 3]",
        "part.b.c: null -> 0.5",
    ]
    assert list(differences(old, old)) == []


def test_a_difference_has_both_values():
    assert list(differences({"size": 3}, {"size": 4})) == [Difference("size", 3, 4)]
    assert list(differences({"a": {"b": 1}}, {"a": 2})) == [Difference("a", {"b": 1}, 2)]
