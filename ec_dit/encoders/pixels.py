"""Pictures as published networks read them: transformers' processors of CLIP and DINOv2, and the resizing of other tools.

All take uint8 pictures (Y, X, 3), may be called on threads, and are equal to the originals pixel for pixel.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ec_dit.core import hub, json_file
from ec_dit.core.download import PROCESSOR
from ec_dit.core.errors import UserError

_KINDS = (
    *("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor"),
    *("BitImageProcessor", "BitImageProcessorFast"),
)
_Triple = tuple[float, float, float]
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Processor:
    """Resizes, crops and normalises pictures.

    Attributes:
        shorter: pixels of the shorter side after resizing, which is bicubic and antialiased.
        crop: pixels of a side of the central square that is kept.
        mean, std: of the channels, in values that `scale` brings from 0..255 to 0..1.
    """

    shorter: int = 224
    crop: int = 224
    mean: _Triple = _CLIP_MEAN
    std: _Triple = _CLIP_STD
    scale: float = 1 / 255

    @classmethod
    def load(cls, path: str | Path, otherwise: "Processor | None" = None) -> "Processor":
        """Reads preprocessor_config.json of a published folder, or of the folder that a file lies in.

        Args:
            otherwise: what holds where there is no such file; None: there must be.

        Raises:
            UserError: if the file is missing or damaged, or asks for what is not supported.
        """
        file = hub.folder_of(hub.local(path)) / PROCESSOR
        if otherwise is not None and not file.is_file():
            return otherwise
        with hub.interpreted(str(file)):
            return cls.from_config(hub.read_json(file), str(file))

    @classmethod
    def from_config(cls, found: Mapping[str, Any], where: str) -> "Processor":
        """Reads the processor that a preprocessor_config.json, which comes from `where`, describes.

        Values that may be missing there are those of transformers' processor of CLIP, which it also uses for DINOv2.

        Raises:
            UserError: naming what is not supported, or damaged.
        """
        hub.supported(
            found,
            where,
            image_processor_type=_KINDS,
            feature_extractor_type=_KINDS,
            do_resize=True,
            do_center_crop=True,
            do_rescale=True,
            do_normalize=True,
            do_pad=(False, None),
            resample=int(Image.Resampling.BICUBIC),
        )
        shorter = _side(found, where, "size", "shortest_edge")
        crop = _side(found, where, "crop_size", "height", "width")
        if crop > shorter:
            raise UserError(
                f"{where}: crop_size is {crop}; supported: up to size, {shorter}, so that nothing is padded."
            )
        mean = _triple(found, where, "image_mean", _CLIP_MEAN)
        std = _triple(found, where, "image_std", _CLIP_STD)
        scale = hub.fields(found, where, rescale_factor=1 / 255)["rescale_factor"]
        if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in (*std, scale)):
            raise UserError(f"{where}: image_std {std} or rescale_factor {scale} is not above 0. {hub.AGAIN}")
        return cls(shorter, crop, mean, std, scale)

    def __call__(self, image_YXZ: np.ndarray) -> np.ndarray:
        """Makes float32 (crop, crop, 3) of a uint8 picture (Y, X, 3)."""
        picture = Image.fromarray(image_YXZ)
        short = min(picture.size)
        target = (self.shorter * picture.width // short, self.shorter * picture.height // short)
        resized_YXZ = np.asarray(picture.resize(target, Image.Resampling.BICUBIC))
        left, top = ((side - self.crop) // 2 for side in target)
        kept_YXZ = resized_YXZ[top : top + self.crop, left : left + self.crop]
        # Rounded where transformers rounds.
        scaled_YXZ = (kept_YXZ.astype(np.float64) * self.scale).astype(np.float32)
        return (scaled_YXZ - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


CLIP = Processor()
DINO = Processor(shorter=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def clean(image_YXZ: np.ndarray, size: int) -> np.ndarray:
    """Resizes a uint8 picture (Y, X, 3) to float32 (size, size, 3) in 0..255 as clean-fid does, whatever its aspect.

    Each channel is resampled in floats (Pillow's antialiased bicubic filter), clipped, and not rounded to whole numbers.
    Source: Parmar, Zhang and Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR 2022.
    """
    channels = [Image.fromarray(channel) for channel in np.moveaxis(image_YXZ, 2, 0).astype(np.float32, order="C")]
    resized = [np.asarray(channel.resize((size, size), Image.Resampling.BICUBIC)) for channel in channels]
    return np.stack(resized, axis=2).clip(0, 255)


def bilinear(image_YXZ: np.ndarray, size: int, *, divisor: float = 1) -> np.ndarray:
    """Resizes a picture (Y, X, Z), uint8 or float32, to float32 (size, size, Z) as torch's F.interpolate does in mode 'bilinear'.

    Without align_corners and antialias: between the four nearest pixels, whose centres lie on halves, edges repeated. Pixels are
    divided by `divisor` first.
    """
    rows, columns, depth = image_YXZ.shape
    (low_Y, high_Y, weight_Y), (low_X, high_X, weight_X) = (_neighbours(side, size) for side in (rows, columns))
    one, weight_Y1, weight_X = np.float32(1), weight_Y[:, None], np.repeat(weight_X, depth)
    # Of a row's pixels all channels, one behind the other.
    low_X, high_X = ((index[:, None] * depth + np.arange(depth)).ravel() for index in (low_X, high_X))
    wide = columns * depth
    pixels = np.divide(image_YXZ.reshape(rows, wide), np.float32(divisor), out=_scratch("pixels", rows, wide))
    above = np.take(pixels, low_Y, axis=0, out=_scratch("above", size, wide), mode="clip")
    below = np.take(pixels, high_Y, axis=0, out=_scratch("below", size, wide), mode="clip")
    above *= one - weight_Y1
    below *= weight_Y1
    above += below
    out_YX = above.take(low_X, axis=1)
    right = np.take(above, high_X, axis=1, out=_scratch("right", size, size * depth), mode="clip")
    out_YX *= one - weight_X
    right *= weight_X
    out_YX += right
    return out_YX.reshape(size, size, depth)


_held = threading.local()


def _scratch(name: str, *shape: int) -> np.ndarray:
    """Memory of this thread, used again: what is new from the system costs several times what is computed in it."""
    array: np.ndarray | None = getattr(_held, name, None)
    if array is None or array.shape != shape:
        array = np.empty(shape, np.float32)
        setattr(_held, name, array)
    return array


def centres(side: int, size: int) -> np.ndarray:
    """Computes where the centres of `size` pixels lie among `side` pixels, counted from the first one's, as torch does.

    Float32 is rounded once, since torch's programs multiply and add in one: at a whole number another pixel comes next.
    """
    scale = np.float32(side) / np.float32(size)
    return (np.float64(scale) * (np.arange(size) + 0.5) - 0.5).astype(np.float32)


def _neighbours(side: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `size` pixels the nearest of `side` before and behind it, and the float32 weight of the latter."""
    at = np.maximum(centres(side, size), 0)
    low = np.minimum(at.astype(np.int64), side - 1)
    return low, np.minimum(low + 1, side - 1), np.clip(at - low.astype(np.float32), 0, 1)


def _side(found: Mapping[str, Any], where: str, key: str, *names: str) -> int:
    """A size of equal sides: an object of the sides' names, or, in files from before 2023, one number."""
    value = found.get(key, 224)
    sides = {name: side for name, side in value.items() if side is not None} if isinstance(value, dict) else None
    sides = dict.fromkeys(names, value) if sides is None else sides
    if sides.keys() != set(names):
        raise UserError(f"{where}: {key} gives {', '.join(sides) or 'nothing'}; supported: {', '.join(names)}.")
    first, *others = hub.fields(sides, f"{where}, {key}", **dict.fromkeys(names, int)).values()
    if any(other != first for other in others):
        raise UserError(f"{where}: {key} is {value}; supported: squares.")
    return first


def _triple(found: Mapping[str, Any], where: str, key: str, default: _Triple) -> _Triple:
    """A number for each channel."""
    with json_file.whole(where, hub.AGAIN):
        return json_file.fit(found.get(key, default), tuple[float, float, float], key)
