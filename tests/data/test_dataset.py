import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ec_dit.core.errors import TryAgain, UserError, explain
from ec_dit.data import dataset
from ec_dit.data.records import Record
from ec_dit.preparation.source import Skipped, everything
from tests import sets
from tests.sets import Listed, write


def test_records_come_back_as_they_were(numbers, counting):
    assert numbers.splits == ("train", "validation") and len(numbers["train"]) == 23 and len(numbers["validation"]) == 7
    for split in numbers.splits:
        assert list(numbers[split]) == [record for record in everything(counting()) if record.split == split]
    assert numbers.encoding is None and numbers.shapes() == []


def test_records_by_index(numbers):
    train = numbers["train"]
    assert [train[i].id for i in (22, 0, 10)] == ["train-22", "train-0", "train-10"]
    assert train[-1] == train[22] and train[-23] == train[0]
    for index in (23, -24):
        with pytest.raises(IndexError, match=r"of 23"):
            train[index]


def test_several_captions_and_their_weights_come_back(tmp_path):
    image = sets.record("train", 0).image
    records = [
        Record("a", image, ("one", "two \u00e9", "three\nlines"), (0.5, 0.0, 2.25), flip=True),
        Record("b", image, ("one", "one"), (), meta={"score": 1.5, "words": ["x", None], "deep": {"\u00e9": True}}),
        Record("c", image, ("alone",), (3.0,), "validation"),
    ]
    write(Listed(records), tmp_path / "set")
    found = dataset.open(tmp_path / "set")
    assert [*found["train"], *found["validation"]] == records
    assert found["train"][0].caption == "one"


def test_encoded_records_come_back_by_shape(mixed):
    assert mixed.splits == ("train", "validation") and mixed.tokenizer_path is None
    assert mixed.shapes() == [(2, 2), (2, 3), (3, 2)]
    for split in mixed.splits:
        expected = [
            record
            for shape in [part.shape for part in mixed[split].parts]
            for record in sets.MixedSource().items
            if record.split == split and record.meta["shape"] == list(shape)
        ]
        found = list(mixed[split])
        assert [record.id for record in found] == [record.id for record in expected]  # in the source's order
        assert [(part.shape, part.start, part.size) for part in mixed[split].parts] == {
            "train": [((2, 2), 0, 13), ((2, 3), 13, 7), ((3, 2), 20, 3)],
            "validation": [((2, 2), 0, 5), ((2, 3), 5, 2)],
        }[split]
        for record, wanted in zip(found, expected, strict=True):
            assert (record.captions, record.weights, record.meta) == (wanted.captions, wanted.weights, wanted.meta)
            assert record.latents[0][0].shape == (*wanted.meta["shape"], 3)
            assert len(record.latents) == 1 + wanted.flip
            np.testing.assert_array_equal(record.latents, sets.latents_of(wanted))


def test_a_fingerprint_follows_the_content(tmp_path, counting, numbers):
    write(counting(), tmp_path / "same")
    write(counting(train=22), tmp_path / "fewer")
    write(counting(width=13), tmp_path / "wider")
    write(counting(), tmp_path / "tokens", tokenizer_path=tmp_path / "fewer" / "tokenizer.model")
    prints = {dataset.open(tmp_path / name).fingerprint for name in ("fewer", "wider", "tokens")}
    assert len(prints | {numbers.fingerprint}) == 4
    assert dataset.open(tmp_path / "same").fingerprint == numbers.fingerprint
    write(
        Listed([*everything(counting(train=3, validation=0)), Skipped("x", "a")]), tmp_path / "x", max_skipped_share=1
    )
    write(
        Listed([*everything(counting(train=3, validation=0)), Skipped("y", "b")]), tmp_path / "y", max_skipped_share=1
    )
    left, right = (dataset.open(tmp_path / name) for name in "xy")
    assert left.fingerprint == right.fingerprint  # What is not there changes no batch.
    assert [next(found.skipped())["id"] for found in (left, right)] == ["x", "y"]


def test_what_is_there(tmp_path, numbers):
    assert not dataset.is_there(tmp_path / "set") and dataset.is_there(numbers.path)
    (tmp_path / "set" / ".incomplete").mkdir(parents=True)
    assert not dataset.is_there(tmp_path / "set")
    with pytest.raises(UserError, match=r"set is not a finished data set"):
        dataset.open(tmp_path / "set")


