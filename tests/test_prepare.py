"""python -m ec_dit.prepare: the same bytes every time, and flags that reach the source."""

import json
import os
import re
import subprocess
import sys
import time

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from ec_dit import prepare
from ec_dit.core.errors import UserError
from ec_dit.data import dataset
from ec_dit.data.images import decode
from tests import encoded_sets as sets
from tests.picture_folders import captioned, pictures, put
from tests.sets import hashes

pytestmark = pytest.mark.slow

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


@pytest.mark.exhaustive  # tests/test_encoded_processes.py kills one that encodes
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
