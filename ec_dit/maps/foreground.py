"""Which part of a picture shows objects, where its world is known: the ground of what this package draws is pale or white."""

from collections.abc import Callable

import numpy as np

from ec_dit.evaluators.shapes.vision import object_mask

_WHITE = 245  # emoji and icons stand on white; a pixel with a darker channel is theirs
Mask = Callable[[np.ndarray], np.ndarray]  # uint8 RGB (rows, columns, 3) -> bool (rows, columns)


def _not_white(image: np.ndarray) -> np.ndarray:
    return np.asarray(image.min(-1) < _WHITE)


MASKS: dict[str, Mask] = {"shapes": object_mask, "emoji": _not_white, "icons": _not_white}  # by a data set's source


def share_of_patches(mask_YX: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Gives the share of each patch that a mask of pixels covers, (rows, columns)."""
    height, width = mask_YX.shape[0] // rows, mask_YX.shape[1] // columns
    return mask_YX.reshape(rows, height, columns, width).mean((1, 3))
