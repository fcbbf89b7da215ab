"""What lost files weigh, computed by hand."""

import dataclasses
import json

import pytest

from ec_dit.core.errors import UserError
from ec_dit.data import dataset
from ec_dit.preparation.counting import Counts, UnitCount
from ec_dit.preparation.filters import Filters
from ec_dit.preparation.source import Shard, Skipped
from tests import sets
from tests.sets import Breaking, Listed, hashes, write


def good(count, start=0):
    return [sets.record("train", index) for index in range(start, start + count)]


def lost(name, examples=None, reason="damaged archive: it ends early"):
    return Skipped(name, reason, examples=examples)


def test_lost_files_weigh_what_their_neighbours_hold(tmp_path):
    """3 whole files of 10, 14 and 12, four lost: 48 of 84, though seven entries of 40 are few."""
    whole = [good(10), good(14, 100), good(12, 200)]
    shards = [whole[0], [lost("1.tar")], [lost("2.tar")], whole[1], [lost("3.tar")], whole[2], [lost("4.tar")]]
    for num_shards in (7, 3, 1):
        out = tmp_path / str(num_shards)
        with pytest.raises(
            UserError, match=r"about 48 of about 84 examples cannot .*\n  48 x damaged archive, such as 1.t"
        ):
            write(Listed(*shards), out, num_shards=num_shards, max_skipped_share=0.57)
        report = write(Listed(*shards), out, num_shards=num_shards, max_skipped_share=48 / 84)
        assert report.skipped == {"damaged archive": 4} and report.lost == {"damaged archive": 48} and report.guessed
        assert "lost with these files, damaged archive   about 48" in report.table()
        assert dataset.open(out).report == report


def test_a_file_that_breaks_off_lacks_the_rest(tmp_path):
    shards = [good(10), [*good(7, 100), lost("1.tar")], good(10, 200), [*good(12, 300), lost("3.tar")]]
    report = write(Listed(*shards), tmp_path / "set", max_skipped_share=1)
    assert report.lost == {"damaged archive": 3 + 1}  # of the last one more than the others hold is known: at least one
    only = [[*good(7), lost("0.tar")], [*good(4, 100), lost("1.tar")], [lost("2.tar")]]
    report = write(Listed(*only), tmp_path / "torn", max_skipped_share=1)
    assert report.lost == {"damaged archive": 1 + 3 + 7}  # none is whole: as many as the one that gave the most


def test_files_that_say_what_they_hold_weigh_that(tmp_path):
    shards = [good(10), [lost("b.parquet", 30, "no column: 'caption'")]]
    with pytest.raises(UserError, match=r": 30 of 40 examples cannot be used"):
        write(Listed(*shards), tmp_path / "set")
    report = write(Listed(*shards), tmp_path / "set", max_skipped_share=0.75)
    assert report.skipped == {"no column": 1} and report.lost == {"no column": 30} and not report.guessed
    assert list(dataset.open(tmp_path / "set").skipped()) == [
        {"split": "train", "id": "b.parquet", "reason": "no column: 'caption'", "asked": False, "examples": 30}
    ]


def test_a_file_is_all_of_its_parts():
    """A lost parquet file is weighed with files, not with the row groups they come in."""
    unit = UnitCount()
    for _ in range(4):
        for _ in range(5):
            unit.keep()
        unit.end_shard()
    unit.leave_out(lost("c.parquet"))
    unit.end_shard()
    shards = [
        Shard("a.parquet:0"),
        Shard("a.parquet:1"),
        Shard("b.parquet:0"),
        Shard("b.parquet:1"),
        Shard("c.parquet"),
    ]
    assert Counts.of([unit.facts()], [shards]).lost == {"damaged archive": 10}


def test_what_filters_leave_out_weighs_nothing(tmp_path):
    """Of each whole file 2 of 10 are kept, so that a lost file counts as 2."""
    asked = [[Skipped(f"{n}-{i}", "tiny: 1x1", asked=True) for i in range(8)] for n in range(2)]
    shards = [[*good(2), *asked[0]], [*good(2, 100), *asked[1]], [lost("2.tar")]]
    report = write(Listed(*shards), tmp_path / "set", max_skipped_share=1)
    assert report.lost == {"damaged archive": 2} and report.skipped == {"tiny": 16, "damaged archive": 1}


