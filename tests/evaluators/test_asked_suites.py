"""DSG and DPG-Bench end to end: tables of answers against figures by hand, a network that answers, grids of tiles."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ec_dit import evaluate
from ec_dit.core import paths
from ec_dit.judges import answers as tables
from ec_dit.judges import vqa
from ec_dit.layouts.dsg import MODEL

HEAD = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
)
ITEMS = HEAD + (
    "tifa_0,a red cat,,1,0,entity,whole,entity - whole (cat),is there a cat?\n"
    "tifa_0,a red cat,,2,1,attribute,color,attribute - color (red),is the cat red?\n"
    "whoops_1,two dogs,,1,0,entity,whole,entity - whole (dogs),are there dogs?\n"
    "whoops_1,two dogs,,2,1,other,count,other - count (2),are there two dogs?\n"
    "whoops_1,two dogs,,3,2,relation,spatial,relation - spatial (side),do they stand side by side?\n"
)
ASKED = {"tifa_0": (1, 2), "whoops_1": (1, 2, 3)}


def table(rows):
    lines = ["t2i_model,item_id,question_id,answer"]
    for model, given in rows.items():
        flat = [(item, question) for item, ids in ASKED.items() for question in ids]
        lines += [f"{model},{item},{question},{answer}" for (item, question), answer in zip(flat, given, strict=True)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.csv").write_text(ITEMS)
    return tmp_path


def score(*words, suite, code=0):
    assert evaluate.main(["evaluate", "--prompts=questions.csv", "--out=out", f"--suite={suite}", *words]) == code
    return None if code else json.loads(Path(f"out/eval_{suite.partition(':')[0]}.json").read_text())


def test_a_table_of_answers_gives_the_scores_by_hand(place):
    """The first item is half right; of the second the child of a wrong parent loses its own point."""
    (place / "answers.csv").write_text(table({"a": ("yes", "no", "yes", "no", "yes"), "b": ("no",) * 5}))
    found = score("--answers=answers.csv", suite="dsg:model=a")
    assert found["score"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["parts"]["without_dependency"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["parts"]["sources"] == pytest.approx({"tifa": 1 / 2, "defying": 1 / 3})
    assert found["parts"]["categories"] == pytest.approx({"entity": 1.0, "attribute": 0.0, "relation": 0.0})
    assert found["n"] == 2 and found["choices"]["model"] == "a"
    for name, file in {"answers": "answers.csv", "questions": "questions.csv"}.items():
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        assert found["choices"][name] == {"path": str(paths.at(file)), "sha256": digest}
    assert score("--answers=answers.csv", suite="dsg:model=b")["score"] == 0


def test_dpg_averages_tiles_and_tells_what_the_official_script_prints(place):
    """On the way through the questions a child of a child loses its point too; the script passes over the first question."""
    first, second = ("yes", "yes", "yes", "no", "yes"), ("no", "yes", "yes", "yes", "yes")
    (place / "answers.csv").write_text(table({"a tile 1": first, "a tile 2": second}))
    found = score("--answers=answers.csv", suite="dpg")
    assert found["score"] == pytest.approx(100 * np.mean([np.mean([1, 0]), np.mean([1 / 3, 1])]))
    assert found["parts"]["level_1"] == pytest.approx(
        {"entity": 75.0, "attribute": 50.0, "other": 50.0, "relation": 50.0}
    )
    # Of the first item nothing is left but a child without its parent: the script loses the picture.
    assert found["parts"]["official_total"] == pytest.approx(100 * np.mean([1 / 3, 1]))


class Looks:
    """Says yes of pictures that are red, and to any question that has 'two' in it."""

    name = "looks"

    def __call__(self, images, questions):
        return [
            "yes" if image[0, 0, 0] > 128 or "two" in text else "no"
            for image, text in zip(images, questions, strict=True)
        ]


@pytest.fixture
def answering(monkeypatch, place):
    from ec_dit.evaluators import asked

    monkeypatch.setattr(vqa, "load", lambda path: Looks())
    monkeypatch.setattr(asked, "network_facts", lambda path: {"path": path})
    return place


def red(number):
    return np.full((6, 8, 3), (255 * number, 0, 0), np.uint8)


def test_pictures_are_asked_and_answers_kept(answering):
    (answering / "pictures").mkdir()
    for item, number in (("tifa_0", 1), ("whoops_1", 0)):
        Image.fromarray(red(number)).save(answering / f"pictures/{item}_{MODEL}.jpg", quality=95)
    found = score("--images=pictures", "--vqa=some", suite="dsg:write=kept.csv")
    assert found["score"] == pytest.approx((1 + 0) / 2)
    assert found["parts"]["without_dependency"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["choices"]["vqa"] == {"name": "looks", "path": "some"}
    kept = tables.read_answers("kept.csv")
    assert kept == {MODEL: {"tifa_0": {1: "yes", 2: "yes"}, "whoops_1": {1: "no", 2: "yes", 3: "no"}}}
    assert (answering / "out/eval_dsg.png").exists()
    again = score("--answers=kept.csv", suite="dsg")
    assert again["score"] == found["score"] and "images" not in again["choices"]
    assert not (answering / "out/eval_dsg.png").exists()  # that was of the pictures


def test_grids_are_four_tiles(answering):
    (answering / "pictures").mkdir()
    for item, numbers in (("tifa_0", (1, 0, 0, 1)), ("whoops_1", (1, 1, 1, 0))):
        tiles = [red(number) for number in numbers]
        grid = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
        Image.fromarray(grid).save(answering / f"pictures/{item}.png")
    found = score("--images=pictures", "--vqa=some", suite="dpg:write=kept.csv")
    assert found["score"] == pytest.approx(100 * np.mean([2 / 4, 3 / 4]))
    assert score("--answers=kept.csv", suite="dpg")["score"] == found["score"]


@pytest.mark.parametrize(
    ("words", "suite", "message"),
    [
        ([], "dsg", "give either --workdir=DIR, the folder of a run, or --images=DIR"),
        (["--answers=none.csv"], "dsg", "none.csv"),
        (["--answers=answers.csv"], "dsg", "has answers for a, b: choose one with the option model=NAME"),
        (["--answers=answers.csv"], "dsg:model=c", "has no answers for 'c'; it has those for a, b"),
        (["--answers=answers.csv", "--vqa=some"], "dsg", "give either answers=FILE or vqa=PATH, not both"),
        (["--answers=short.csv"], "dsg", "1 of 5 answers are missing, first that of item whoops_1, question 3"),
        (["--images=pictures"], "dsg", "is needed: --vqa=PATH"),
        (
            ["--answers=answers.csv"],
            "dsg:model=a,write=kept.csv",
            "keeps a network's answers, and these are in a table",
        ),
        (["--answers=tiles.csv"], "dsg", "DSG scores one picture of each prompt, and these answers are about 2 tiles"),
        (["--answers=answers.csv"], "dsg:model=a,fid:reference=x", "FID's Inception"),
    ],
)
def test_mistakes_are_one_message(place, capsys, words, suite, message):
    both = table({"a": ("yes",) * 5, "b": ("no",) * 5})
    (place / "answers.csv").write_text(both)
    (place / "tiles.csv").write_text(table({"a tile 1": ("yes",) * 5, "a tile 2": ("no",) * 5}))
    (place / "short.csv").write_text(table({"a": ("yes",) * 5}).rpartition("a,whoops_1,3")[0])
    (place / "pictures").mkdir()
    assert evaluate.main(["evaluate", "--prompts=questions.csv", "--out=out", f"--suite={suite}", *words]) == 2
    assert message in capsys.readouterr().err
