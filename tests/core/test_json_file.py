"""JSON files that are whole, and all the ways in which they are not."""

import json

import pytest
from etils import epath

from ec_dit.core import json_file
from ec_dit.core.errors import DamageError

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
