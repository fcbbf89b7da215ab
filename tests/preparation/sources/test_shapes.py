"""The shapes source: the same bytes every time, true captions, nothing held out in training."""

import dataclasses
import functools
import io
import itertools
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs import shapes as shapes_config
from ec_dit.core.errors import UserError
from ec_dit.data.records import Record
from ec_dit.preparation.drawing.shapes_draw import OUTLINES, PALETTE, Thing, coverage, draw_scene
from ec_dit.preparation.drawing.shapes_scene import TASKS, ShapesOptions, caption_of, eval_prompts, for_validation
from ec_dit.preparation.sources.drawn import shapes as shapes_source
from ec_dit.preparation.sources.drawn.shapes import ShapesSource

pytestmark = pytest.mark.slow

EASY = ShapesOptions(train=240, validation=60, novel=40)
ALL = dataclasses.replace(EASY, image_size=64, ground="textured", shapes=tuple(OUTLINES), colors=tuple(PALETTE))
JITTER = dataclasses.replace(ALL, placement="jitter", object_size=(0.5, 0.8))
HARD = dataclasses.replace(ALL, placement="free", object_size=(0.5, 0.9))
DIFFICULTIES = pytest.mark.parametrize("options", [EASY, JITTER, HARD], ids=["cell", "jitter", "free"])


@functools.cache
def _records(options: ShapesOptions, split: str) -> list[Record]:
    source = ShapesSource(options)
    shards = [number for number, shard in enumerate(source.shards()) if shard.name.startswith(split)]
    records = [record for number in shards for record in source.records(number)]
    assert {record.split for record in records} == {split}
    return records


def _pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


@DIFFICULTIES
def test_records_are_the_same_in_any_order(options: ShapesOptions) -> None:
    in_order = _records(options, "validation")
    again = [ShapesSource(options).record("validation", index) for index in reversed(range(60))][::-1]
    assert in_order == again
    assert len({record.id for record in in_order}) == 60
    assert len({record.image for record in in_order}) > 45  # single objects repeat
    other_seed = ShapesSource(dataclasses.replace(options, seed=1)).record("validation", 0)
    assert other_seed.image != in_order[0].image
    assert ShapesSource(options).record("train", 0).image != in_order[0].image


def test_shards_cover_every_split_once() -> None:
    source = ShapesSource(ShapesOptions(train=2100, validation=1000, novel=3))
    shards = source.shards()
    assert source.shards() is shards
    assert [shard.size for shard in shards] == [1000, 1000, 100, 1000, 3]
    assert [shard.name for shard in shards][2:] == ["train 2000-2100", "validation 0-1000", "novel 0-3"]
    assert list(source.records(4)) == [source.record("novel", index) for index in range(3)]
    assert [record.id for record in source.records(2)] == [f"train-{index:07d}" for index in range(2000, 2100)]
    assert next(source.records(3)) == source.record("validation", 0)
    none = ShapesSource(ShapesOptions(train=5, validation=0, novel=0))
    assert [shard.name for shard in none.shards()] == ["train 0-5"]


@DIFFICULTIES
def test_objects_are_the_required_ones_inside_the_image_and_apart(options: ShapesOptions) -> None:
    for record in _records(options, "train"):
        objects, require = record.meta["objects"], record.meta["require"]
        expected = [item["shape"] for item in require["include"] for _ in range(item["count"])]
        assert [thing["shape"] for thing in objects] == expected
        named = [item["color"] for item in require["include"] if item["color"]]
        assert not named or [thing["color"] for thing in objects] == named
        for i, first in enumerate(objects):
            left, top, right, bottom = first["box"]
            assert 0 <= left < right <= options.image_size and 0 <= top < bottom <= options.image_size
            for second in objects[:i]:
                other_left, other_top, other_right, other_bottom = second["box"]
                apart_x = max(left - other_right, other_left - right)
                apart_y = max(top - other_bottom, other_top - bottom)
                assert max(apart_x, apart_y) >= 1.4


