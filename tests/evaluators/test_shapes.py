"""The shapes scorer: agrees with true images at every difficulty, fails wrong captions, finds objects drawn by hand."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ec_dit.evaluators.shapes.scoring import agrees, check, score
from ec_dit.evaluators.shapes.vision import Found, find_objects
from ec_dit.preparation.drawing.shapes_draw import OUTLINES, PALETTE
from ec_dit.preparation.drawing.shapes_scene import TASKS, ShapesOptions
from ec_dit.preparation.sources.drawn.shapes import ShapesSource

pytestmark = pytest.mark.slow

ALL = ShapesOptions(shapes=tuple(OUTLINES), colors=tuple(PALETTE), ground="textured")
DIFFICULTIES = {
    "cell": ShapesOptions(),
    "tiny": replace(ALL, image_size=32, cells=4, object_size=(0.78, 0.8)),
    "jitter": replace(ALL, image_size=64, placement="jitter", object_size=(0.5, 0.85)),
    "free": replace(ALL, image_size=128, placement="free", object_size=(0.3, 0.9)),
    "free_plain": ShapesOptions(placement="free", object_size=(0.5, 0.9)),
}
Images = list[np.ndarray]


def _truth(options: ShapesOptions, number: int) -> tuple[Images, list[dict[str, Any]]]:
    records = [ShapesSource(options).record("validation", index) for index in range(number)]
    images = [np.asarray(Image.open(io.BytesIO(record.image))) for record in records]
    return images, [dict(record.meta["require"]) for record in records]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in ("jitter", "free"))) for name in DIFFICULTIES]
)
def test_true_images_agree_with_their_captions(name: str) -> None:
    options = DIFFICULTIES[name]
    images, requirements = _truth(options, 300)
    result = score(images, requirements, options.shapes, options.colors)
    assert result["n"] == 300 and tuple(result["tasks"]) == TASKS
    assert min(result["tasks"].values()) >= 0.98
    assert result["mean"] == pytest.approx(np.mean(result["correct"]))


def _noisy(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0.0, 15.0, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _blurred(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.0)))


@pytest.mark.parametrize("spoil", [_noisy, _blurred], ids=["noise", "blur"])
def test_soft_or_noisy_images_still_agree(spoil: Callable[[np.ndarray], np.ndarray]) -> None:
    options = DIFFICULTIES["cell"]
    images, requirements = _truth(options, 120)
    result = score([spoil(image) for image in images], requirements, options.shapes, options.colors)
    assert min(result["tasks"].values()) >= 0.95


def _wrong(requirement: dict[str, Any], options: ShapesOptions) -> dict[str, Any]:
    """The requirement with the attribute that its task is about changed."""

    def following(names: tuple[str, ...], name: str) -> str:
        return names[(names.index(name) + 1) % len(names)]

    items, relation = [dict(item) for item in requirement["include"]], requirement["relation"]
    match requirement["task"]:
        case "single_object":
            items[0]["shape"] = following(options.shapes, items[0]["shape"])
        case "two_object":
            items[1]["shape"] = next(s for s in options.shapes if s not in (items[0]["shape"], items[1]["shape"]))
        case "counting":
            items[0]["count"] = {2: 3, 3: 4, 4: 2}[items[0]["count"]]
        case "colors":
            items[0]["color"] = following(options.colors, items[0]["color"])
        case "position":
            relation = {"left": "right", "right": "left", "above": "below", "below": "above"}[relation]
        case "color_attr":
            items[0]["color"], items[1]["color"] = items[1]["color"], items[0]["color"]
    return requirement | {"include": items, "relation": relation}


def test_images_of_another_caption_fail() -> None:
    options = DIFFICULTIES["cell"]
    images, requirements = _truth(options, 300)
    wrong = [_wrong(requirement, options) for requirement in requirements]
    assert max(score(images, wrong, options.shapes, options.colors)["tasks"].values()) <= 0.02


def test_objects_drawn_by_hand_are_found() -> None:
    """No part of the package draws this picture: a red square, a blue disc and a green triangle on grey."""
    image = np.full((40, 60, 3), 225, np.uint8)
    rows, columns = np.mgrid[0:40, 0:60]
    image[4:14, 5:15] = PALETTE["red"]
    image[(rows - 12.0) ** 2 + (columns - 45.0) ** 2 <= 8.0**2] = PALETTE["blue"]
    image[(rows >= 22) & (rows < 36) & (2.0 * abs(columns - 20.0) <= rows - 22)] = PALETTE["green"]
    disc, triangle, square = sorted(find_objects(image), key=lambda item: str(item.color))
    assert (square.shape, square.color, square.box) == ("square", "red", (5, 4, 15, 14))
    assert (triangle.shape, triangle.color) == ("triangle", "green")
    assert (disc.shape, disc.color) == ("circle", "blue")
    assert disc.centre() == pytest.approx((45.5, 12.5), abs=0.6)
    image[20:30, 40:58:2] = PALETTE["red"]
    assert len(find_objects(image)) > 3


def test_touching_objects_of_two_colours_are_two() -> None:
    image = np.full((32, 32, 3), 240, np.uint8)
    image[10:20, 4:14] = PALETTE["red"]
    image[10:20, 14:24] = PALETTE["blue"]
    assert [(item.shape, item.color) for item in find_objects(image)] == [("square", "red"), ("square", "blue")]


def test_a_colour_or_shape_unlike_any_known_has_no_name() -> None:
    image = np.full((32, 32, 3), 240, np.uint8)
    image[10:20, 4:14] = (90, 40, 20)
    image[10:12, 18:30] = PALETTE["red"]
    image[12:24, 28:30] = PALETTE["red"]
    assert [(item.shape, item.color) for item in find_objects(image)] == [("square", None), (None, "red")]


@pytest.mark.parametrize("value", [0, 128, 240, 255])
def test_an_empty_image_holds_nothing(value: int) -> None:
    assert not find_objects(np.full((24, 24, 3), value, np.uint8))


def _found(shape: str | None, color: str | None, x: int, y: int) -> Found:
    return Found(shape, color, (x - 4, y - 4, x + 4, y + 4))


def test_rules_of_agreement() -> None:
    red_circle, blue_square = _found("circle", "red", 10, 10), _found("square", "blue", 30, 12)
    circle = {"shape": "circle", "color": None, "count": 1}
    square = {"shape": "square", "color": None, "count": 1}

    def want(*include: dict[str, Any], relation: str | None = None) -> dict[str, Any]:
        return {"task": "any", "include": list(include), "relation": relation}

    assert agrees([red_circle], want(circle))
    assert not agrees([], want(circle))
    assert not agrees([red_circle, red_circle], want(circle))
    assert not agrees([red_circle, blue_square], want(circle))
    assert not agrees([red_circle, _found(None, "red", 30, 30)], want(circle))
    assert not agrees([_found("circle", None, 10, 10)], want(circle))
    assert agrees([red_circle, blue_square], want(square, circle))
    assert agrees([red_circle, blue_square], want(circle, square, relation="left"))
    assert agrees([red_circle, blue_square], want(square, circle, relation="right"))
    assert not agrees([red_circle, blue_square], want(circle, square, relation="above"))
    assert not agrees([red_circle, blue_square], want(circle | {"color": "blue"}, square | {"color": "red"}))


def test_noise_alone_satisfies_no_caption() -> None:
    rng = np.random.default_rng(0)
    circle = {"task": "single_object", "include": [{"shape": "circle", "color": None, "count": 1}], "relation": None}
    assert not any(check(rng.integers(0, 256, (48, 48, 3), np.uint8), circle) for _ in range(20))
