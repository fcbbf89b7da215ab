"""Colours as sRGB has them, by the ICC profile that a picture carries: wide-gamut photos, inks, greys of another curve."""

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # of profiles, for the modes of pictures
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
# What both spaces have keeps its colour exactly; black stays black where inks cannot reach it.
_INTENT, _FLAGS = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
_GREYS = np.arange(256, dtype=np.uint8)[None]
_SIDE = np.arange(0, 256, 15, dtype=np.uint8)
_COLOURS = np.stack(np.meshgrid(_SIDE, _SIDE, _SIDE), -1).reshape(1, -1, 3)
_SAME = 1  # of 255: what a profile has to change at least, somewhere, to be another one than sRGB


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts a picture of any mode to RGB, its colours by `profile`; transparency is dropped.

    A profile that is damaged, or of other channels than the picture's, is passed over. One of colours also serves greys.
    """
    own = {"CMYK": "CMYK", "L": "L", "LA": "L", "1": "L"}.get(image.mode, "RGB")
    for mode in dict.fromkeys((own, "RGB") if own == "L" else (own,)):
        if profile and (change := _change(profile, mode)):
            return change(image.convert(mode))
    return image.convert("RGB")


@functools.lru_cache(maxsize=16)
def _change(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """From a picture of `mode` to RGB; None where it would do nothing, or cannot be done."""
    flags = (
        _FLAGS | ImageCms.Flags.NOOPTIMIZE if mode == "L" else _FLAGS
    )  # else dark greys of a steep curve are guessed
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if given.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.ImageCmsTransform(given, _SRGB, mode, "RGB", _INTENT, flags=flags)
    except Exception:  # noqa: BLE001 - the library raises several kinds; the pixels are as good as without a profile
        return None
    if mode == "CMYK":
        return transform.apply
    probe = Image.fromarray(_GREYS if mode == "L" else _COLOURS)
    before, after = np.asarray(probe.convert("RGB"), np.int16), np.asarray(transform.apply(probe))
    if np.abs(after - before).max() <= _SAME:  # pictures in sRGB keep their bits
        return None
    if mode == "RGB":
        return transform.apply
    return lambda grey: Image.merge("RGB", [grey.point(after[0, :, channel].tolist()) for channel in range(3)])