@DIFFICULTIES
def test_position_captions_are_true_and_never_flipped(options: ShapesOptions) -> None:
    seen = set()
    for record in _records(options, "train"):
        assert record.flip == (record.meta["task"] != "position")
        if record.meta["task"] != "position":
            continue
        (a_left, a_top, a_right, a_bottom), (b_left, b_top, b_right, b_bottom) = (
            t["box"] for t in record.meta["objects"]
        )
        x, y = (b_left + b_right - a_left - a_right) / 2, (b_top + b_bottom - a_top - a_bottom) / 2
        relation = record.meta["require"]["relation"]
        seen.add(relation)
        assert {"left": x > abs(y), "right": -x > abs(y), "above": y > abs(x), "below": -y > abs(x)}[relation]
        words = {"left": "left of", "right": "right of", "above": ("above", "on top of"), "below": ("below", "under")}
        said = words[relation]
        assert any(word in record.caption for word in ((said,) if isinstance(said, str) else said))
    assert seen == {"left", "right", "above", "below"}


def test_held_out_pairs_are_in_every_novel_caption_and_never_in_training() -> None:
    held_out = EASY.held_out()
    assert len(held_out) == len(EASY.shapes)
    for split, size in (("train", 240), ("validation", 60)):
        records = _records(EASY, split)
        assert len(records) == size
        assert [record.meta["task"] for record in records[:6]] == list(TASKS)
        for record in records:
            assert not held_out & {(thing["color"], thing["shape"]) for thing in record.meta["objects"]}
    for record in _records(EASY, "novel"):
        assert held_out & {(thing["color"], thing["shape"]) for thing in record.meta["objects"]}
        assert any(f"{color} {shape}" in record.caption for color, shape in held_out)


def _scene(record: Record) -> tuple[tuple[str, str, float, ...], ...]:
    """What decides the picture on plain ground: every object with its colour and place."""
    return tuple(sorted((thing["shape"], thing["color"], *thing["box"]) for thing in record.meta["objects"]))


def _mirrored(record: Record) -> tuple[tuple[str, str, float, ...], ...]:
    """The scene as the loader may show it, where the record allows that."""
    if not record.flip:
        return _scene(record)
    width = _pixels(record.image).shape[1]
    return tuple(
        sorted(
            (shape, color, round(width - right, 2), top, round(width - left, 2), bottom)
            for shape, color, left, top, right, bottom in _scene(record)
        )
    )


def test_validation_is_held_out() -> None:
    """On the options of configs/shapes.py, where single objects have 256 scenes, at reduced counts."""
    config = dict(shapes_config.get_config().data.options)
    options = ShapesOptions(**config | {"train": 1800, "validation": 240, "novel": 60})
    splits = {split: _records(options, split) for split in ("train", "validation", "novel")}
    for content in (lambda record: _pixels(record.image).tobytes(), _scene):
        train, validation, novel = ({content(record) for record in records} for records in splits.values())
        assert len(train) > 1200 and len(validation) > 150 and len(novel) > 40
        assert not train & validation and not train & novel and not validation & novel
    for split, size in (("train", 300), ("validation", 40)):
        tasks = Counter(record.meta["task"] for record in splits[split])
        assert tasks == dict.fromkeys(TASKS, size)
    assert not {_mirrored(record) for record in splits["train"]} & {_scene(record) for record in splits["validation"]}
    trained, held_out = (
        {scene for record in splits[split] if len(scene := _scene(record)) == 1} for split in ("train", "validation")
    )
    assert 150 < len(trained) <= 256 - 32 and 16 < len(held_out) <= 32
    assert len({scene[0][:2] for scene in held_out}) == 16  # Every colour and shape.


