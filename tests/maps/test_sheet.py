"""The sheet of maps that a run leaves while it trains."""

import numpy as np
import pytest

from ec_dit.maps import sheet
from ec_dit.sampling.routes import Routes


def some(seed, blocks=2, evaluations=3, side=4, experts=5):
    rng = np.random.default_rng(seed)
    taken_LUYXE = rng.random((blocks, evaluations, side, side, experts)) < 0.3
    image_YXZ = rng.integers(0, 255, (16, 16, 3), np.uint8)
    return Routes(
        image_YXZ, np.array([1, 3])[:blocks], np.linspace(1, 0.1, evaluations), taken_LUYXE * 0.5, taken_LUYXE
    )


@pytest.mark.extra("plots")
def test_the_scale_is_cividis():
    import matplotlib as mpl

    share = np.linspace(0, 1, 101)
    theirs = mpl.colormaps["cividis"](share)[:, :3] * 255
    assert (
        np.abs(sheet.colours(share).astype(float) - theirs).max() < 7
    )  # straight lines between thirteen of its colours
    light = theirs @ (0.299, 0.587, 0.114)
    assert (np.diff(light) > 0).all()
    assert (np.diff(sheet.colours(share) @ (0.299, 0.587, 0.114)) >= -0.6).all()  # of whole numbers


def test_every_tile_shows_the_experts_of_its_block_and_time(monkeypatch):
    laid = {}
    monkeypatch.setattr(sheet, "contact_sheet", lambda tiles, captions, columns: laid.update(locals()))
    pictures = [some(0), some(1)]
    sheet.sheet(pictures, ["one", "two"])
    tiles, captions = laid["tiles"], laid["captions"]
    assert laid["columns"] == 4 and len(tiles) == len(captions) == 2 * 2 * 4
    most = max(each.taken_LUYXE.sum(-1).max() for each in pictures)
    for number, each in enumerate(pictures):
        for row in range(2):
            at = 4 * (2 * number + row)
            np.testing.assert_array_equal(tiles[at], each.image_YXZ)
            assert captions[at] == f"block {(1, 3)[row]}: {('one', 'two')[number]}"
            for column in range(3):
                count_YX = np.zeros((4, 4))
                for expert in range(5):
                    count_YX += each.taken_LUYXE[row, column, :, :, expert]
                wide = np.repeat(np.repeat(count_YX, 4, 0), 4, 1)
                np.testing.assert_array_equal(np.asarray(tiles[at + 1 + column]), sheet.colours(wide / most))
                assert captions[at + 1 + column] == f"t = {each.time_U[column]:.2f}, 0 to {most}"


def test_of_many_blocks_and_times_some_are_shown():
    rng = np.random.default_rng(0)
    taken_LUYXE = rng.random((9, 30, 2, 2, 3)) < 0.5
    image_YXZ = np.zeros((8, 8, 3), np.uint8)
    routes = Routes(image_YXZ, np.arange(9), np.linspace(1, 0, 30), taken_LUYXE * 1.0, taken_LUYXE)
    picture = sheet.sheet([routes], ["a prompt"])
    assert 8 * 128 < picture.width < 8 * 160 and 4 * 128 < picture.height < 4 * 240
