"""JSON files that are whole, and all the ways in which they are not."""

import dataclasses
import json
from collections.abc import Mapping

import pytest
from etils import epath

from ec_dit.core import json_file
from ec_dit.core.errors import DamageError, UserError

GOOD = {"name": "x", "list": [1, 2.5, None], "nested": {"a": "é"}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b'{"a": 1', "it is no JSON: Expecting"),
        (b"\0" * 20, "it is no JSON"),
        (b'{"a": "\xff"}', "byte 7 of 10 is no text"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "holds a list, not an object"),
        (b"17", "holds a int, not an object"),
    ],
)
def test_what_is_no_object_is_named(tmp_path, data, message):
    path = tmp_path / "report.json"
    path.write_bytes(data)
    with pytest.raises(DamageError, match=message) as caught:
        json_file.read(epath.Path(path), "Make it again.")
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert str(caught.value).endswith(". Make it again.")


def test_a_sealed_object_shows_every_flipped_bit():
    data = json.dumps(json_file.seal(GOOD)).encode()
    assert json_file.unseal(json_file.parse(data, "x"), "x") == GOOD
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            content = json_file.unseal(json_file.parse(bytes(flipped), "x"), "x")
        except DamageError:
            continue
        # Nothing else passes than what says the same, and the key of the digest, without which nothing is compared.
        assert content == GOOD or GOOD.items() < content.items()


def test_what_was_never_sealed_passes():
    assert json_file.unseal(GOOD, "x") == GOOD


@dataclasses.dataclass(frozen=True)
class Facts:
    name: str
    counts: Mapping[str, int]
    pairs: Mapping[str, tuple[int, tuple[str, ...]]]
    share: float | None = None
    more: list[int] = dataclasses.field(default_factory=list)


SOUND = '{"name": "a", "counts": {"b": 3}, "pairs": {"c": [1, ["d", "e"]]}, "share": 2, "more": [4]}'


def test_content_of_the_right_kind():
    found = json_file.typed(json.loads(SOUND), Facts, "x")
    assert found == Facts("a", {"b": 3}, {"c": (1, ("d", "e"))}, 2.0, [4]) and isinstance(found.share, float)
    assert json_file.typed({"name": "a", "counts": {}, "pairs": {}}, Facts, "x") == Facts("a", {}, {})
    assert json_file.typed([1, 2], list[int], "x") == [1, 2]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"some": "report"}', "the whole has no 'name'"),
        (SOUND.replace("more", "more "), "has a 'more ', which is none"),
        (SOUND.replace('"a"', "7"), "'name' is 7, not a text"),
        (SOUND.replace('{"b": 3}', "[3]"), "'counts' is a list, not an object"),
        (SOUND.replace("3", '"3"'), "'counts', 'b' is a text, not a whole number"),
        (SOUND.replace("3", "true"), "'counts', 'b' is True, not a whole number"),
        (SOUND.replace("3", "3.5"), "'counts', 'b' is 3.5, not a whole number"),
        (SOUND.replace('[1, ["d", "e"]]', "[1]"), "'pairs', 'c' is a list, not a list"),
        (SOUND.replace('"e"', "null"), "'pairs', 'c' is null, not a text"),
        (SOUND.replace("[4]", "{}"), "'more' is an object, not a list"),
    ],
    ids=map(str, range(10)),
)
def test_content_of_another_kind_says_where(text, why):
    with pytest.raises(DamageError) as caught:
        json_file.typed(json.loads(text), Facts, "facts.json", "Make it again.")
    message = str(caught.value)
    assert message.startswith("facts.json is damaged: ") and message.endswith(". Make it again.") and why in message


def test_what_interprets_a_file_may_fail_in_any_way():
    for raised in (KeyError("kept"), TypeError("no"), AttributeError("x\x1b[31m"), IndexError(), ZeroDivisionError()):
        with (
            pytest.raises(DamageError, match=r"a.json is damaged: .+\. Mend it") as caught,
            json_file.whole("a.json", "Mend it."),
        ):
            raise raised
        assert "\x1b" not in str(caught.value)
    with pytest.raises(UserError, match=r"^said already$"), json_file.whole("a.json"):
        raise UserError("said already")
    with pytest.raises(OSError, match=r"gone"), json_file.whole("a.json"):
        raise OSError("gone")