@pytest.mark.parametrize(
    ("cells", "shapes", "colors"),
    [
        (2, 2, 3),
        (8, 3, 4),
        *(
            pytest.param(*sizes, marks=pytest.mark.exhaustive)
            for sizes in ((2, 4, 5), (3, 2, 3), (3, 7, 7), (4, 2, 3), (5, 4, 5))
        ),
    ],
)
@pytest.mark.parametrize("placement", ["cell", "free"])
def test_every_world_has_validation_scenes(cells: int, shapes: int, colors: int, placement: str) -> None:
    names = {"shapes": tuple(OUTLINES)[:shapes], "colors": tuple(PALETTE)[:colors]}
    options = dataclasses.replace(EASY, image_size=96, cells=cells, placement=placement, **names)
    pictures = [{record.image for record in _records(options, split)} for split in ("train", "validation")]
    assert pictures[0] and pictures[1] and not pictures[0] & pictures[1]


@pytest.mark.parametrize(("cells", "places"), [(2, 2), (4, 2), (8, 4)])
def test_each_object_has_its_own_validation_places(cells: int, places: int) -> None:
    options = dataclasses.replace(EASY, image_size=160, cells=cells)
    side = 160 / cells
    chosen = {}
    for shape, color in itertools.product(options.shapes, options.colors):
        for x, y in itertools.product(range(cells), repeat=2):
            thing = Thing(shape, color, (x + 0.5) * side, (y + 0.5) * side, 12.0)
            moved = dataclasses.replace(thing, x=thing.x + 0.4 * side, y=thing.y - 0.4 * side, size=14.0)
            assert for_validation(options, [thing]) == for_validation(options, [moved])
            if for_validation(options, [thing]):
                chosen.setdefault((shape, color), []).append((x, y))
    assert {len(found) for found in chosen.values()} == {places} and len(chosen) == 20
    assert all((cells - 1 - x, y) in found for found in chosen.values() for x, y in found)
    assert len({tuple(found) for found in chosen.values()}) > cells / 2  # Not the same places for every object.
    if cells == 4:
        assert chosen["circle", "red"] == [(1, 3), (2, 3)]  # On every machine.


def test_the_order_of_objects_does_not_decide_the_split() -> None:
    for record in _records(EASY, "validation"):
        boxes = [(thing, thing["box"]) for thing in record.meta["objects"]]
        things = [Thing(t["shape"], t["color"], (b[0] + b[2]) / 2, (b[1] + b[3]) / 2, 13.76) for t, b in boxes]
        assert for_validation(EASY, things) and for_validation(EASY, things[::-1])


def test_too_few_scenes_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes_source, "for_validation", lambda options, things: False)
    assert ShapesSource(EASY).record("train", 0)
    with pytest.raises(UserError, match="no single_object scene for 'validation'; raise cells"):
        ShapesSource(EASY).record("validation", 0)


def _requirement(task: str, *include: tuple[str, str | None, int], relation: str | None = None) -> dict[str, Any]:
    items = [{"shape": shape, "color": color, "count": count} for shape, color, count in include]
    return {"task": task, "include": items, "relation": relation}


@pytest.mark.parametrize(
    ("requirement", "caption"),
    [
        (_requirement("single_object", ("circle", None, 1)), "a circle"),
        (_requirement("two_object", ("circle", None, 1), ("square", None, 1)), "a circle and a square"),
        (_requirement("counting", ("cross", None, 3)), "three crosses"),
        (_requirement("colors", ("star", "orange", 1)), "an orange star"),
        (
            _requirement("position", ("circle", None, 1), ("heart", None, 1), relation="left"),
            "a circle left of a heart",
        ),
        (_requirement("color_attr", ("circle", "red", 1), ("square", "blue", 1)), "a red circle and a blue square"),
    ],
)
def test_captions(requirement: dict[str, Any], caption: str) -> None:
    assert caption_of(requirement) == caption


