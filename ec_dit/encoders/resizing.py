"""How FID's tools bring a picture to the 299 x 299 pixels of its Inception."""

from collections.abc import Callable

import numpy as np

from ec_dit.encoders.inception import SIZE
from ec_dit.encoders.pixels import bilinear, clean


def pytorch_fid(image_YXZ: np.ndarray) -> np.ndarray:
    """Resizes a picture, uint8 (Y, X, 3), as pytorch-fid does: bilinear without antialiasing; float32 in [-1, 1]."""
    out_YXZ = bilinear(image_YXZ, SIZE, divisor=255)
    out_YXZ *= 2
    out_YXZ -= 1
    return out_YXZ


def clean_fid(image_YXZ: np.ndarray) -> np.ndarray:
    """Resizes a picture as clean-fid does: PIL's bicubic, not rounded to whole numbers; float32, (x - 128) / 128."""
    return (clean(image_YXZ, SIZE) - 128) / 128


RESIZES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"pytorch_fid": pytorch_fid, "clean": clean_fid}
