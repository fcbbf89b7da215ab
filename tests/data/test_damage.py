"""Every file of a data set, damaged in every way: one message that names it and the way out, or rightly no harm."""

import json
import shutil
import struct

import numpy as np
import pytest

from ec_dit.core import json_file
from ec_dit.core.errors import UserError
from ec_dit.data import dataset
from ec_dit.data.encoding import Encoding
from ec_dit.preparation.source import Skipped
from tests import sets
from tests.sets import CountingOptions, CountingSource, MixedSource, write


def wrong_section(name, data):
    """The content with one part of another type; bytes that are no JSON get the letters of some."""
    if name.endswith(".jsonl"):
        return b"[]\n" * (len(data) // 3)
    if not name.endswith(".json"):
        return b'{"a": [1, "b"]}'.ljust(len(data), b" ")[: len(data)]
    found = json.loads(data)
    key = "splits" if "splits" in found else "files" if "files" in found else next(iter(found))
    return json.dumps(found | {key: 7}).encode()


def flipped(name, data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


WAYS = {
    "deleted": lambda name, data: None,
    "cut short": lambda name, data: data[: len(data) // 2],
    "emptied": lambda name, data: b"",
    "zeroed": lambda name, data: bytes(len(data)),
    "one bit": flipped,
    "foreign JSON": lambda name, data: b'{"tests": 3, "passed": true}\n',
    "nested": lambda name, data: b"[" * 200_000,
    "wrong section": wrong_section,
    "foreign binary": lambda name, data: np.random.default_rng(0).bytes(len(data)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both kinds of data set, with something left out."""
    base = tmp_path_factory.mktemp("damage")
    source = CountingSource(CountingOptions(train=5, validation=3, skipped=1))
    write(source, base / "pictures", max_skipped_share=0.5)
    mixed = MixedSource()
    mixed.items.append(Skipped("bad", "damaged image"))
    write(mixed, base / "encoded", encoding=sets.plan())
    return base


def files(kind):
    of_kind = {
        "pictures": ["tokenizer.model", "counting-train.array_record-00000-of-00001"],
        "encoded": ["encoding.safetensors", "mixed-train_2x2.array_record-00000-of-00004"],
    }
    return [
        (kind, name) for name in ["report.json", "dataset_info.json", "features.json", "skipped.jsonl", *of_kind[kind]]
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "name"), files("pictures") + files("encoded"))
def test_every_damage_is_named_with_the_way_out(tmp_path, made, kind, name, way):
    own = tmp_path / "set"
    shutil.copytree(made / kind, own)
    before = (own / name).read_bytes()
    after = WAYS[way](name, before)
    (own / name).unlink()
    if after is not None:
        (own / name).write_bytes(after)
    with pytest.raises(UserError) as caught:
        dataset.open(own)
    message = str(caught.value)
    assert name in message and ("--overwrite" in message or "Prepare it with" in message or "Remove" in message)
    assert message.count("\n") == 0 and message.isprintable()


def test_every_bit_of_a_report_counts(tmp_path, made):
    own = tmp_path / "set"
    shutil.copytree(made / "pictures", own)
    whole = (own / "report.json").read_bytes()
    for bit in np.random.default_rng(0).permutation(8 * len(whole))[:200]:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (own / "report.json").write_bytes(data)
        with pytest.raises(UserError, match=r"report.json is damaged|has layout"):
            dataset.open(own)


def unchecked(monkeypatch):
    """As in a bucket, where contents are not compared before they are read."""
    monkeypatch.setattr(dataset, "_check_content", lambda *_: None)


@pytest.mark.parametrize("way", ["zeroed", "wrong section", "foreign binary"])
@pytest.mark.parametrize(
    ("kind", "name"), [*files("pictures")[1:], *files("encoded")[1:]], ids=lambda value: value.partition("-")[0]
)
def test_what_is_read_without_being_compared_first(tmp_path, made, monkeypatch, kind, name, way):
    own = tmp_path / "set"
    shutil.copytree(made / kind, own)
    whole = (own / name).read_bytes()
    (own / name).write_bytes(WAYS[way](name, whole)[: len(whole)].ljust(len(whole), b" "))
    unchecked(monkeypatch)

    def read():
        found = dataset.open(own)
        assert [list(found[split]) for split in found.splits] and list(found.skipped()) is not None
        return found

    if name == "features.json":  # TFDS reads that; the program does not
        assert read().report.kept
    elif name == "tokenizer.model":  # read by whoever tokenises: see test_tokenizer
        assert read().tokenizer_path.name == name
    else:
        with pytest.raises(UserError, match=r"is damaged: .*[Pp]repare") as caught:
            read()
        assert ("set is damaged: record" if "array_record" in name else name) in str(caught.value)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.pop("text"), "there is no 'text'"),
        (lambda facts: facts["text"].pop("width"), "there is no 'width'"),
        (lambda facts: facts["text"].update(width="6"), "text.width is '6'"),
        (lambda facts: facts["text"].update(width=7), r"null_text is not \(5, 7\) finite numbers"),
        (lambda facts: facts.update(autoencoder=[]), "list indices must be integers"),
        (lambda facts: facts["autoencoder"].update(channels=4), r"mean is not \(4,\) finite numbers"),
    ],
)
def test_facts_of_another_kind(mixed, change, message):
    facts = json.loads(json.dumps(mixed.encoding.facts))
    change(facts)
    changed = Encoding(facts, *(getattr(mixed.encoding, n) for n in ("null_text_TM", "null_mask_T", "mean_Z", "std_Z")))
    with pytest.raises(UserError, match=rf"^x.safetensors is damaged: {message}.* Mend it."):
        Encoding.from_bytes(changed.to_bytes(), "x.safetensors", "Mend it.")


def test_facts_nested_without_end():
    header = json.dumps({"__metadata__": {"facts": "[" * 200_000}}).encode()
    with pytest.raises(UserError, match=r"x.safetensors is damaged: "):
        Encoding.from_bytes(struct.pack("<Q", len(header)) + header, "x.safetensors")


def test_a_sealed_report_is_read_by_what_reads_any_json(made):
    """The digest is json_file's own, so that others can compare it."""
    found = json_file.read(made / "pictures" / "report.json")
    assert json_file.unseal(found, "x") == {key: value for key, value in found.items() if key != json_file.SEAL}