def test_it_is_the_same_gone_on_with_after_a_kill(tmp_path):
    shards = [good(10), [lost("1.tar")], [*good(3, 100), lost("2.tar")], good(8, 200)]
    write(Listed(*shards), tmp_path / "unbroken", max_skipped_share=1)
    broken = Breaking(Listed(*shards), 2, 1)
    with pytest.raises(OSError, match=r"connection lost"):
        write(broken, tmp_path / "set", max_skipped_share=1)
    assert write(broken, tmp_path / "set", max_skipped_share=1).lost == {"damaged archive": 9 + 6}
    assert broken.read == [0, 1, 2, 2, 3] and hashes(tmp_path / "set") == hashes(tmp_path / "unbroken")


def test_units_with_lost_files_are_read_again_after_a_refusal(tmp_path):
    first = Listed(good(10), [lost("1.tar")])
    with pytest.raises(UserError, match=r"about 10 of about 20"):
        write(first, tmp_path / "set")
    mended = Listed(good(10), good(9, 100))
    assert write(mended, tmp_path / "set").kept == {"train": 19} and mended.read == [1]


def test_remarks_and_what_is_not_read_are_told_and_no_faults(tmp_path):
    source = Listed([*good(9), Skipped("0.tar", "bytes after the end: 512", examples=0)])
    source.unread = lambda: {"link": 1, ".xyz": 6}
    source.published = lambda: {"test": "not read", "train": "kept as train"}
    report = write(source, tmp_path / "set", max_skipped_share=0)
    assert report.remarks == {"bytes after the end": 1} and report.skipped == {}
    lines = report.table().splitlines()
    assert "read all the same, bytes after the end          1" in lines
    assert lines[-2:] == ["published splits: test not read, train kept as train", "not read: 6 x .xyz, 1 x link"]
    found = json.loads((tmp_path / "set" / "report.json").read_text())
    assert found["unread"] == {".xyz": 6, "link": 1} and found["remarks"] == {"bytes after the end": 1}
    assert [line["examples"] for line in dataset.open(tmp_path / "set").skipped()] == [0]


def test_what_the_user_excluded_is_no_fault(tmp_path):
    """Rows whose download failed, which the user does not want, have no image."""
    failed = [Skipped(f"failed-{n}", "no image", meta={"status": "failed_to_download"}) for n in range(5)]
    wanted = [dataclasses.replace(record, meta={"status": "success"}) for record in good(5)]
    unknown = Skipped("unknown", "no image", meta={"key": "1"})  # of which the condition says nothing
    chosen = Filters(min_size=1, keep=("status==success",))
    report = write(Listed([*failed, *wanted]), tmp_path / "set", chosen=chosen, max_skipped_share=0)
    assert report.skipped == {"not status==success": 5} and report.kept == {"train": 5}
    with pytest.raises(UserError, match=r"1 of 6 examples cannot be used.*\n  1 x no image, such as unknown"):
        write(Listed([*failed, *wanted, unknown]), tmp_path / "other", chosen=chosen)
    with pytest.raises(UserError, match=r"5 of 10 examples cannot be used"):
        write(Listed([*failed, *wanted]), tmp_path / "all")


def test_captions_that_are_cut_are_counted(tmp_path):
    """BlockEncoders take five tokens, split at spaces: 'text N of SPLIT INDEX' has five."""
    source = sets.MixedSource()
    report = write(source, tmp_path / "none", encoding=sets.plan())
    captions = [caption for record in source.items for caption in record.captions]
    assert report.cut == {"captions": len(captions), "cut": 0, "length": 5} and "cut at" not in report.table()
    source.items[3] = dataclasses.replace(
        source.items[3], captions=("a b c d e f", "a b c d e", "1 2 3 4 5 6 7"), weights=()
    )
    more = write(source, tmp_path / "two", encoding=sets.plan())
    assert more.cut["cut"] == 2 and "captions cut at 5 tokens          2" in more.table()
    assert dataset.open(tmp_path / "two").report.cut == more.cut


def test_reports_of_earlier_versions_are_read(tmp_path, numbers):
    found = json.loads((numbers.path / "report.json").read_text())
    new = ("lost", "guessed", "remarks", "published", "unread", "cut", "mark", "sha256")
    for path in numbers.path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "report.json").write_text(json.dumps({key: value for key, value in found.items() if key not in new}))
    old = dataset.open(tmp_path)
    assert old.report == dataclasses.replace(numbers.report, mark="") and old.fingerprint == numbers.fingerprint
    assert old.report.table() == numbers.report.table()