@pytest.fixture
def own(tmp_path, numbers):
    """A copy of `numbers`, to be damaged."""
    shutil.copytree(numbers.path, tmp_path / "set")
    return tmp_path / "set"


def test_unreadable_sets_say_why(tmp_path, own):
    with pytest.raises(UserError, match=r"no data set at .*Prepare it with: .* --out=.*/none"):
        dataset.open(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"not a finished data set"):
        dataset.open(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no split 'test'; it has train, validation"):
        dataset.open(own)["test"]
    report = (own / "report.json").read_text()
    for damaged in (report[:50], "[]", "{}", json.dumps(json.loads(report) | {"files": 3})):
        (own / "report.json").write_text(damaged)
        with pytest.raises(UserError, match=r"report.json is damaged: .* Remove .*set and prepare the data set again"):
            dataset.open(own)


def test_a_set_of_an_older_layout_is_refused(own):
    old = {"source": "shapes", "kept": {"train": 3}, "records_sha256": "0", "files": {"features.json": 3}, "format": 1}
    (own / "report.json").write_text(json.dumps(old))
    with pytest.raises(
        UserError, match=r"set has layout 1, this version reads layout 2; prepare it again with --overwrite"
    ):
        dataset.open(own)


NAMES = (
    "counting-train.array_record-00001-of-00003",
    "features.json",
    "dataset_info.json",
    "tokenizer.model",
    "skipped.jsonl",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_missing_or_of_another_size_is_named(tmp_path, counting, own, name):
    if name == "skipped.jsonl":  # It is empty where all are usable.
        shutil.rmtree(own)
        write(counting(skipped=1), own)
    whole = (own / name).read_bytes()
    (own / name).write_bytes(whole[:-1])
    sizes = f"{len(whole) - 1:,} bytes long instead of {len(whole):,}"
    with pytest.raises(UserError, match=rf"set is damaged: {name} is {sizes}. .* --overwrite"):
        dataset.open(own)
    (own / name).unlink()
    with pytest.raises(UserError, match=rf"damaged: {name} is missing"):
        dataset.open(own)
    (own / name).write_bytes(whole)
    assert dataset.open(own)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_edited_content_of_the_same_size_is_found(own, name):
    whole = (own / name).read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        edited = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        (own / name).write_bytes(edited)
        with pytest.raises(
            UserError, match=rf"set is damaged: the content of {name} is not what was prepared. .*--over"
        ):
            dataset.open(own)


def test_of_a_large_set_what_describes_the_records_is_looked_at_first(own, monkeypatch):
    records = {path.name for path in own.glob("*array_record*")}
    others = [path for path in own.iterdir() if path.name not in records | {"report.json"}]
    monkeypatch.setattr(dataset, "_VERIFIED_BYTES", sum(path.stat().st_size for path in others))
    assert min((own / name).stat().st_size for name in records) > 0
    for path in others:
        whole = path.read_bytes()
        if whole:
            path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
            with pytest.raises(UserError, match=rf"the content of {re.escape(path.name)} is not"):
                dataset.open(own)
        path.write_bytes(whole)
    assert dataset.open(own)


def test_records_damaged_since_are_named(own):
    opened = dataset.open(own)
    shard = own / NAMES[0]
    middle = np.frombuffer(shard.read_bytes(), np.uint8).copy()
    middle[:3000] ^= 0xFF
    shard.write_bytes(middle.tobytes())
    with pytest.raises(
        UserError, match=r"set is damaged: record 1\d of split train cannot be read .*[.] Prepare the data set again"
    ):
        list(opened["train"])


def test_a_disk_that_fails_is_no_damage_of_the_set(own):
    """No advice to prepare it again; with the disk back, the same reader goes on."""
    records = dataset.open(own)["train"]
    first = records[0]
    name = next(own.glob("counting-train*00000-of-*"))
    (number,) = [int(link.name) for link in Path("/proc/self/fd").iterdir() if _leads_to(link, name)]
    kept, memory = os.dup(number), os.open("/proc/self/mem", os.O_RDONLY)  # whose first bytes nobody can read
    try:
        os.dup2(memory, number)
        with pytest.raises(OSError, match=r"Input/output error.*00000-of-00003") as caught:
            records[5]
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(memory)
    assert type(explain(caught.value)) is TryAgain
    assert records[0] == first and records[5].meta["index"] == 5


def _leads_to(link, path):
    with contextlib.suppress(OSError):  # the one of the listing is closed
        return link.samefile(path)
    return False
