import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from ec_dit import prepare
from ec_dit.core.errors import UserError
from ec_dit.data import dataset
from ec_dit.data.images import decode
from ec_dit.preparation.source import ranges
from ec_dit.preparation.sources.found import folder as folder_source
from tests import encoded_sets as sets
from tests.sets import hashes

ENCODERS = ["--vae=/nonexistent/vae", "--text_encoder=/nonexistent/t5"]
SHAPES = ["--source=shapes", "--num_train=30", "--num_validation=5", "--vocab_size=100"]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "ec_dit.prepare", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_separate_runs_give_the_same_bytes(tmp_path):
    found = []
    for seed in ("1", "2"):
        done = run(*SHAPES, f"--out={tmp_path / seed}", PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        found.append(hashes(tmp_path / seed))
    assert found[0] == found[1]
    assert {"tokenizer.model", "report.json", "skipped.jsonl", "dataset_info.json"} <= set(found[0])
    assert "kept, train" in done.stdout and " 30\n" in done.stdout
    assert len(dataset.open(tmp_path / "1")["train"]) == 30


def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path, capsys):
    arguments = ["--source=shapes", "--num_train=2000", "--num_validation=5", "--option=novel=0", "--vocab_size=100"]
    assert prepare.main(["prepare", *arguments, f"--out={tmp_path / 'unbroken'}"]) == 0
    out, left = tmp_path / "set", tmp_path / ".set.incomplete"
    command = [sys.executable, "-m", "ec_dit.prepare", *arguments, f"--out={out}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not (left / "units" / "000000.json").exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.kill()
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.incomplete", ".set.lock", "unbroken"]
    with pytest.raises(UserError, match=r"no data set at"):
        dataset.open(out)
    finished = (left / "set" / "shapes-train.array_record-00000-of-00003").stat()
    capsys.readouterr()
    assert prepare.main(["prepare", *arguments, f"--out={out}"]) == 0
    assert "going on after 1 of 3" in capsys.readouterr().err
    assert (out / "shapes-train.array_record-00000-of-00003").stat().st_mtime_ns == finished.st_mtime_ns
    assert hashes(out) == hashes(tmp_path / "unbroken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "unbroken"]


def test_filters_and_shards(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        Image.new("RGB", (40 + 30 * number, 40), (40 * number, 0, 0)).save(images / f"{number}.png")
    lines = [{"file": f"{n}.png", "caption": "a red box" if n else "box", "score": n} for n in range(6)]
    (images / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    filters = ["--keep=score<5", "--keep=score!=3", "--max_aspect=3", "--min_caption=5", "--image_size=20"]
    arguments = ["--source=folder", f"--path={images}", f"--out={tmp_path / 'set'}", "--validation_share=0", *filters]
    assert prepare.main(["prepare", *arguments, "--vocab_size=50", "--num_shards=1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"kept, train +2\n", printed) and f"{tmp_path / 'set' / 'skipped.jsonl'} lists every" in printed
    opened = dataset.open(tmp_path / "set")
    assert [(record.id, decode(record.image).size) for record in opened["train"]] == [
        ("1.png", (35, 20)),
        ("2.png", (50, 20)),
    ]
    assert {line["id"]: (line["reason"], line["asked"]) for line in opened.skipped()} == {
        "0.png": ("caption too short: 3 characters", True),
        "3.png": ("not score!=3: 3", True),
        "4.png": ("long: 160x40, longer side over 3 times the shorter", True),
        "5.png": ("not score<5: 5", True),
    }
    assert opened.report.filters["keep"] == ["score<5", "score!=3"] and opened.report.filters["image_size"] == 20


@pytest.mark.parametrize("source", ["folder", "webdataset", "parquet"])
def test_columns_and_captions_within_others(tmp_path, source, capsys):
    """Pictures of aesthetic 3 to 7, of which one has no such score; the words of the captions say which."""
    data = pictures(6)
    rows = [
        {"captions": {"short": f"score {n}"}, "scores": {"aesthetic": n} if n < 8 else {"other": 1}}
        for n in range(3, 9)
    ]
    (tmp_path / "source").mkdir()
    if source == "folder":
        for n, picture in enumerate(data):
            (tmp_path / "source" / f"{n}.png").write_bytes(picture)
        lines = [{"file_name": f"{n}.png"} | row for n, row in enumerate(rows)]
        (tmp_path / "source/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    elif source == "webdataset":
        members = [(f"{n}.png", data[n]) for n in range(6)] + [
            (f"{n}.json", json.dumps(rows[n]).encode()) for n in range(6)
        ]
        (tmp_path / "source/0.tar").write_bytes(sets.tar(sorted(members)))
    else:
        scores = [row["scores"].get("aesthetic") for row in rows]
        columns = {
            "image": data,
            "captions": [row["captions"] for row in rows],
            "scores": [{"aesthetic": n} for n in scores],
        }
        parquet.write_table(pa.table(columns), tmp_path / "source/0.parquet")
    command = [
        "prepare",
        f"--source={source}",
        f"--path={tmp_path / 'source'}",
        f"--out={tmp_path / 'set'}",
        "--vocab_size=30",
    ]
    command += ["--validation_share=0", "--captions=captions.short", "--max_skipped_share=0"]
    assert prepare.main([*command, "--keep=scores.aesthetic>=5"]) == 0
    opened = dataset.open(tmp_path / "set")
    assert [record.captions for record in opened["train"]] == [("score 5",), ("score 6",), ("score 7",)]
    assert [record.meta["scores.aesthetic"] for record in opened["train"]] == [5, 6, 7]
    assert opened.report.skipped == {"not scores.aesthetic>=5": 2, "no column scores.aesthetic": 1}
    assert all(line["asked"] for line in opened.skipped())


def test_any_option_of_a_source_can_be_given(tmp_path):
    out = tmp_path / "set"
    more = ["--option=cells=3", "--option=novel=4", "--option=object_size=[0.5, 0.75]", "--image_size=48"]
    assert prepare.main(["prepare", *SHAPES, f"--out={out}", *more]) == 0
    report = dataset.open(out).report
    assert report.kept == {"train": 30, "validation": 5, "novel": 4}
    wanted = {"cells": 3, "novel": 4, "object_size": [0.5, 0.75], "image_size": 48}
    assert {name: report.options[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source=shaeps", "--out=OUT"], "did you mean shapes?"),
        (["--sorce=shapes"], "Unknown command line flag 'sorce'. Did you mean: process_id, source"),
        (["--source=shapes"], "--out=... is needed"),
        (["--source=shapes", "OUT"], "unexpected argument"),
        (["--source=folder", "--out=OUT", "--path=/nonexistent/images"], "does not exist"),
        (["--source=folder", "--out=OUT", "--path=.", "--placement=cell"], "folder has no option 'placement'"),
        (["--source=shapes", "--out=OUT", "--num_train=many"], "--num_train=many"),
        (["--source=shapes", "--out=OUT", f"--num_train={10**23}"], f"--num_train={10**23}"),
        (["--source=shapes", "--out=OUT", f"--image_size={2**63}"], f"--image_size={2**63}"),
        (["--source=shapes", "--out=OUT", "--image_size=0"], "raise image_size"),
        (["--source=folder", "--out=OUT", "--path=IMAGES", "--image_size=0"], "image_size is 0; it must be at least 1"),
        (["--source=shapes", "--out=OUT", "--max_aspect=inf"], "--max_aspect=inf: it must be a finite number"),
        (["--source=shapes", "--out=OUT", "--option=cells=-1"], "cells"),
        (["--source=shapes", "--out=OUT", "--option=cels=3"], "did you mean cells?"),
        (["--source=shapes", "--out=OUT", "--option=cells=many"], "cells=many of source shapes is no int"),
        (["--source=shapes", "--out=OUT", "--option=train=3", "--num_train=3"], "option 'train' is given twice"),
        (
            ["--source=shapes", "--out=OUT", "--max_skipped_share=nan"],
            "--max_skipped_share=nan: it must be a finite number",
        ),
        (
            ["--source=folder", "--out=OUT", "--path=.", "--validation_share=nan"],
            "--validation_share=nan: it must be a finite",
        ),
        (["--source=shapes", "--out=OUT", "--placement=here"], "placement is 'here'"),
        (["--source=shapes", "--out=OUT", "--num_train=5", "--tokenizer=/nonexistent"], "cannot read the tokenizer"),
        (
            ["--source=shapes", "--out=OUT", "--num_train=5", "--num_shards=4"],
            "num_shards is 4; source shapes comes in 3",
        ),
        (["--source=shapes", "--out=OUT", "--num_shards=0"], "num_shards is 0; "),
        (["--source=shapes", "--out=OUT", "--keep=aesthetic"], "keep has 'aesthetic', which is no condition"),
        (["--source=shapes", "--out=OUT", "--max_aspect=0.5"], "max_aspect is 0.5; it must be at least 1"),
        (["--source=shapes", "--out=OUT", "--vae=/vae"], "--vae and --text_encoder go together"),
        (["--source=shapes", "--out=OUT", "--flip"], "--flip is of encoded data sets: give --vae and --text_encoder"),
        (["--source=shapes", "--out=OUT", "--batch_size=8"], "--batch_size is of encoded data sets"),
        (
            ["--source=folder", "--path=.", "--out=OUT", *ENCODERS, "--image_size=64"],
            "--image_size is of pictures stored",
        ),
        (
            ["--source=shapes", "--out=OUT", *ENCODERS, "--bucket_step=32"],
            "--bucket_step and --bucket_aspect need --buckets",
        ),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, arguments, message):
    put(tmp_path / "images", "1")
    places = {"OUT": tmp_path / "set", "IMAGES": tmp_path / "images"}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    code = prepare.main(["prepare", *arguments])
    errors = capsys.readouterr().err
    assert code == 2 and message in errors and errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def pictures(count):
    return [sets.encoded(Image.new("RGB", (40, 40), (9 * number, 0, 0)), (40, 40)) for number in range(count)]


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


def put(folder, names, data=None):
    folder.mkdir(exist_ok=True)
    for name in names:
        if data is None:
            Image.new("RGB", (40, 40), (7 * int(name), 0, 0)).save(folder / f"{name}.png")
        else:
            (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.txt").write_text(f"number {name}")


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


def captioned(folder, count=12):
    """Pictures with captions, in a folder whose name may be bytes."""
    Path(os.fsdecode(folder)).mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (20, 20 + index), (10 * index, 0, 0)).save(Path(os.fsdecode(folder)) / f"{index}.png")
        (Path(os.fsdecode(folder)) / f"{index}.txt").write_text(f"picture {index}")


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


def test_a_share_that_would_not_be_held_out_is_refused(tmp_path, capsys):
    for split in ("train", "validation"):
        captioned(os.fsencode(tmp_path / "images" / split))
    out = tmp_path / "set"
    command = ["prepare", "--source=folder", f"--path={tmp_path / 'images'}", f"--out={out}", "--vocab_size=60"]
    for share in ("--validation_share=0.5", "--option=validation_share=0.5"):
        assert prepare.main([*command, share]) == 2
        told = capsys.readouterr().err
        assert "validation_share=0.5 would hold nothing out: validation has a split of its own" in told
        assert "--option=validation=null" in told and not out.exists()
    assert prepare.main([*command, "--validation_share=0.5", "--option=validation=null"]) == 0
    report = dataset.open(out).report
    assert sum(report.kept.values()) == 12 and report.kept["validation"] > 0
