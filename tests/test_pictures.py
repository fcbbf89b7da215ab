"""A folder of drawn pictures: its numbers, its record, and what in it is left alone."""

import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.runs.pictures import PictureFolder


def draw(path, texts, count=1, shade=0):
    folder = PictureFolder(str(path), texts, count)
    with folder.writing({"seed": 1}):
        for text, index in folder.jobs:
            folder.write(text, index, np.full((4, 4, 3), shade + len(text), np.uint8))
    return folder


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_numbers_follow_the_lines(tmp_path):
    texts = ["aa", "", "b", "aa", "ccc"]
    folder = draw(tmp_path / "out", texts, count=2)
    assert folder.jobs == [(text, index) for text in ("aa", "b", "ccc") for index in (0, 1)]
    numbers = (0, 2, 3, 4)
    pictures = [f"{number:05d}_{index:04d}.png" for number in numbers for index in (0, 1)]
    assert names(tmp_path / "out") == sorted([*pictures, "settings.json", "sheet.png"])
    for number in numbers:
        with Image.open(tmp_path / "out" / f"{number:05d}_0001.png") as image:
            assert np.asarray(image)[0, 0, 0] == len(texts[number])
    assert folder.numbers_of(lambda text: len(text) > 1) == [0, 3, 4]
    record = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (record["prompts"], record["finished"], record["seed"]) == (texts, True, 1)
    assert sorted(record["files"]) == sorted([*pictures, "sheet.png"])
    assert "8 images (2 are copies, of prompts that come twice)" in folder.told


def test_only_what_an_earlier_call_listed_is_removed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    mine = ("20240101_123456.png", "holiday.png", "notes.txt", "00007_0000.png")
    for name in mine:
        (out / name).write_bytes(b"mine")
    draw(out, ["a", "b"])
    draw(out, ["c"])
    assert names(out) == sorted([*mine, "00000_0000.png", "settings.json", "sheet.png"])
    assert all((out / name).read_bytes() == b"mine" for name in mine)


@pytest.mark.parametrize("name", ["00000_0000.png", "sheet.png", "settings.json"])
@pytest.mark.parametrize("text", ["mine", '{"files": "all"}', '{"files": ["../x.png"]}', "[" * 100_000, "{}"])
def test_files_of_others_are_not_written_over(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"holds {name}, which no record of an earlier call there lists"):
        draw(tmp_path, ["a"])
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_text() == text


def test_a_picture_put_beside_a_record_is_not_taken_for_its_own(tmp_path):
    draw(tmp_path, ["a"])
    (tmp_path / "00001_0000.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds 00001_0000.png"):
        draw(tmp_path, ["a", "b"])
    assert (tmp_path / "00001_0000.png").read_bytes() == b"mine"


def test_a_call_that_is_interrupted_owns_what_it_left(tmp_path):
    folder = PictureFolder(str(tmp_path), ["a", "b", "c"], 1)
    with contextlib.suppress(KeyboardInterrupt), folder.writing({}):
        folder.write("a", 0, np.zeros((4, 4, 3), np.uint8))
        raise KeyboardInterrupt
    assert names(tmp_path) == ["00000_0000.png", "settings.json"]
    assert json.loads((tmp_path / "settings.json").read_text())["finished"] is False
    draw(tmp_path, ["", "", "", "d"])
    assert names(tmp_path) == ["00003_0000.png", "settings.json", "sheet.png"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=r"out is a file; give a folder"):
        draw(tmp_path / "out", ["a"])
