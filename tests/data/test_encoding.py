import copy
from dataclasses import replace

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.data.encoding import Encoding

FACTS = {
    "autoencoder": {"sha256": "aa", "factor": 8, "channels": 2, "path": "/models/\u00e9"},
    "text": {"sha256": ["bb", "cc"], "width": 3, "length": 4, "type": "int8", "lower": True, "paths": ["/a", "/b"]},
    "pictures": {"resolution": 64, "shapes": [[64, 64], [32, 96]], "flip": False},
    "computed": {"jax": "1"},
}


def encoding(facts=FACTS):
    rng = np.random.default_rng(0)
    text_TM = rng.normal(size=(4, 3)).astype(np.float32)
    mask_T = np.array([True, False, True, False])
    return Encoding(facts, text_TM, mask_T, np.float32([1, -2]), np.float32([0.5, 3]))


def changed(*keys, value):
    """An encoding one of whose facts is another."""
    facts = copy.deepcopy(FACTS)
    part = facts
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    return encoding(facts)


def test_bytes_hold_all_of_it():
    before = encoding()
    after = Encoding.from_bytes(before.to_bytes(), "here")
    earlier = {
        "pooled": 0,
        "join": "sd3",
        "padding": "masked",
        "template": "",
        "layer": 0,
    }  # of sets without these facts
    assert after.facts == FACTS | {"text": FACTS["text"] | earlier} and after.autoencoder_path == "/models/\u00e9"
    for name in ("null_text_TM", "null_mask_T", "mean_Z", "std_Z"):
        found, expected = getattr(after, name), getattr(before, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    again = after.to_bytes()
    assert Encoding.from_bytes(again, "here").to_bytes() == again
    backwards = {part: dict(reversed(facts.items())) for part, facts in reversed(FACTS.items())}
    assert encoding(backwards).to_bytes() == before.to_bytes()  # the order of the facts changes no byte


def test_a_pooled_vector_of_the_empty_caption_comes_back():
    made = replace(changed("text", "pooled", value=2), null_pooled_M=np.float32([0.5, -3]))
    found = Encoding.from_bytes(made.to_bytes(), "here")
    np.testing.assert_array_equal(found.null_pooled_M, np.float32([0.5, -3]))
    assert encoding().null_pooled_M is None
    for wrong in (None, np.float32([1]), np.float32([1, np.nan])):
        with pytest.raises(UserError, match=r"null_pooled is not \(2,\) finite numbers"):
            Encoding.from_bytes(replace(made, null_pooled_M=wrong).to_bytes(), "here")


def test_damaged_bytes_name_the_file():
    data = encoding().to_bytes()
    assert b'"mean"' in data
    for damaged in (b"", data[:5], data[:-3], data[:100], b"\xff" * 50, data.replace(b'"mean"', b'"meen"')):
        with pytest.raises(UserError, match=r"^set/encoding.safetensors is damaged: "):
            Encoding.from_bytes(damaged, "set/encoding.safetensors")


def test_the_difference_names_what_makes_latents_or_embeddings_of_another_kind():
    assert encoding().difference(encoding()) == []
    assert encoding().difference(changed("autoencoder", "sha256", value="dd")) == ['autoencoder.sha256: "aa" -> "dd"']
    assert changed("text", "length", value=9).difference(encoding()) == ["text.length: 9 -> 4"]
    assert encoding().difference(changed("text", "sha256", value=["bb"])) == ['text.sha256: ["bb", "cc"] -> ["bb"]']
    same = [
        changed("autoencoder", "path", value="/elsewhere"),
        changed("text", "paths", value=["/c", "/d"]),
        changed("pictures", "resolution", value=128),
        changed("computed", "jax", value="2"),
        changed("text", "pooled", value=6),  # stored beside the text, for models that read it
    ]
    assert [encoding().difference(other) for other in same] == [[]] * 5
