"""python -m ec_dit.prepare on sources with faults: what is counted, told and gone on with."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from ec_dit import prepare
from ec_dit.core.errors import UserError
from ec_dit.data import dataset
from ec_dit.preparation.source import ranges
from ec_dit.preparation.sources.found import folder as folder_source
from tests import encoded_sets as sets
from tests.picture_folders import captioned, pictures, put


def test_lost_tars_weigh_what_they_hold(tmp_path, capsys):
    """3 tars of 10 are good, 4 lost in four ways: 40 of 70 pictures, where 4 of 34 entries would be 12 %."""
    (tmp_path / "tars").mkdir()
    data = pictures(10)
    for number in range(7):
        members = [
            m for i in range(10) for m in sets.example(f"{number}{i}", data[i], f"number {i}", lang="\x1b[31mde")
        ]
        (tmp_path / "tars" / f"{number}.tar").write_bytes(sets.tar(members))
    for number, content in enumerate((b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\n"), start=3):
        (tmp_path / "tars" / f"{number}.tar").write_bytes(content)
    whole = (tmp_path / "tars" / "6.tar").read_bytes()
    (tmp_path / "tars" / "6.tar").write_bytes(whole[:700])  # within the first picture
    command = [
        "prepare",
        "--source=webdataset",
        f"--path={tmp_path / 'tars'}",
        "--vocab_size=60",
        f"--out={tmp_path / 'set'}",
    ]
    assert prepare.main([*command, "--max_skipped_share=0.57"]) == 2
    told = capsys.readouterr().err
    assert "about 40 of about 70 examples cannot be used, more than max_skipped_share=0.57:\n" in told
    assert "such as 3.tar: an empty file\n" in told and "such as 6.tar: it ends early\n" in told
    assert prepare.main([*command, "--max_skipped_share=0.58"]) == 0
    report = dataset.open(tmp_path / "set").report
    assert report.lost == {"not a tar": 30, "damaged archive": 9} and report.skipped["no caption"] == 1
    assert prepare.main([*command[:-1], f"--out={tmp_path / 'other'}", "--keep=lang==en"]) == 2
    printed = capsys.readouterr()
    assert "such as 0/00: \\x1b[31mde\n" in printed.err and "\x1b[31m" not in printed.out + printed.err


def test_tars_of_unknown_parts_count_against_the_limit(tmp_path, capsys):
    """One of four tars has pictures, the others 30 keys of which nothing is known; beside a README these would be no fault."""
    data = pictures(10)
    members = [m for i in range(10) for m in sets.example(f"{i}", data[i], f"number {i}")]
    (tmp_path / "0.tar").write_bytes(sets.tar([("README", b"x"), ("README.md", b"x"), *members]))
    command = ["prepare", "--source=webdataset", f"--path={tmp_path}", "--vocab_size=60", "--validation_share=0"]
    assert prepare.main([*command, f"--out={tmp_path / 'set'}", "--max_skipped_share=0"]) == 0
    for number in (1, 2, 3):
        unknown = [(f"{number}{i}.{end}", b"x") for i in range(10) for end in ("npy", "cls")]
        (tmp_path / f"{number}.tar").write_bytes(sets.tar(unknown))
    assert prepare.main([*command, f"--out={tmp_path / 'other'}"]) == 2
    told = capsys.readouterr().err
    assert ": 30 of 40 examples cannot be used" in told
    assert "  30 x not recognised, such as 1/10: the example has .npy, .cls\n" in told


def test_tables_that_differ_and_rows_that_failed(tmp_path, capsys):
    (tmp_path / "tables").mkdir()
    data = pictures(30)
    for name, numbers in (("caption", range(10)), ("text", range(10, 30))):
        columns = {"image": [data[i] for i in numbers], name: [f"number {i}" for i in numbers]}
        parquet.write_table(pa.table(columns), tmp_path / "tables" / f"{name}.parquet")
    command = ["prepare", "--source=parquet", "--vocab_size=40", "--validation_share=0"]
    assert prepare.main([*command, f"--path={tmp_path / 'tables'}", f"--out={tmp_path / 'set'}"]) == 2
    told = capsys.readouterr().err
    assert ": 20 of 30 examples cannot be used" in told and "'caption'; it has image, text" in told
    failed = {"image": [*data[:9], *[None] * 9], "caption": ["x y"] * 18, "status": ["success"] * 9 + ["failed"] * 9}
    parquet.write_table(pa.table(failed), tmp_path / "failed.parquet")
    command += [f"--path={tmp_path / 'failed.parquet'}", f"--out={tmp_path / 'failed'}", "--max_skipped_share=0"]
    assert prepare.main([*command, "--keep=status==success"]) == 0
    assert dataset.open(tmp_path / "failed").report.skipped == {"not status==success": 9}


def test_what_is_not_read_is_told_without_control_characters(tmp_path, capsys):
    put(tmp_path / "images", "123")
    for name in ("a.xyz", "b.xyz", "c.x\x1b[31mz"):
        (tmp_path / "images" / name).write_text("x")
    command = ["prepare", "--source=folder", f"--path={tmp_path / 'images'}", "--vocab_size=30", "--validation_share=0"]
    assert prepare.main([*command, f"--out={tmp_path / 'set'}"]) == 0
    printed = capsys.readouterr()
    (line,) = [line for line in printed.out.splitlines() if line.startswith("not read: ")]
    assert "2 x .xyz" in line and "\x1b" not in printed.out + printed.err
    assert dataset.open(tmp_path / "set").report.unread[".xyz"] == 2


def test_a_bad_picture_may_be_removed_after_a_refusal(tmp_path, capsys):
    put(tmp_path / "images", "1234")
    put(tmp_path / "images", "5", b"\x89PNG\r\n\x1a\n")
    command = ["prepare", "--source=folder", f"--path={tmp_path / 'images'}", f"--out={tmp_path / 'set'}"]
    command += ["--vocab_size=30", "--validation_share=0"]
    assert prepare.main(command) == 2
    assert "image, such as 5.png" in capsys.readouterr().err
    (tmp_path / "images" / "5.png").unlink()
    assert prepare.main(command) == 0
    assert dataset.open(tmp_path / "set").report.kept == {"train": 4}


def test_a_source_that_changed_meanwhile_is_named_in_words(tmp_path, capsys, monkeypatch):
    """Pictures in stretches of two, the first and the last of which have nothing wrong; the middle one is refused."""
    monkeypatch.setattr(folder_source, "ranges", lambda size, entries: ranges(size, 2, entries=entries))
    put(tmp_path / "images", "12356")
    put(tmp_path / "images", "4", b"\x89PNG\r\n\x1a\n")
    command = ["prepare", "--source=folder", f"--path={tmp_path / 'images'}", f"--out={tmp_path / 'set'}"]
    command += ["--vocab_size=30", "--validation_share=0", "--num_shards=3"]
    assert prepare.main(command) == 2
    bad, good = tmp_path / "images" / "4.png", tmp_path / "images" / "1.png"
    data = bad.read_bytes()
    bad.unlink()
    put(tmp_path / "images", "78")
    capsys.readouterr()
    assert prepare.main([*command[:-1], "--num_shards=4"]) == 2
    told = capsys.readouterr().err
    assert "made of a source that has changed since:\n  no longer there: 4.png\n  new: 7.png, 8.png\n" in told
    assert "Put it back as it was to go on (what cannot be used may stay: --max_skipped_share" in told
    for name in "78":
        (tmp_path / "images" / f"{name}.png").unlink()
    bad.write_bytes(data)
    assert prepare.main([*command, "--max_skipped_share=0.2"]) == 0
    assert dataset.open(tmp_path / "set").report.kept == {"train": 5} and good.exists()


def test_a_folder_of_damaged_images(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (images / f"{number}.txt").write_text("a picture")
    assert prepare.main(["prepare", "--source=folder", f"--path={images}", f"--out={tmp_path / 'set'}"]) == 2
    errors = capsys.readouterr().err
    assert (
        "no example is left to train on:\n  4 x " in errors
        and "image, such as 0.png" in errors
        and "Traceback" not in errors
    )
    assert f"all of them: {tmp_path}/.set.incomplete/skipped.jsonl" in errors
    for number in range(4):
        Image.new("RGB", (40, 40), (60 * number, 0, 0)).save(images / f"{number}.png")
    arguments = [f"--path={images}", f"--out={tmp_path / 'set'}", "--vocab_size=30"]
    assert prepare.main(["prepare", "--source=folder", *arguments]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "set"]


def test_names_that_are_no_text_reach_the_report(tmp_path):
    odd = os.fsencode(tmp_path) + b"/b\xff"
    captioned(odd)
    Path(os.fsdecode(odd + b"/x.\xff\xfe")).write_bytes(b"")
    arguments = [f"--path={os.fsdecode(odd)}", "--vocab_size=60", f"--out={tmp_path / 'set'}"]
    assert prepare.main(["prepare", "--source=folder", *arguments]) == 0
    report = dataset.open(tmp_path / "set").report
    assert report.unread == {r".\xff\xfe": 1} and os.fsencode(report.options["path"]) == odd
    (tmp_path / "set" / "report.json").read_bytes().decode("ascii")


def test_an_out_whose_name_is_no_text_is_refused_at_once(tmp_path, capsys):
    captioned(os.fsencode(tmp_path / "images"))
    out = os.fsdecode(os.fsencode(tmp_path) + b"/c\xff/set")
    assert prepare.main(["prepare", "--source=folder", f"--path={tmp_path / 'images'}", f"--out={out}"]) == 2
    told = capsys.readouterr().err
    assert rf"{tmp_path}/c\xff/set is no UTF-8 text" in told and "name another folder" in told
    assert not Path(out).exists()
    with pytest.raises(UserError, match=r"is no UTF-8 text"):
        dataset.open(out)