def test_eval_prompts_cover_each_task_and_keep_novel_pairs_apart() -> None:
    prompts = eval_prompts(EASY, per_task=20, seed=3)
    assert [task for task, _, _ in prompts] == [task for task in TASKS for _ in range(20)]
    assert eval_prompts(EASY, per_task=5, seed=3)[:5] == prompts[:5]
    assert json.loads(json.dumps(prompts[0][2])) == prompts[0][2]
    pairs = [f"{color} {shape}" for color, shape in EASY.held_out()]
    assert not any(pair in caption for _, caption, _ in prompts for pair in pairs)
    novel = eval_prompts(EASY, per_task=20, seed=3, novel=True)
    assert [task for task, _, _ in novel] == ["colors"] * 20 + ["color_attr"] * 20
    assert all(any(pair in caption for pair in pairs) for _, caption, _ in novel)


def test_coverage_of_a_rectangle_is_its_area_in_each_pixel() -> None:
    points = np.array([[1.0, 0.5], [2.5, 0.5], [2.5, 2.0], [1.0, 2.0]])
    expected = np.array([[0.0, 0.5, 0.25, 0.0], [0.0, 1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(coverage(points, 3, 4), expected, atol=0.13)


def test_a_scene_shows_its_colours_where_its_objects_stand() -> None:
    things = [Thing("square", "red", 8.0, 8.0, 10.0), Thing("circle", "blue", 24.0, 20.0, 12.0)]
    image = draw_scene(32, things, "plain", np.random.default_rng(0))
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert tuple(image[8, 8]) == PALETTE["red"] and tuple(image[20, 24]) == PALETTE["blue"]
    assert image[28, 4].min() > 230
    red = np.all(image == PALETTE["red"], axis=-1).sum()
    assert red == pytest.approx((0.88 * 10.0) ** 2, rel=0.2)


def test_up_to_eight_are_counted_in_words() -> None:
    options = dataclasses.replace(JITTER, cells=3, most=8, tasks=("counting",), train=70)
    records = _records(options, "train")
    assert {record.meta["task"] for record in records} == {"counting"}
    counts = Counter(len(record.meta["objects"]) for record in records)
    assert set(counts) == set(range(2, 9))
    words = ("two", "three", "four", "five", "six", "seven", "eight")
    for record in records:
        (wanted,) = record.meta["require"]["include"]
        assert len(record.meta["objects"]) == wanted["count"]
        assert f"{words[wanted['count'] - 2]} {wanted['shape']}" in record.captions[0]


def test_a_task_that_stands_twice_has_twice_as_many_scenes() -> None:
    options = dataclasses.replace(EASY, tasks=("position", "counting", "position"))
    for split in ("train", "validation"):
        tasks = Counter(record.meta["task"] for record in _records(options, split))
        assert tasks["position"] == 2 * tasks["counting"] and len(tasks) == 2
    assert {record.meta["task"] for record in _records(options, "novel")} == {"colors", "color_attr"}


def test_images_decode_at_the_asked_size() -> None:
    assert _pixels(ShapesSource(HARD).record("novel", 3).image).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"placement": "grid"}, "placement is 'grid'"),
        ({"ground": "grass"}, "ground is 'grass'"),
        ({"cells": 1}, "cells is 1"),
        ({"cells": 2, "most": 5}, "5 objects need at least 3"),
        ({"most": 9}, "most is 9; it must be from 2 to 8"),
        ({"tasks": ("counting", "left")}, "tasks is .*; name some out of"),
        ({"tasks": ()}, "tasks is"),
        ({"object_size": (0.9, 0.5)}, "object_size"),
        ({"image_size": 16}, "raise image_size"),
        ({"image_size": 2**62}, "at most 4096"),
        ({"image_size": 256, "cells": 16}, "lower cells"),
        ({"object_size": (0.95, 0.95)}, "lower object_size"),
        ({"shapes": ("circle", "blob")}, "known are"),
        ({"colors": ("red", "blue")}, "at least 3"),
        ({"train": -1}, "must not be negative"),
    ],
)
def test_impossible_options_say_what_to_do(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        dataclasses.replace(EASY, **changes)


def test_unknown_split_index_and_novel_task() -> None:
    source = ShapesSource(EASY)
    with pytest.raises(UserError, match="no split 'test'"):
        source.size("test")
    with pytest.raises(UserError, match="no number 60"):
        source.record("validation", 60)
