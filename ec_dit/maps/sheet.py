"""Maps of experts on tokens as a contact sheet, for the pictures that a run leaves while it trains; needs no matplotlib."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ec_dit.core.evenly import evenly
from ec_dit.data.sheet import contact_sheet
from ec_dit.sampling.routes import Routes

_BLOCKS, _TIMES = 4, 7  # of a picture, at most; of more, some at even distances
# cividis at even distances: lightness rises evenly, for every kind of sight
SCALE = np.array(
    [
        (0, 34, 78),
        (0, 49, 112),
        (42, 63, 109),
        (67, 78, 108),
        (87, 93, 109),
        (106, 108, 113),
        (125, 124, 120),
        (145, 139, 120),
        (165, 156, 116),
        (188, 174, 108),
        (210, 192, 96),
        (233, 211, 78),
        (254, 232, 56),
    ],
    np.float64,
)


def colours(share: np.ndarray) -> np.ndarray:
    """Gives a colour, uint8 (..., 3), for each share from 0 to 1: dark to light."""
    places = np.linspace(0, 1, len(SCALE))
    return np.stack([np.interp(share, places, SCALE[:, i]) for i in range(3)], -1).round().astype(np.uint8)


def sheet(routes: Sequence[Routes], prompts: Sequence[str]) -> Image.Image:
    """Lays out pictures with their maps: a row for each sparse block, a column for each time, one scale for all.

    Args:
        routes: of pictures of one size.
        prompts: of each.
    """
    most = max(1, *(int(each.taken_LUYXE.sum(-1).max()) for each in routes))
    tiles, captions = list[np.ndarray | Image.Image](), list[str]()
    columns = 1
    for each, prompt in zip(routes, prompts, strict=True):
        count_LUYX = each.taken_LUYXE.sum(-1)
        size = each.image_YXZ.shape[1::-1]
        times = evenly(len(each.time_U), _TIMES)
        columns = 1 + len(times)
        for row in evenly(len(each.block_L), _BLOCKS):
            tiles.append(each.image_YXZ)
            captions.append(f"block {each.block_L[row]}: {prompt}")
            for at in times:
                tile = Image.fromarray(colours(count_LUYX[row, at] / most))
                tiles.append(tile.resize(size, Image.Resampling.NEAREST))
                captions.append(f"t = {each.time_U[at]:.2f}, 0 to {most}")
    return contact_sheet(tiles, captions, columns=columns)
