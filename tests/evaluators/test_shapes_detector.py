"""GenEval's rules on pictures of the `shapes` world: drawn scenes score 1 in their own tasks, and little in swapped ones."""

import json

import numpy as np
import pytest

from ec_dit.evaluators.shapes.detector import ShapesDetector, task_line, task_lines
from ec_dit.judges.detections import check, kept, score
from ec_dit.layouts import geneval
from ec_dit.layouts.geneval import Exclude, Include
from ec_dit.preparation.drawing.shapes_draw import OUTLINES, PALETTE, Thing, draw_scene
from ec_dit.preparation.drawing.shapes_scene import TASKS, ShapesOptions, eval_prompts, place

OPTIONS = ShapesOptions()
DETECTOR = ShapesDetector(OPTIONS.shapes, OPTIONS.colors)
PER_TASK, SEED = 12, 3


def judged(tasks, images):
    found = DETECTOR(images)
    return score(
        tasks,
        [
            check(task, kept(objects, task.tag), image, DETECTOR.colours)
            for task, objects, image in zip(tasks, found, images, strict=True)
        ],
    )


def read(tmp_path, novel=False):
    (tmp_path / "tasks.jsonl").write_text(task_lines(OPTIONS, PER_TASK, SEED, novel))
    return geneval.read(tmp_path / "tasks.jsonl", classes=OPTIONS.shapes, colours=OPTIONS.colors)


def drawn(tasks):
    """A picture of each task, by the code that draws the data set."""
    requirements = {prompt: requirement for _, prompt, requirement in eval_prompts(OPTIONS, PER_TASK, SEED)}
    images = []
    for number, task in enumerate(tasks):
        rng = np.random.default_rng(number)
        things = place(OPTIONS, requirements[task.prompt], rng)
        images.append(draw_scene(OPTIONS.image_size, things, OPTIONS.ground, rng))
    return images


def test_true_pictures_score_1_in_all_six_tasks_and_those_of_other_prompts_little(tmp_path):
    tasks = read(tmp_path)
    images = drawn(tasks)
    found = judged(tasks, images)
    assert found.tasks == dict.fromkeys(TASKS, 1.0)
    assert (found.overall, found.images, found.prompts) == (1.0, 1.0, 1.0)

    swapped = []
    for tag in TASKS:  # each task with the picture of the next prompt of its kind
        own = [image for task, image in zip(tasks, images, strict=True) if task.tag == tag]
        swapped += [*own[1:], own[0]]
    found = judged(tasks, swapped)
    assert max(found.tasks.values()) <= 0.35 and found.overall < 0.2, found


@pytest.mark.parametrize(
    ("requirement", "include", "exclude"),
    [
        (("single_object", [("star", None, 1)], None), (Include("star", 1),), ()),
        (("counting", [("star", None, 3)], None), (Include("star", 3),), (Exclude("star", 4),)),
        (("colors", [("star", "red", 1)], None), (Include("star", 1, "red"),), ()),
        *[
            (
                ("position", [("star", None, 1), ("circle", None, 1)], ours),
                (Include("circle", 1), Include("star", 1, None, (theirs, 0))),
                (),
            )
            for ours, theirs in {"left": "left of", "right": "right of", "above": "above", "below": "below"}.items()
        ],
        (
            ("color_attr", [("star", "red", 1), ("circle", "blue", 1)], None),
            (Include("star", 1, "red"), Include("circle", 1, "blue")),
            (),
        ),
    ],
)
def test_requirements_in_the_words_of_geneval(tmp_path, requirement, include, exclude):
    task, items, relation = requirement
    wanted = [dict(zip(("shape", "color", "count"), item, strict=True)) for item in items]
    line = task_line({"task": task, "include": wanted, "relation": relation}, "a prompt")
    (tmp_path / "tasks.jsonl").write_text(line)
    (found,) = geneval.read(tmp_path / "tasks.jsonl")
    assert (found.tag, found.prompt, found.include, found.exclude, found.line) == (
        task,
        "a prompt",
        include,
        exclude,
        line,
    )
    assert [item["shape"] for item in wanted] == [item[0] for item in items]


def test_prompts_drawn_twice_stand_once_and_novel_ones_name_colours(tmp_path):
    tasks = read(tmp_path)
    tags = [task.tag for task in tasks]
    assert tags.count("single_object") == len(OPTIONS.shapes)
    assert {task.prompt for task in tasks} == {prompt for _, prompt, _ in eval_prompts(OPTIONS, PER_TASK, SEED)}
    novel = read(tmp_path, novel=True)
    assert {task.tag for task in novel} == {"colors", "color_attr"}
    held_out = OPTIONS.held_out()
    assert all(any((item.colour, item.class_name) in held_out for item in task.include) for task in novel)
    assert not any((item.colour, item.class_name) in held_out for task in tasks for item in task.include)


def test_what_is_drawn_is_found_with_its_colour():
    things = [
        Thing("star", "purple", 20, 20, 14),
        Thing("circle", "red", 44, 20, 14),
        Thing("circle", "blue", 44, 44, 14),
    ]
    image = draw_scene(64, things, "plain", np.random.default_rng(0))
    (found,) = DETECTOR([image])
    assert {name: len(objects) for name, objects in found.items()} == {"star": 1, "circle": 2}
    assert DETECTOR.colours(image, found["star"], "star") == ["purple"]
    by_row = sorted(found["circle"], key=lambda one: one.box[1])
    assert DETECTOR.colours(image, by_row, "circle") == ["red", "blue"]
    np.testing.assert_allclose(by_row[0].box, things[1].box(), atol=1)
    assert {one.score for objects in found.values() for one in objects} == {1.0}
    assert (DETECTOR.classes, DETECTOR.name) == (OPTIONS.shapes, "classical vision")


def test_a_colour_that_is_not_known_has_no_name_and_a_shape_that_is_not_is_left_out():
    image = draw_scene(64, [Thing("square", "pink", 20, 20, 14)], "plain", np.random.default_rng(0))
    image[40:42, 30:60], image[40:60, 58:60] = PALETTE["red"], PALETTE["red"]  # a hook
    image[40:54, 4:18] = (90, 40, 20)
    wide = ShapesDetector(tuple(OUTLINES), tuple(PALETTE))
    (found,) = wide([image])
    assert list(found) == ["square"]
    assert sorted(wide.colours(image, found["square"], "square")) == ["", "pink"]


def test_lines_are_json_with_the_keys_of_geneval(tmp_path):
    read(tmp_path)
    keys = [list(json.loads(line)) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    assert {tuple(sorted(found)) for found in keys} == {
        ("include", "prompt", "tag"),
        ("exclude", "include", "prompt", "tag"),
    }
