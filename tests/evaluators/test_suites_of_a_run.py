"""All suites of a trained run by one command: killed at random moments it ends in the same bytes, and two processes are as one.

Networks are random, in the published layouts; that each suite's figure is right is shown by the tests of its own.
"""

import json
import random
import time

import pytest
from PIL import Image

from ec_dit import evaluate as entry
from ec_dit.evaluators.shapes.detector import task_lines
from ec_dit.preparation.drawing.shapes_scene import ShapesOptions
from tests import fid_network, runs
from tests.encoders.vision_folders import write_dino
from tests.evaluators import networks
from tests.judges import answerers, detectors

pytestmark = [pytest.mark.slow, pytest.mark.extra("conformance"), pytest.mark.xdist_group("unbroken")]

SUITES = (
    "fid:bootstrap=0,batch_size=3,cmmd,fd_dino:bootstrap=3,clip_score,pick_score,hps,"
    "val_loss:most=16,shapes:images_per_task=1,"
    "geneval:prompts=tasks.jsonl,detector=shapes,num=2"
)
NAMES = [item.partition(":")[0] for item in SUITES.split(",") if "=" not in item or ":" in item]
MOST = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with networks and prompts, beside a run."""
    place = tmp_path_factory.mktemp("suites")
    run, *_ = runs.unbroken(tmp_path_factory)
    (place / "run").symlink_to(run / "unbroken")
    fid_network.write(place / "fid.safetensors")
    networks.write_clip(place / "clip")
    write_dino(place / "dino", patch_size=14, image_size=70)  # of 224 pixels as many tokens as published ones
    (place / "tasks.jsonl").write_text(task_lines(ShapesOptions(), 1, 0))
    return place


def command(out):
    given = {"inception": "fid.safetensors", "clip": "clip", "dino": "dino", "most": MOST, "reference_most": MOST}
    words = [f"--{name}={value}" for name, value in given.items()]
    return [
        "--workdir=run",
        f"--suite={SUITES}",
        f"--out={out}",
        *words,
        "--steps=2",
        "--sampler=euler",
        "--batch_size=2",
    ]


def evaluate(place, out, processes=1):
    if processes == 1:
        return [runs.call(place, "evaluate", *command(out))]
    return runs.call_several(place, "evaluate", processes, *command(out), "--mesh=-1,1,1,1", devices=processes)


def content(folder):
    """Every file below a folder; of scores all but the seconds they took."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            text = path.read_bytes()
            if path.match("eval_*.json"):
                text = b"\n".join(line for line in text.splitlines() if not line.startswith(b'  "seconds"'))
            found[str(path.relative_to(folder))] = text
    return found


@pytest.fixture(scope="module")
def whole(place):
    ((code, output),) = runs.end(evaluate(place, "whole"))
    assert code == 0, output
    return output


def test_every_suite_leaves_its_score(place, whole):
    for name in NAMES:
        found = json.loads((place / f"whole/eval_{name}.json").read_text())
        assert f"suite {name}: step {runs.STEPS}, ema" in whole
        assert found["suite"] == name and found["n"] > 0 and found["score"] == found["score"]
        choices = found["choices"]
        assert choices["step"] == runs.STEPS and choices["weights"] == "ema" and found["versions"]["jax"]
        if name != "val_loss":
            assert (choices["steps"], choices["nfe"], choices["sampler"]) == (2, 4, "euler")
            assert choices["pictures"]["prompts"] in (MOST, 6, len((place / "tasks.jsonl").read_text().splitlines()))
    folders = sorted(path.name for path in (place / "whole").iterdir() if path.is_dir())
    assert len(folders) == 3  # the suites of the captions share their pictures
    fid = json.loads((place / "whole/eval_fid.json").read_text())
    assert fid["choices"]["reference"]["split"] == "validation" and fid["choices"]["reference"]["images"] == MOST


@pytest.mark.exhaustive
def test_killed_at_random_moments_it_ends_in_the_same_bytes(place, whole):
    rng = random.Random(time.time_ns())
    moments = sorted(rng.uniform(0.1, 1.0) for _ in range(3))
    files = len(content(place / "whole"))
    for moment in moments:
        (process,) = evaluate(place, "killed")
        while process.poll() is None and len(content(place / "killed")) < moment * files:
            time.sleep(0.05)
        process.kill()
        process.communicate()
    ((code, output),) = runs.end(evaluate(place, "killed"))
    assert code == 0, (moments, output)
    assert content(place / "killed") == content(place / "whole"), moments


