"""Figures of routing against plain loops, and what they say where there is nothing to say."""

import math

import numpy as np
import pytest

from ec_dit.maps import figures
from ec_dit.maps.foreground import MASKS, share_of_patches


def loops(count_S, object_S):
    """All figures of one block and evaluation, token by token."""
    tokens, total = len(count_S), sum(count_S)
    entropy = -sum(n / total * math.log(n / total) for n in count_S if n)
    apart = sum(abs(a - b) for a in count_S for b in count_S)
    on = [n for n, share in zip(count_S, object_S, strict=True) if share > 0.5]
    off = [n for n, share in zip(count_S, object_S, strict=True) if share == 0]
    return {
        "experts": total / tokens,
        "untaken": sum(n == 0 for n in count_S) / tokens,
        "most": max(count_S),
        "evenness": entropy / math.log(tokens),
        "concentration": apart / (2 * tokens * total),  # Gini: the mean difference over twice the mean
        "object": sum(on) / len(on),
        "ground": sum(off) / len(off),
        "object_over_ground": sum(on) / len(on) / (sum(off) / len(off)),
    }


def test_figures_equal_loops_over_tokens():
    rng = np.random.default_rng(0)
    count_LUYX = rng.integers(0, 5, (2, 3, 4, 5))
    object_YX = rng.choice([0.0, 0.3, 0.9], (4, 5))
    found = figures.of_picture(count_LUYX, object_YX)
    assert found.keys() == figures.FIGURES.keys()
    for layer in range(2):
        for evaluation in range(3):
            wanted = loops(count_LUYX[layer, evaluation].ravel().tolist(), object_YX.ravel().tolist())
            for name, value in wanted.items():
                assert found[name][layer, evaluation] == pytest.approx(value, rel=1e-12), name


def test_even_and_uneven_compute():
    even, one = np.full((1, 1, 2, 2), 2), np.array([[[[8, 0], [0, 0]]]])
    assert figures.of_picture(even)["evenness"] == pytest.approx(1) and figures.of_picture(even)["concentration"] == 0
    assert figures.of_picture(one)["evenness"] == 0 and figures.of_picture(one)["concentration"] == pytest.approx(0.75)


def test_what_cannot_be_told_is_nan():
    none = figures.of_picture(np.zeros((1, 1, 2, 2), int), np.zeros((2, 2)))
    assert none["untaken"] == 1 and none["experts"] == 0
    for name in ("evenness", "concentration", "object", "object_over_ground"):
        assert np.isnan(none[name]).all(), name
    assert "object" not in figures.of_picture(np.ones((1, 1, 2, 2), int))


def test_means_and_errors_are_over_the_pictures_that_have_a_figure():
    values = [1.0, 4.0, math.nan, 7.0]
    spread = figures.over_pictures([{"object": np.array([[value]])} for value in values])["object"]
    assert spread.mean_LU == pytest.approx(4) and spread.pictures == 3
    assert spread.standard_error_LU == pytest.approx(3 / math.sqrt(3))
    single = figures.over_pictures([{"object": np.array([[2.0]])}])["object"]
    assert np.isnan(single.standard_error_LU).all() and single.mean_LU == 2


def test_words_find_the_expert_that_works_on_them():
    rng = np.random.default_rng(1)
    captions = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("star", "heart")] * 10
    gate_NLE = rng.uniform(0.9, 1.1, (len(captions), 2, 3))
    for number, caption in enumerate(captions):
        gate_NLE[number, 0, 1] += 2 * ("heart" in caption)
        gate_NLE[number, 1, 2] += 1 * ("red" in caption)
    found = figures.words(gate_NLE, [5, 7], captions)
    first = {(lift.block, lift.expert): lift for lift in reversed(found)}
    assert first[5, 1].word == "heart" and first[7, 2].word == "red"
    share = gate_NLE / gate_NLE.sum(-1, keepdims=True)
    with_it = ["heart" in caption for caption in captions]
    assert first[5, 1].lift == pytest.approx(share[with_it, 0, 1].mean() / share[:, 0, 1].mean())
    assert first[5, 1].pictures == 20 and "a" not in {lift.word for lift in found}  # in all captions


def test_objects_of_patches():
    mask_YX = np.zeros((4, 6), bool)
    mask_YX[:2, :3] = True
    mask_YX[3, 5] = True
    np.testing.assert_allclose(share_of_patches(mask_YX, 2, 2), [[1, 0], [0, 1 / 6]])


@pytest.mark.parametrize("ground", ["plain", "textured"])
def test_objects_of_the_shapes_world_are_found(ground):
    from ec_dit.preparation.drawing.shapes_draw import OUTLINES, Thing, coverage, draw_scene

    things = [Thing("star", "yellow", 20.0, 22.0, 22.0), Thing("circle", "purple", 46.0, 44.0, 18.0)]
    image = draw_scene(64, things, ground, np.random.default_rng(2))
    wanted = np.zeros((64, 64), bool)
    for thing in things:
        wanted |= coverage(OUTLINES[thing.shape] * thing.size / 2 + np.array([thing.x, thing.y]), 64, 64) > 0.5
    assert np.mean(MASKS["shapes"](image) != wanted) < 0.002


def test_what_is_not_white_is_an_emoji():
    image = np.full((2, 2, 3), 255, np.uint8)
    image[0, 1] = (255, 240, 255)
    assert MASKS["emoji"](image).tolist() == [[False, True], [False, False]] and MASKS["icons"] is MASKS["emoji"]
