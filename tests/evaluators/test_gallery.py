"""Pictures that are kept: what is drawn again after a kill, which folders are refused, and the layouts' names."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.evaluators.base import Wanted
from ec_dit.layouts.base import Layout, PictureFile, Prompt
from ec_dit.layouts.flat import Flat
from ec_dit.runs.gallery import Gallery

PROMPTS = [Prompt(f"{i:05d}", text) for i, text in enumerate(["red", "blue", "red", "green"])]


class Grids(Layout):
    """Four pictures of a prompt in one JPEG, and a note beside them."""

    NUM = 4

    def read(self, path):
        raise NotImplementedError

    def files(self, prompts, num):
        return [PictureFile(f"all/{prompt.id}.jpg", number, 0, num) for number, prompt in enumerate(prompts)]

    def beside(self, prompts):
        return {"note.txt": b"for the tool"}


class Killed(BaseException):
    pass


def picture(prompt, index):
    """Of its prompt and index alone."""
    seed = sum(prompt.encode()) + 1000 * index
    return np.kron(np.random.default_rng(seed).integers(0, 256, (2, 2, 3)), np.ones((4, 4, 1))).astype(np.uint8)


def drawer(log, most=1000):
    """Draws, writes into the log what it was asked for, and is killed after so many pictures."""

    def draw(prompts, indices):
        log.append(list(zip(prompts, indices, strict=True)))
        for number, (prompt, index) in enumerate(zip(prompts, indices, strict=True)):
            if number == most:
                raise Killed
            yield picture(prompt, index)

    return draw


def gallery(path, layout=None, num=2, replace=False, **facts):
    wanted = Wanted("some", PROMPTS, num, layout or Flat())
    return Gallery(epath.Path(path) / "some", wanted, {"step": 7} | facts, {"jax": "1"}, replace=replace)


def content(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_pictures_are_of_their_prompts_and_a_prompt_that_comes_again_goes_on_counting(tmp_path):
    log = []
    made = list(gallery(tmp_path).images(drawer(log)))
    wanted = [("red", 0), ("red", 1), ("blue", 0), ("blue", 1), ("red", 2), ("red", 3), ("green", 0), ("green", 1)]
    assert log == [wanted]
    np.testing.assert_array_equal(made, [picture(*each) for each in wanted])
    names = [f"0000{i}_000{j}.png" for i in range(4) for j in range(2)]
    assert sorted(file.name for file in (tmp_path / "some").iterdir()) == names
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "some/00002_0001.png")), picture("red", 3))
    again = []
    np.testing.assert_array_equal(list(gallery(tmp_path).images(drawer(again))), made)
    assert again == [[]]  # nothing was drawn


@pytest.mark.parametrize(("layout", "num"), [(Flat(), 2), (Grids(), 4)], ids=["flat", "grids"])
def test_whoever_is_killed_goes_on_to_the_same_bytes(tmp_path, layout, num):
    whole = list(gallery(tmp_path / "whole", layout, num).images(drawer([])))
    rng, cut, log = np.random.default_rng(0), tmp_path / "cut", []
    for _ in range(3):
        with pytest.raises(Killed):
            list(gallery(cut, layout, num).images(drawer(log, int(rng.integers(1, 3)) * num // 2)))
        (cut / "some" / "half.png.tmp").write_bytes(b"cut in the middle of a file")
    np.testing.assert_array_equal(list(gallery(cut, layout, num).images(drawer(log))), whole)
    assert content(cut) == content(tmp_path / "whole")
    assert [len(asked) for asked in log] == sorted([len(asked) for asked in log], reverse=True)
    assert len(log[-1]) < len(log[0])


def test_whoever_is_killed_after_the_last_picture_is_finished_by_the_next(tmp_path):
    """All pictures are there, and the record does not say so yet. Who drew them stays in it."""
    list(gallery(tmp_path / "whole").images(drawer([])))
    pictures = gallery(tmp_path / "cut").images(drawer([]))
    for _ in range(len(PROMPTS) * 2):
        next(pictures)
    pictures.close()
    assert json.loads((tmp_path / "cut/some.json").read_text())["finished"] is False
    later = Gallery(epath.Path(tmp_path) / "cut/some", Wanted("some", PROMPTS, 2, Flat()), {"step": 7}, {"jax": "2"})
    list(later.images(drawer([])))
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_grids_are_read_as_they_were_scored(tmp_path):
    drawn = list(gallery(tmp_path, Grids(), 4).images(drawer([])))
    read = list(gallery(tmp_path, Grids(), 4).images(drawer([])))
    np.testing.assert_array_equal(read, drawn)  # what JPEG made of them, both times
    grid = np.asarray(Image.open(tmp_path / "some/all/00001.jpg"))
    assert grid.shape == (16, 16, 3)
    np.testing.assert_allclose(grid[8:, :8].astype(int), picture("blue", 2).astype(int), atol=30)
    assert (tmp_path / "some/note.txt").read_bytes() == b"for the tool"


def test_other_settings_are_refused_with_the_difference_or_replaced_where_that_is_wanted(tmp_path):
    list(gallery(tmp_path).images(drawer([])))
    with pytest.raises(
        UserError, match=r"drawn with other settings:\n  guidance: null -> 3.0\n  step: 7 -> 8\nRemove the"
    ):
        list(gallery(tmp_path, step=8, guidance=3.0).images(drawer([])))
    with pytest.raises(UserError, match=r"num: 2 -> 1"):
        list(gallery(tmp_path, num=1).images(drawer([])))
    before = content(tmp_path)
    log = []
    list(gallery(tmp_path, num=1, step=8, replace=True).images(drawer(log)))
    assert len(log[0]) == 4 and len(list((tmp_path / "some").iterdir())) == 4
    assert before != content(tmp_path)
    assert json.loads((tmp_path / "some.json").read_text())["settings"]["step"] == 8


def test_files_of_others_are_named_and_left_alone(tmp_path):
    list(gallery(tmp_path).images(drawer([])))
    (tmp_path / "some/holiday.png").write_bytes(b"mine")
    for replace in (False, True):
        with pytest.raises(UserError, match=r"holds holiday.png, which is none of the 8 files of these prompts"):
            list(gallery(tmp_path, replace=replace, step=9 if replace else 7).images(drawer([])))
    assert (tmp_path / "some/holiday.png").read_bytes() == b"mine"


def test_pictures_without_a_record_are_nobodys(tmp_path):
    list(gallery(tmp_path).images(drawer([])))
    (tmp_path / "some.json").unlink()
    with pytest.raises(UserError, match=r"some.json is missing, which says with which settings they were drawn"):
        list(gallery(tmp_path).images(drawer([])))


def test_a_picture_that_does_not_open_is_named(tmp_path):
    list(gallery(tmp_path).images(drawer([])))
    (tmp_path / "some/00001_0000.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(UserError, match=r"00001_0000.png does not open"):
        list(gallery(tmp_path).images(drawer([])))
