import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.data import dataset
from ec_dit.data.records import Record


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def write(source, out, **options):
    return dataset.write(source, out, vocab_size=64, progress=False, **options)


def test_records_come_back_as_they_were(numbers, counting):
    assert numbers.splits == ("train", "validation") and len(numbers["train"]) == 23 and len(numbers["validation"]) == 7
    for split in numbers.splits:
        stored = {record.id: record for record in numbers[split]}
        expected = {record.id: record for record in counting().records(split)}
        assert stored == expected and len(stored) == len(numbers[split])


def test_stored_order_is_mixed(numbers):
    order = [record.meta["index"] for record in numbers["train"]]
    assert order != sorted(order)
    assert numbers["train"][-1] == numbers["train"][22]
    with pytest.raises(IndexError):
        numbers["train"][23]


def test_preparing_twice_gives_the_same_bytes(tmp_path, counting, numbers):
    write(counting(), tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(numbers.path)
    assert dataset.open(tmp_path / "again").fingerprint == numbers.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_fingerprint_follows_the_content(tmp_path, counting, numbers):
    write(counting(train=22), tmp_path / "fewer")
    write(counting(width=13), tmp_path / "wider")
    write(counting(), tmp_path / "tokens", tokenizer_path=tmp_path / "fewer" / "tokenizer.model")
    prints = {dataset.open(tmp_path / name).fingerprint for name in ("fewer", "wider", "tokens")}
    assert len(prints | {numbers.fingerprint}) == 4


def test_report_counts_and_lists_what_was_skipped(tmp_path, counting):
    report = write(counting(train=9, skipped=1, validation=0), tmp_path / "set")
    assert report.kept == {"train": 9}
    assert report.skipped == [("train", "bad-0", "damaged image: number 0")]
    stored = json.loads((tmp_path / "set" / "report.json").read_text())
    assert stored["skipped"] == {
        "reasons": {"damaged image": 1},
        "examples": [["train", "bad-0", "damaged image: number 0"]],
    }
    assert stored["options"] == {"train": 9, "validation": 0, "skipped": 1, "width": 12}
    assert "sentencepiece" in stored["libraries"]
    assert dataset.open(tmp_path / "set").report == report
    assert "skipped, damaged image" in report.table()


def test_too_many_skipped_is_an_error(tmp_path, counting):
    source = counting(train=8, validation=0, skipped=2)
    with pytest.raises(UserError, match=r"2 of 10 examples .* max_skipped_share=0.1 \(bad-0: damaged image"):
        write(source, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    write(source, tmp_path / "set", max_skipped_share=0.2)


@pytest.mark.parametrize("share", [float("nan"), -1, 1.01])
def test_a_share_is_from_0_to_1(tmp_path, counting, share):
    with pytest.raises(UserError, match=r"max_skipped_share is .*; it must be from 0 to 1"):
        write(counting(), tmp_path / "set", max_skipped_share=share)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_train_on(tmp_path, counting):
    with pytest.raises(UserError, match=r"no example is left to train on .*1 x damaged image"):
        write(counting(train=0, skipped=1), tmp_path / "set")
    with pytest.raises(UserError, match=r"the source has none"):
        write(counting(train=0), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


class Listed:
    name = "listed"

    def __init__(self, *records):
        self._records = records

    def splits(self):
        return ("train",)

    def records(self, split):
        return iter(self._records)


def test_bad_records(tmp_path, counting):
    (one,) = counting(train=1).records("train")
    with pytest.raises(UserError, match=r"two records .* are called 'train-0'"):
        write(Listed(one, one), tmp_path / "set")
    blank = Record("blank", one.image, " ")
    assert write(Listed(one, blank), tmp_path / "set", max_skipped_share=1).reasons() == {"empty caption": 1}


def test_a_failing_source_leaves_nothing(tmp_path, counting):
    class Failing(type(counting())):
        def records(self, split):
            yield from list(super().records(split))[:5]
            raise OSError("disk gone")

    with pytest.raises(OSError, match=r"disk gone"):
        write(Failing(counting().options), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_taken_folders(tmp_path, counting):
    out = tmp_path / "set"
    out.mkdir()
    write(counting(), out)  # An empty folder is as good as none.
    before = hashes(out)
    with pytest.raises(UserError, match=r"already holds a data set"):
        write(counting(train=3), out)
    assert hashes(out) == before
    write(counting(train=3), out, overwrite=True)
    assert len(dataset.open(out)["train"]) == 3

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds other files"):
        write(counting(), tmp_path / "photos", overwrite=True)
    with pytest.raises(UserError, match=r"is a file"):
        write(counting(), tmp_path / "photos" / "mine.txt", overwrite=True)
    assert (tmp_path / "photos" / "mine.txt").read_text() == "precious"


def test_a_failed_replacement_keeps_the_old_set(tmp_path, counting, monkeypatch):
    out = tmp_path / "set"
    write(counting(), out)
    before, rename = hashes(out), Path.rename

    def failing(path, target):
        if path.name == "set" and Path(target) == out:
            raise OSError("disk gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match=r"disk gone"):
        write(counting(train=3), out, overwrite=True)
    assert hashes(out) == before and [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("empty_folder", [False, True])
def test_killed_between_the_renames_the_old_set_comes_back(tmp_path, counting, empty_folder):
    out, left = tmp_path / "set", tmp_path / ".set.incomplete"
    write(counting(), out)
    before = hashes(out)

    def interrupt():
        left.mkdir()
        out.rename(left / "replaced")
        (left / "set").mkdir()
        (left / "set" / "report.json").write_text("{}")
        if empty_folder:
            out.mkdir()

    interrupt()
    with pytest.raises(UserError, match=r"already holds a data set"):
        write(counting(train=3), out)
    assert hashes(out) == before and [path.name for path in tmp_path.iterdir()] == ["set"]
    interrupt()
    write(counting(train=3), out, overwrite=True)
    assert len(dataset.open(out)["train"]) == 3 and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_killed_after_the_renames_the_new_set_stays(tmp_path, counting):
    out, left = tmp_path / "set", tmp_path / ".set.incomplete"
    write(counting(train=3), out)
    before = hashes(out)
    left.mkdir()
    write(counting(), left / "replaced")
    with pytest.raises(UserError, match=r"already holds a data set"):
        write(counting(), out)
    assert hashes(out) == before and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_leftovers_are_cleared_and_a_running_preparation_is_left_alone(tmp_path, counting):
    stale = tmp_path / ".set.incomplete" / "build"
    stale.mkdir(parents=True)
    (stale / "half").write_text("written")
    with dataset._workspace(tmp_path / "other"), pytest.raises(UserError, match=r"another process is preparing"):
        write(counting(), tmp_path / "other")
    write(counting(), tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_unreadable_sets_say_why(tmp_path, counting):
    out = tmp_path / "set"
    with pytest.raises(UserError, match=r"no data set at .*prepare it with"):
        dataset.open(out)
    out.mkdir()
    with pytest.raises(UserError, match=r"not a finished data set"):
        dataset.open(out)
    write(counting(), out)
    with pytest.raises(UserError, match=r"no split 'test'; it has train, validation"):
        dataset.open(out)["test"]

    shard = next(out.glob("*train*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"damaged: .*train.* bytes long instead of"):
        dataset.open(out)
    shard.unlink()
    with pytest.raises(UserError, match=r"damaged: .*train.* is missing"):
        dataset.open(out)

    middle = np.frombuffer(whole, np.uint8).copy()
    middle[:3000] ^= 0xFF
    shard.write_bytes(middle.tobytes())
    with pytest.raises(UserError, match=r"is damaged; prepare the data set again"):
        list(dataset.open(out)["train"])
    shard.write_bytes(whole)

    (out / "report.json").write_text((out / "report.json").read_text()[:50])
    with pytest.raises(UserError, match=r"report.json is damaged"):
        dataset.open(out)
    (out / "report.json").write_text("[]")
    with pytest.raises(UserError, match=r"report.json is damaged"):
        dataset.open(out)