@pytest.mark.exhaustive
def test_two_processes_give_ones_figures(place, whole):
    ends = runs.end(evaluate(place, "two", 2))
    assert [code for code, _ in ends] == [0, 0], ends
    assert "suite" not in ends[1][1]  # the first tells
    for name in NAMES:
        one, two = (json.loads((place / f"{out}/eval_{name}.json").read_text()) for out in ("whole", "two"))
        assert two["score"] == pytest.approx(one["score"], rel=1e-3, abs=1e-6), name
        assert two["n"] == one["n"]
        assert two["choices"]["devices"] == "2 x cpu" if name != "val_loss" else True


@pytest.mark.exhaustive
def test_networks_score_while_a_run_trains(place):
    """The last figures are those that the command gives afterwards."""
    (place / "tiny.py").write_text(runs.SETTINGS)
    options = "most=4,reference_most=4"
    suites = (f"cmmd:every=8,clip=clip,{options}", f"fid:bootstrap=0,batch_size=2,inception=fid.safetensors,{options}")
    words = ["--config.train.steps=12", f"--config.eval.suites={suites}", "--config.sample.steps=1"]
    ((code, output),) = runs.end([runs.start(place, "training", *words)])
    assert code == 0, output
    told = [json.loads(line) for line in (place / "training/metrics.jsonl").read_text().splitlines()]
    scores = {
        name: {line["step"]: line[f"eval/{name}/score"] for line in told if f"eval/{name}/score" in line}
        for name in ("cmmd", "fid")
    }
    assert list(scores["cmmd"]) == [8, 12] and list(scores["fid"]) == [12]
    command = ["--workdir=training", f"--suite={','.join(suites).replace('every=8,', '')}", "--out=afterwards"]
    ((code, output),) = runs.end([runs.call(place, "evaluate", *command)])
    assert code == 0, output
    for name, by_step in scores.items():
        again = json.loads((place / f"afterwards/eval_{name}.json").read_text())["score"]
        assert by_step[12] == pytest.approx(again, rel=1e-6)


def test_a_picture_that_is_missing_or_too_many_is_told(place, whole):
    (folder,) = [path for path in (place / "whole").iterdir() if path.is_dir() and path.name.startswith("validation")]
    stray = folder / "stray.png"
    stray.write_bytes(b"mine")
    try:
        ((code, output),) = runs.end([runs.call(place, "evaluate", *command("whole"))])
    finally:
        stray.unlink()
    assert code == 2 and "stray.png, which is none of the 6 files of these prompts" in output


def test_detectors_and_answerers_judge_what_the_run_draws(place, monkeypatch):
    """In this process, since torch is left out of the others."""
    monkeypatch.chdir(place)
    detectors.write_mask2former(place / "detector")
    answerers.save(place / "blip", answerers.blip)
    metadata = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "a red car"}
    (place / "metadata.jsonl").write_text(json.dumps(metadata))
    columns = "item_id,text,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
    rows = [f"tifa_{i},{color} cube,{q},{q - 1},entity,whole,entity - whole (cube),is there a {color} cube?"
            for i, color in enumerate(("red", "blue")) for q in (1, 2)]  # fmt: skip
    (place / "questions.csv").write_text("\n".join([columns, *rows]))
    common = ["--workdir=run", "--out=judged", "--steps=1", "--sampler=euler", "--batch_size=1", "--detector=detector"]
    suites = (
        "geneval:prompts=metadata.jsonl,num=1,dsg:prompts=questions.csv,dpg:prompts=questions.csv,write=answers.csv"
    )
    words = [*common, f"--suite={suites}", "--clip=clip", "--vqa=blip"]
    assert entry.main(["evaluate", *words]) == 0
    for name, count in {"geneval": 1, "dsg": 2, "dpg": 2}.items():
        found = json.loads((place / f"judged/eval_{name}.json").read_text())
        assert found["n"] == count and found["choices"]["step"] == runs.STEPS and 0 <= found["score"] <= 100
    grid = Image.open(next((place / "judged").glob("questions-dpg-*/tifa_1.png")))
    alone = Image.open(next((place / "judged").glob("questions-dsg-*/tifa_1_ec_dit.jpg")))
    assert grid.size == (2 * alone.width, 2 * alone.height)
    assert len((place / "answers.csv").read_text().splitlines()) == 1 + 4 * 4
