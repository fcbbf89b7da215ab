import dataclasses
from collections.abc import Mapping

import pytest

from ec_dit.core import records_json
from ec_dit.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Facts:
    name: str
    counts: Mapping[str, int]
    pairs: Mapping[str, tuple[int, tuple[str, ...]]]
    share: float | None = None
    more: list[int] = dataclasses.field(default_factory=list)


SOUND = '{"name": "a", "counts": {"b": 3}, "pairs": {"c": [1, ["d", "e"]]}, "share": 2, "more": [4]}'


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(SOUND)
    found = records_json.read(path, Facts, "make it again")
    assert found == Facts("a", {"b": 3}, {"c": (1, ("d", "e"))}, 2.0, [4]) and isinstance(found.share, float)
    path.write_text('{"name": "a", "counts": {}, "pairs": {}}')
    assert records_json.read(path, Facts, "make it again") == Facts("a", {}, {})
    assert records_json.parse(b"[1, 2]", list[int]) == [1, 2]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        (SOUND[:40], "Unterminated string"),
        ("\0" * len(SOUND), "Expecting value"),
        (b"\xff\xfe\x00", "decode"),
        ("[" * 100_000, "without end"),
        ('{"name":' * 100_000, "without end"),
        ("[]", "the whole is a list, not an object"),
        ("null", "the whole is null, not an object"),
        ('{"some": "report"}', "the whole has no 'name'"),
        (SOUND.replace("name", "nbme"), "has no 'name'"),
        (SOUND.replace("more", "more "), "has a field 'more ', which is none"),
        (SOUND.replace('"a"', "7"), "'name' is 7, not a text"),
        (SOUND.replace('{"b": 3}', "[3]"), "'counts' is a list, not an object"),
        (SOUND.replace("3", '"3"'), "'counts', 'b' is a text, not a whole number"),
        (SOUND.replace("3", "true"), "'counts', 'b' is True, not a whole number"),
        (SOUND.replace("3", "3.5"), "'counts', 'b' is 3.5, not a whole number"),
        (SOUND.replace('[1, ["d", "e"]]', "[1]"), "'pairs', 'c' is a list, not a list"),
        (SOUND.replace('"e"', "null"), "'pairs', 'c' is null, not a text"),
        (SOUND.replace("[4]", "{}"), "'more' is an object, not a list"),
    ],
    ids=map(str, range(19)),
)
def test_anything_else_names_the_file_what_is_wrong_and_the_way_out(tmp_path, text, why):
    path = tmp_path / "facts.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        records_json.read(path, Facts, "make it again")
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged (") and message.endswith("); make it again") and why in message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_not_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        records_json.read(tmp_path / "none.json", Facts, "make it again")


def test_what_reads_a_file_within_the_context_may_fail_in_any_way():
    for raised in (KeyError("kept"), TypeError("no"), AttributeError("x\x1b[31m"), IndexError(), ZeroDivisionError()):
        with (
            pytest.raises(UserError, match=r"a.json is damaged \(.+\); mend it") as caught,
            records_json.whole("a.json", "mend it"),
        ):
            raise raised
        assert "\x1b" not in str(caught.value)
    with pytest.raises(UserError, match=r"^said already$"), records_json.whole("a.json", "mend it"):
        raise UserError("said already")
    with pytest.raises(OSError, match=r"gone"), records_json.whole("a.json", "mend it"):
        raise OSError("gone")
