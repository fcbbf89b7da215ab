"""Colours by CLIP: embedders of known geometry, in which the right colour is known, and sentences pull to different sides."""

import numpy as np
import pytest

from ec_dit.judges.clip_colours import ClipColours, cut_out
from ec_dit.judges.detections import Detection

PIXELS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Embedders:
    """Pictures become their mean colour, texts the colour that they name, each of a length of its own; it counts its work."""

    def __init__(self):
        self.pictures, self.texts = [], []

    def images(self, images):
        self.pictures += images
        return np.stack([(1 + i) * image.mean((0, 1)) for i, image in enumerate(images)])

    def sentences(self, texts):
        self.texts += texts
        return np.stack(
            [
                (1 + i) * np.array(next(rgb for name, rgb in PIXELS.items() if name in text), float)
                for i, text in enumerate(texts)
            ]
        )


def picture():
    """12 x 16: red on the left, blue on the right, a green square in the middle of the red."""
    image = np.zeros((12, 16, 3), np.uint8)
    image[:, :8], image[:, 8:] = PIXELS["red"], PIXELS["blue"]
    image[4:8, 2:6] = PIXELS["green"]
    return image


def boxed(left, top, right, bottom, masked=True):
    mask = np.zeros((12, 16), bool)
    mask[top:bottom, left:right] = True
    return Detection((float(left), float(top), float(right), float(bottom)), 1.0, mask if masked else None)


def test_colours_are_those_of_the_objects():
    made = Embedders()
    colours = ClipColours(made.images, made.sentences, tuple(PIXELS))
    found = colours(picture(), [boxed(2, 4, 6, 8), boxed(8, 0, 16, 12), boxed(0, 0, 8, 3)], "cup")
    assert found == ["green", "blue", "red"]
    assert [image.shape for image in made.pictures] == [(4, 4, 3), (12, 8, 3), (3, 8, 3)]
    assert colours(picture(), [], "cup") == []


def test_pixels_outside_the_mask_are_grey_and_a_box_without_one_is_cut_out_as_it_is():
    image = picture()
    found = boxed(1, 3, 7, 9)
    found.mask[4:8, 2:6] = False  # a frame round the green square
    cut = cut_out(image, found)
    expected = np.empty((6, 6, 3), np.uint8)
    expected[:] = PIXELS["red"]
    expected[1:5, 1:5] = 153
    np.testing.assert_array_equal(cut, expected)
    assert cut.dtype == np.uint8
    np.testing.assert_array_equal(cut_out(image, boxed(1, 3, 7, 9, masked=False)), image[3:9, 1:7])
    np.testing.assert_array_equal(image, picture())


def test_the_mask_decides_where_the_box_would_mislead():
    """Most of the box is red, of the mask green."""
    mask = np.zeros((12, 16), bool)
    mask[4:8, 2:6] = True
    whole = Detection((0.0, 0.0, 8.0, 12.0), 1.0, mask)
    made = Embedders()
    colours = ClipColours(made.images, made.sentences, tuple(PIXELS))
    assert colours(picture(), [whole], "cup") == ["green"]
    assert colours(picture(), [Detection(whole.box, 1.0)], "cup") == ["red"]


def test_texts_of_a_class_are_embedded_once():
    made = Embedders()
    colours = ClipColours(made.images, made.sentences, ("red", "blue"))
    for name in ("cup", "cup", "tv remote", "cup"):
        assert colours(picture(), [boxed(8, 0, 16, 12)], name) == ["blue"]
    assert made.texts == [
        text
        for name in ("cup", "tv remote")
        for colour in ("red", "blue")
        for text in (
            f"a photo of a {colour} {name}",
            f"a photo of a {colour}-colored {name}",
            f"a photo of a {colour} object",
        )
    ]


def test_colours_are_geneval_s_ten_where_nothing_else_is_said():
    asked = []

    def sentences(texts):
        asked.extend(texts)
        return np.eye(len(texts), 10) + np.repeat(np.eye(10), 3, axis=0)

    colours = ClipColours(lambda images: np.eye(10)[[9, 0]], sentences)
    assert colours(picture(), [boxed(0, 0, 8, 8)] * 2, "cup") == ["white", "red"]
    assert asked[2::3] == [
        f"a photo of a {colour} object"
        for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
    ]


def test_sentences_weigh_the_same_and_colours_too():
    """Embeddings are normalised before they are averaged, and their mean again.

    One long sentence of 'left' would otherwise pull its mean over the picture's direction; the mean of 'wide', whose sentences
    disagree, is short and would lose.
    """

    def at(degrees, length=1.0):
        return [length * np.cos(np.radians(degrees)), length * np.sin(np.radians(degrees))]

    def of(texts, picture_at):
        colours = ClipColours(lambda images: np.array([at(picture_at)]), lambda _: np.array(texts), ("one", "two"))
        return colours(picture(), [boxed(0, 0, 8, 8)], "cup")

    # Means at 20 and at 60 degrees. Weighed by its length, the first would lie at 57 degrees, nearer to the picture.
    assert of([at(0), at(0), at(60, 50.0), at(60), at(60), at(60)], 56) == ["two"]
    assert of([at(0), at(0), at(60, 50.0), at(90), at(90), at(90)], 50) == ["one"]
    # Means at 0 degrees, shortened to 0.33 by what disagrees, and at 60.
    assert of([at(90), at(-90), at(0), at(60), at(60), at(60)], 20) == ["one"]


@pytest.mark.parametrize("box", [(2.4, 3.6, 5.5, 7.4), (2.0, 4.0, 6.0, 7.0)])
def test_boxes_are_rounded_to_pixels(box):
    np.testing.assert_array_equal(cut_out(picture(), Detection(box, 1.0)), picture()[4:7, 2:6])
