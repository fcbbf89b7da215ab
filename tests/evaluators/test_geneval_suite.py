"""GenEval end to end: pictures of drawn scenes in the official layout, and the path through a detector and a CLIP."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ec_dit import evaluate
from ec_dit.evaluators.shapes.detector import task_lines
from ec_dit.layouts import geneval
from ec_dit.preparation.drawing.shapes_draw import draw_scene
from ec_dit.preparation.drawing.shapes_scene import TASKS, ShapesOptions, eval_prompts, place
from tests.evaluators import networks
from tests.judges import detectors

OPTIONS, PER_TASK = ShapesOptions(), 4
PHOTOS = [
    {
        "tag": "two_object",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}],
        "prompt": "a cat and a dog",
    },
    {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "a red car"},
]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A folder as GenEval wants it: two pictures of each prompt's own scene."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.jsonl").write_text(task_lines(OPTIONS, PER_TASK, 0))
    requirements = {prompt: requirement for _, prompt, requirement in eval_prompts(OPTIONS, PER_TASK, 0)}
    tasks = geneval.read(tmp_path / "tasks.jsonl")
    for number, task in enumerate(tasks):
        folder = tmp_path / f"pictures/{number:05d}/samples"
        folder.mkdir(parents=True)
        (folder.parent / "metadata.jsonl").write_text(task.line)
        for index in range(2):
            rng = np.random.default_rng([number, index])
            scene = draw_scene(OPTIONS.image_size, place(OPTIONS, requirements[task.prompt], rng), OPTIONS.ground, rng)
            Image.fromarray(scene).save(folder / f"{index:04d}.png")
    return len(tasks)


def score(*words, suite="geneval:num=2", code=0):
    given = ["--images=pictures", "--prompts=tasks.jsonl", "--out=out", f"--suite={suite}"]
    assert evaluate.main(["evaluate", *given, *words]) == code
    return json.loads(Path("out/eval_geneval.json").read_text()) if code == 0 else None


def test_true_scenes_score_1_and_swapped_prompts_little(drawn, tmp_path):
    found = score("--detector=shapes")
    assert found["parts"]["tasks"] == dict.fromkeys(TASKS, 1.0) and found["score"] == 1
    assert found["n"] == 2 * drawn and found["choices"]["pictures"]["layout"] == "Geneval"
    rows = [json.loads(line) for line in (tmp_path / "out/eval_geneval.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * drawn and all(row["reasons"] == [] for row in rows)
    assert (tmp_path / "out/eval_geneval.png").exists()
    lines = (tmp_path / "tasks.jsonl").read_text().splitlines()
    swapped = [*lines[1:], lines[0]]
    (tmp_path / "tasks.jsonl").write_text("\n".join(swapped))
    score("--detector=shapes", code=2)  # the folder's own metadata say otherwise
    for number, line in enumerate(swapped):
        (tmp_path / f"pictures/{number:05d}/metadata.jsonl").write_text(json.dumps(json.loads(line), indent=1))
    found = score("--detector=shapes")
    assert found["score"] < 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a detector, such as facebook/mask2former-swin-small-coco-instance, is needed: --detector=PATH"),
        (["--detector=shapes", "--prompts=none.jsonl"], "there is no file"),
        (["--detector=shapes", "--prompts=twice.jsonl"], "line 2, is line 1 again; leave one of them out"),
        (["--detector=shapes", "--prompts=wrong.jsonl"], "wrong.jsonl, line 1, is damaged"),
        (["--detector=shapes", "--suite=geneval"], "lacks"),
        (["--detector=shapes", "--suite=geneval:num=1"], "holds 00000/samples/0001.png"),
        (["--detector=shapes", "--prompts=short.jsonl"], "00000/metadata.jsonl is missing"),
        (["--detector=nowhere", "--clip=nowhere"], "there is no"),
    ],
)
def test_mistakes_are_one_message(drawn, tmp_path, capsys, words, message):
    (tmp_path / "twice.jsonl").write_text(2 * (tmp_path / "tasks.jsonl").read_text().partition("\n")[0] + "\n")
    line = (tmp_path / "tasks.jsonl").read_text().partition("\n")[0]
    (tmp_path / "twice.jsonl").write_text(f"{line}\n{line}\n")
    if "is missing" in message:
        (tmp_path / "pictures/00000/metadata.jsonl").unlink()
    (tmp_path / "short.jsonl").write_text((tmp_path / "tasks.jsonl").read_text())
    (tmp_path / "wrong.jsonl").write_text(line.replace('"count": 1', '"count": 0'))
    score(*words, code=2)
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.extra("conformance")
def test_photographs_go_through_the_detector_and_the_namer_of_colours(tmp_path, monkeypatch):
    """Random networks: the figures mean nothing, but every part takes what the one before gives."""
    monkeypatch.chdir(tmp_path)
    networks.write_clip(tmp_path / "clip")
    detectors.write_mask2former(tmp_path / "detector")
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, PHOTOS)))
    rng = np.random.default_rng(0)
    for number in range(2):
        folder = tmp_path / f"pictures/{number:05d}/samples"
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / "0000.png")
        (folder.parent / "metadata.jsonl").write_text(json.dumps(PHOTOS[number]))
    found = score("--detector=detector", "--clip=clip", suite="geneval:num=1")
    assert set(found["parts"]["tasks"]) == {"two_object", "colors"}
    assert found["choices"]["detector"]["name"].startswith("Mask2Former of ")
    assert len(found["choices"]["detector"]["sha256"]) == len(found["choices"]["clip"]["sha256"]) == 64
