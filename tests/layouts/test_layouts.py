"""The official tools' layouts: names of files as the tools look for them, and prompt files that are none."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.layouts import files
from ec_dit.layouts.base import PictureFile, Prompt
from ec_dit.layouts.registry import LAYOUTS


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def names(layout, path, num=None):
    """(ids, names of files)."""
    prompts = LAYOUTS[layout].read(path)
    return [prompt.id for prompt in prompts], [
        file.name for file in LAYOUTS[layout].files(prompts, num or LAYOUTS[layout].NUM)
    ]


def test_names_are_those_that_the_tools_look_for(tmp_path):
    lines = written(tmp_path / "lines.txt", "a red circle\n\n a blue square \n")
    assert names("flat", lines, 2) == (
        ["00000", "00002"],
        ["00000_0000.png", "00000_0001.png", "00002_0000.png", "00002_0001.png"],
    )
    compbench = written(tmp_path / "color_val.txt", "a green bench\tred\na black cat.\n")
    assert names("t2i_compbench", compbench, 2)[1] == [
        "samples/a green bench_000000.png",
        "samples/a green bench_000001.png",
        "samples/a black cat._000002.png",
        "samples/a black cat._000003.png",
    ]
    styles = {"anime": ["a", "b"], "photo": ["a"]}
    expected = ["anime/00000.jpg", "anime/00001.jpg", "photo/00000.jpg"]
    assert names("hpsv2", written(tmp_path / "all.json", styles))[1] == expected
    (tmp_path / "styles").mkdir()
    for style, texts in styles.items():
        written(tmp_path / f"styles/{style}.json", texts)
    assert names("hpsv2", str(tmp_path / "styles"))[1] == expected


@pytest.mark.parametrize(
    ("layout", "content", "message"),
    [
        ("flat", "", "holds no prompt"),
        ("flat", "\n\n", "holds no prompt"),
        ("t2i_compbench", "a cat\na_dog\n", r"line 2: a prompt with '_' cannot be the name of a picture"),
        ("t2i_compbench", "a cat/dog\n", r"line 1: a prompt with '/'"),
        ("t2i_compbench", "a cat\n\na dog\n", r"line 2: it is empty"),
        ("t2i_compbench", "x" * 250, r"line 1: the prompt is too long"),
        ("hpsv2", "not json", "is no JSON"),
        ("hpsv2", ["a"], "holds no object of styles"),
        ("hpsv2", {"anime": "a"}, "style 'anime' is no list of prompts"),
        ("hpsv2", {"../up": ["a"]}, "cannot be the name of a folder"),
        ("hpsv2", {}, "holds no prompt"),
    ],
)
def test_wrong_prompt_files_are_told(tmp_path, layout, content, message):
    with pytest.raises(UserError, match=message):
        LAYOUTS[layout].read(written(tmp_path / "prompts", content))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_prompt_file_is_told(tmp_path, layout):
    with pytest.raises(UserError, match=r"there is no (prompts )?file"):
        LAYOUTS[layout].read(str(tmp_path / "none"))


def test_hpsv2_takes_one_picture():
    with pytest.raises(UserError, match="HPSv2 scores one picture of each prompt, not 4"):
        LAYOUTS["hpsv2"].files([Prompt("anime/00000", "a")], 4)


def test_tiles_lie_in_rows_of_two(tmp_path):
    tiles = [np.full((3, 5, 3), 40 * i, np.uint8) for i in range(4)]
    file = PictureFile("a/grid.png", 0, 0, 4)
    read, data = files.encode(file, tiles)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/grid.png").write_bytes(data)
    whole = np.asarray(Image.open(tmp_path / "a/grid.png"))
    assert whole.shape == (6, 10, 3) and whole[0, 9, 0] == 40 and whole[5, 0, 0] == 80
    np.testing.assert_array_equal(read, tiles)
    np.testing.assert_array_equal(files.read(epath.Path(tmp_path), file), tiles)
    Image.fromarray(whole[:5]).save(tmp_path / "a/grid.png")
    with pytest.raises(UserError, match="is no grid of two rows of two pictures: it has 5 x 10 pixels"):
        files.read(epath.Path(tmp_path), file)
