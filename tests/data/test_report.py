"""The report of a data set: what people read of it, and what of another version it takes."""

import json

import pytest

from ec_dit.core import paths
from ec_dit.core.errors import DamageError, UserError
from ec_dit.data.report import Report, read_report

REPORT = Report(
    source="folder",
    options={"path": "x"},
    filters={"min_size": 16},
    kept={"train": 1500, "validation": 500},
    shapes={"train": {"8x12": 1500}},
    skipped={"no caption": 3, "damaged archive": 1},
    vocab_size=4096,
    libraries={"pillow": "1"},
    files={"a.array_record-00000-of-00001": (3_000_000, ("aa", "bb")), "skipped.jsonl": (1_000_000, ("cc",))},
    lost={"damaged archive": 20},
    guessed=True,
    remarks={"end is missing": 2},
    published={"test": "not read"},
    unread={".xyz": 6, "link": 1},
    cut={"length": 77, "captions": 2000, "cut": 40},
)


def test_the_table_has_every_number():
    """4 MB over 2,000 pictures are 2 GB for a million."""
    rows = [" ".join(line.split()) for line in REPORT.table().splitlines()]
    assert rows == [
        "kept, train 1,500",
        "kept, validation 500",
        "kept, train, 8x12 1,500",
        "skipped, no caption 3",
        "skipped, damaged archive 1",
        "lost with these files, damaged archive about 20",
        "read all the same, end is missing 2",
        "captions cut at 77 tokens 40",
        "tokenizer pieces 4,096",
        "GB per million images 2.00",
        "published splits: test not read",
        "not read: 6 x .xyz, 1 x link",
    ]


def test_what_was_written_is_read(tmp_path):
    (tmp_path / "report.json").write_text(REPORT.to_json())
    assert read_report(paths.at(tmp_path)) == REPORT


def test_reports_of_earlier_versions_have_fewer_fields_and_no_digest(tmp_path):
    found = json.loads(REPORT.to_json())
    for name in ("sha256", "lost", "guessed", "remarks", "published", "unread", "cut", "mark"):
        del found[name]
    (tmp_path / "report.json").write_text(json.dumps(found))
    read = read_report(paths.at(tmp_path))
    assert (read.kept, read.files, read.lost, read.cut) == (REPORT.kept, REPORT.files, {}, {})


def test_an_edited_report_and_one_of_another_layout_are_told(tmp_path):
    found = json.loads(REPORT.to_json())
    (tmp_path / "report.json").write_text(json.dumps(found | {"kept": {"train": 1}}))
    with pytest.raises(DamageError, match=r"report.json is damaged: .*sha256.* Remove .*prepare the data set again"):
        read_report(paths.at(tmp_path))
    (tmp_path / "report.json").write_text(json.dumps(found | {"format": 1}))
    with pytest.raises(UserError, match="has layout 1, this version reads layout 2; prepare it again with --overwrite"):
        read_report(paths.at(tmp_path))
