"""Plots of routing hold what they are to show."""

import io

import numpy as np
import pytest
from PIL import Image

from ec_dit.maps import figures

pytestmark = pytest.mark.extra("plots")
BLOCKS, TIMES = [1, 3], [1.0, 0.6, 0.2]


def pixels(figure):
    from ec_dit.maps import drawing

    return np.asarray(Image.open(io.BytesIO(drawing.png(figure))).convert("RGB"))


def test_maps_have_a_row_a_block_and_a_column_a_time():
    from ec_dit.maps import drawing

    rng = np.random.default_rng(0)
    image_YXZ, count_LUYX = rng.integers(0, 255, (8, 8, 3), np.uint8), rng.integers(0, 4, (2, 3, 4, 4))
    figure = drawing.maps("a red <b>circle</b> $\\foo$ \u5f69", image_YXZ, count_LUYX, BLOCKS, TIMES)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 2 * 4
    for row in range(2):
        np.testing.assert_array_equal(panels[4 * row].images[0].get_array(), image_YXZ)
        for column in range(3):
            shown = panels[4 * row + 1 + column].images[0]
            np.testing.assert_array_equal(shown.get_array(), count_LUYX[row, column])
            assert shown.get_clim() == (0, count_LUYX.max())  # one scale for all
    assert [panel.get_title() for panel in panels[1:4]] == ["t = 1.00", "t = 0.60", "t = 0.20"]
    assert panels[4].get_ylabel() == "block 3"
    assert pixels(figure).std() > 10


def test_of_many_blocks_and_times_some_are_shown():
    from ec_dit.maps import drawing

    count_LUYX = np.ones((19, 50, 2, 2))
    figure = drawing.maps("many", np.zeros((4, 4, 3), np.uint8), count_LUYX, range(19), np.linspace(1, 0, 50))
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 8 * 9
    assert [panels[0].get_ylabel(), panels[-9].get_ylabel()] == ["block 0", "block 18"]
    assert [panels[1].get_title(), panels[8].get_title()] == ["t = 1.00", "t = 0.00"]
    drawing.plt.close(figure)


def test_curves_show_means_with_bands_of_two_errors():
    from ec_dit.maps import drawing

    found = [figures.of_picture(np.random.default_rng(i).integers(0, 4, (2, 3, 4, 4))) for i in range(5)]
    spreads = figures.over_pictures(found)
    figure = drawing.curves(spreads, BLOCKS, TIMES)
    first = figure.axes[0]
    for place in range(2):
        np.testing.assert_allclose(first.lines[place].get_ydata(), spreads["concentration"].mean_LU[place])
        band = first.collections[place].get_paths()[0].vertices[:, 1]
        spread = spreads["concentration"]
        assert band.max() == pytest.approx((spread.mean_LU + 2 * spread.standard_error_LU)[place].max())
    assert pixels(figure).std() > 10


def test_an_expert_is_shown_with_the_patches_it_weighs_most():
    from ec_dit.maps import drawing

    images = [np.full((4, 4, 3), 40 * (number + 1), np.uint8) for number in range(3)]
    gate_NYX = np.zeros((3, 2, 2))
    gate_NYX[1, 0, 1], gate_NYX[2, 1, 0], gate_NYX[0, 1, 1] = 0.9, 0.5, 0.1
    strip = drawing._strip(images, gate_NYX)
    assert strip.shape == (6, 8 * 8, 3)
    centres = [strip[2, 8 * place + 2, 0] for place in range(4)]
    assert centres == [80, 120, 40, 255]  # by their gates, then nothing
    assert (
        strip[2, 1, 0] == int(255 + drawing._CONTEXT * (80 - 255)) and strip[0, 2, 0] == 255
    )  # left: the picture; above: none
