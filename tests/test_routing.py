"""python -m ec_dit.routing on a trained run: what it writes is what the Python API tells, and nothing of anybody else is lost."""

import json

import numpy as np
import pytest
from PIL import Image

import ec_dit
from ec_dit import routing
from ec_dit.maps import figures
from ec_dit.maps.foreground import MASKS, share_of_patches
from tests import runs

pytestmark = [pytest.mark.slow, pytest.mark.extra("plots"), pytest.mark.xdist_group("unbroken")]
FAST = ("--steps=2", "--sampler=euler")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    run, *_ = runs.unbroken(tmp_path_factory)
    return run / "unbroken"


def call(workdir, out, *words):
    return routing.main(["routing", f"--workdir={workdir}", f"--out={out}", *FAST, *words])


def test_files_hold_the_routes_of_the_prompts_pictures(workdir, tmp_path):
    out = tmp_path / "out"
    prompts = ("a red circle", "two squares", "a star")
    assert call(workdir, out, *(f"--prompt={prompt}" for prompt in prompts), "--num=3", "--seed=4", "--which") == 0
    told, arrays = json.loads((out / "routing.json").read_text()), np.load(out / "routing.npz")
    run = ec_dit.load(str(workdir), say=lambda _: None)
    for place, (prompt, index) in enumerate((prompt, index) for prompt in prompts for index in range(3)):
        assert (arrays["prompt_N"][place], arrays["index_N"][place]) == (prompt, index)
        if index == 1:  # one of each prompt is enough
            routes = run.routing(prompt, index=index, seed=4, steps=2, sampler="euler")
            np.testing.assert_array_equal(arrays["count_NLUYX"][place], routes.taken_LUYXE.sum(-1))
            np.testing.assert_array_equal(arrays["taken_NLUYXE"][place], routes.taken_LUYXE)
            np.testing.assert_allclose(arrays["gate_NLUYXE"][place], routes.gate_LUYXE, atol=1e-5)
            drawn = run.draw(prompt, num=3, seed=4, steps=2, sampler="euler")[index]
            assert np.abs(arrays["image_NYXZ"][place].astype(int) - drawn).max() <= 1
    found = []
    for image, count_LUYX in zip(arrays["image_NYXZ"], arrays["count_NLUYX"], strict=True):
        found.append(figures.of_picture(count_LUYX, share_of_patches(MASKS["shapes"](image), *count_LUYX.shape[2:])))
    for name, spread in figures.over_pictures(found).items():
        mean = np.array(told["figures"][name]["mean"], float)
        np.testing.assert_allclose(mean, spread.mean_LU, atol=1e-5, err_msg=name)
    assert told["pictures"] == 9 and told["blocks"] == arrays["block_L"].tolist()
    assert np.allclose(told["times"], arrays["time_U"]) and told["steps"] == 2 and told["seed"] == 4
    pictures = [f"routing_{place:05d}.png" for place in range(9)]
    assert told["files"] == ["routing.npz", "routing.png", *pictures, "curves.png", "experts.png"]
    for name in told["files"][1:]:
        assert np.asarray(Image.open(out / name).convert("L")).std() > 5
    # A second call replaces what the first one wrote, and only that.
    (out / "mine.txt").write_text("mine")
    assert call(workdir, out, "--prompt=a star", "--noplots") == 0
    assert {path.name for path in out.iterdir()} == {"mine.txt", "routing.json", "routing.npz"}
    assert "gate_NLUYXE" not in np.load(out / "routing.npz")


def test_captions_of_a_split_are_parted_by_what_they_ask_for(workdir, tmp_path):
    assert call(workdir, tmp_path, "--split=validation", "--most=24", "--noplots") == 0
    told, arrays = json.loads((tmp_path / "routing.json").read_text()), np.load(tmp_path / "routing.npz")
    data = ec_dit.load(str(workdir), say=lambda _: None).workdir.dataset()["validation"]
    tasks = [data[place].meta["task"] for place in range(24)]
    assert arrays["prompt_N"].tolist() == [data[place].caption for place in range(24)]
    assert sorted(told["by_group"]) == sorted(set(tasks))
    counting = arrays["count_NLUYX"][[task == "counting" for task in tasks]]
    wanted = np.mean(counting.max((3, 4)), 0)
    np.testing.assert_allclose(told["by_group"]["counting"]["most"]["mean"], wanted)
    assert {word["block"] for word in told["words"]} <= set(told["blocks"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to draw"),
        (["--prompt=a", "--split=train"], "leave --prompt and --prompts_file out, or --split"),
        (["--split=test"], "--split=test: the run's data have train, validation, novel"),
        (["--prompt=a", "--shape=30x30"], "both sides must be multiples"),
        (["--prompt=a", "--most=0"], "most"),
    ],
)
def test_wrong_input_is_one_message(workdir, tmp_path, capsys, words, message):
    assert call(workdir, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_of_others_are_refused(workdir, tmp_path, capsys):
    (tmp_path / "routing.png").write_text("a picture of mine")
    assert call(workdir, tmp_path, "--prompt=a") == 2
    assert "holds routing.png, which no record" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["routing.png"]


def test_a_record_that_lists_others_files_is_none_of_ours(workdir, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "routing.json").write_text(json.dumps({"files": ["mine.txt"]}))
    assert call(workdir, tmp_path, "--prompt=a", "--noplots") == 2
    assert "holds routing.json" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_without_matplotlib_the_way_is_told(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(routing.importlib.util, "find_spec", lambda name: None)
    assert call(workdir, tmp_path / "out", "--prompt=a") == 2
    assert "pip install 'ec-dit[plots]', or give --noplots" in capsys.readouterr().err
