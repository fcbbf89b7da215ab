import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest

from ec_dit import prepare
from ec_dit.core.errors import UserError
from ec_dit.data import dataset

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
        found.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / seed).iterdir()})
    assert found[0] == found[1]
    assert {"tokenizer.model", "report.json", "dataset_info.json"} <= set(found[0])
    assert "kept, train" in done.stdout and " 30\n" in done.stdout
    assert len(dataset.open(tmp_path / "1")["train"]) == 30


def test_killed_in_the_middle_leaves_nothing_that_looks_finished(tmp_path):
    out = tmp_path / "set"
    command = [sys.executable, "-m", "ec_dit.prepare", "--source=shapes", "--num_train=1000000", f"--out={out}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".set.incomplete/build/shapes/*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    with pytest.raises(UserError, match=r"no data set at"):
        dataset.open(out)
    assert [path.name for path in tmp_path.iterdir()] == [".set.incomplete"]
    assert prepare.main(["prepare", *SHAPES, f"--out={out}"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(dataset.open(out)["train"]) == 30


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
        (["--source=shapes", "--out=OUT", "--option=cels=3"], "did you mean cells?"),
        (["--source=shapes", "--out=OUT", "--option=cells=many"], "cells=many of source shapes is no int"),
        (["--source=shapes", "--out=OUT", "--option=train=3", "--num_train=3"], "option 'train' is given twice"),
        (["--source=shapes", "--out=OUT", "--max_skipped_share=nan"], "max_skipped_share is nan"),
        (["--source=folder", "--out=OUT", "--path=.", "--validation_share=nan"], "validation_share is nan"),
        (["--source=shapes", "--out=OUT", "--placement=here"], "placement is 'here'"),
        (["--source=shapes", "--out=OUT", "--num_train=5", "--tokenizer=/nonexistent"], "cannot read the tokenizer"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, arguments, message):
    code = prepare.main(["prepare", *(argument.replace("OUT", str(tmp_path / "set")) for argument in arguments)])
    errors = capsys.readouterr().err
    assert code == 2 and message in errors and errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_damaged_images(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (images / f"{number}.txt").write_text("a picture")
    assert prepare.main(["prepare", "--source=folder", f"--path={images}", f"--out={tmp_path / 'set'}"]) == 2
    errors = capsys.readouterr().err
    assert "no example is left to train on" in errors and "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
