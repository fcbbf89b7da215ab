"""Encoded bytes to RGB pictures and back: safe decoding, resizing and cropping.

Pictures are PIL images or uint8 arrays of shape (Y, X, 3); models see float32 in [-1, 1].
"""

import contextlib
import importlib.util
import io
import re
import warnings

import numpy as np
from PIL import Image, ImageOps

from ec_dit.core.errors import UserError
from ec_dit.data import png, profiles, signatures
from ec_dit.data.room import Room

FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
if importlib.util.find_spec("PIL.AvifImagePlugin"):  # of Pillow 11.3 and later
    FORMATS += ("AVIF",)
MAX_PIXELS = 64_000_000
MAX_ASPECT = 4  # longer side over shorter side, once resized

_STRIP = 2**20  # pixels that are converted at a time
_ROOM = Room(2 * MAX_PIXELS)
# What the C library takes in pieces of over 32 MiB it gives back when they are freed, whichever thread does it.
Image.core.set_block_size(2**26)
_PILLOW = re.compile(r"PIL\.")
_STORED = re.compile(rb"\x89PNG|\xff\xd8|RIFF.{4}WEBP", re.DOTALL)  # formats that a data set holds
_LOSSY = re.compile(rb"\xff\xd8|RIFF.{4}WEBP|.{4}ftyp|.{4}jP  |\xff\x4f", re.DOTALL)


class ImageError(UserError):
    """Bytes that are not a usable picture. The message is the reason, ready for a report."""


class HugeImageError(ImageError):
    """A picture of more pixels than allowed."""


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes bytes in one of FORMATS to an upright RGB image in the colours of sRGB.

    ICC profiles are applied, transparency is laid over white, 16-bit samples keep their high byte, EXIF orientation is applied,
    and of an animation the first frame is taken. The size is checked before any pixel is decompressed. Metadata that is damaged
    or long is passed over. Where several threads decode, hold `room_for` the picture as long as it is used.

    Raises:
        HugeImageError: more than `max_pixels` pixels.
        ImageError: not one of these formats, damaged or cut short.
    """
    _quiet()
    data, profile = png.essence(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise HugeImageError(f"huge: {image.width}x{image.height} is more than {max_pixels:,} pixels")
        if image.mode == "F":
            raise ImageError("pixels of floats: nobody tells which is white")
        image.load()
        _find_transparency(image, data)
        with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels: keep them as they are stored
            ImageOps.exif_transpose(image, in_place=True)
        rgb = _to_rgb(image, profile or image.info.get("icc_profile"))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise HugeImageError(f"huge: more than {max_pixels:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        known = signatures.is_picture(data[: signatures.HEAD])
        raise ImageError("damaged image: no more than its beginning is there" if known else "not a picture") from error
    except Exception as error:  # Decoders raise anything (OSError, SyntaxError, struct.error, ...) on damaged bytes.
        raise ImageError(f"damaged image: {error}") from error
    rgb.info = {}  # applied; a writer would store it again
    return rgb


def room_for(data: bytes) -> contextlib.AbstractContextManager[None]:
    """Waits until the picture that `data` hold may be decoded, and keeps its room until the block ends.

    All threads of the process together hold twice MAX_PIXELS. Hold one picture at a time in a thread.
    """
    _quiet()
    try:
        if data.startswith(png.SIGNATURE):
            width, height = png.size(data)
        else:
            width, height = Image.open(io.BytesIO(data), formats=FORMATS).size
    except Exception:  # noqa: BLE001 - `decode` will say what is wrong
        width = height = 0
    return _ROOM.hold(width * height)


def _quiet() -> None:
    """Silences Pillow's warnings: they tell of metadata, do not name the file, and what is lost in pixels is an error."""
    if ("ignore", None, Warning, _PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def _find_transparency(image: Image.Image, data: bytes) -> None:
    """Corrects the transparent colour of a PNG whose samples Pillow brought to other bits than the file's."""
    if image.format != "PNG" or "transparency" not in image.info:
        return
    bits, kind = png.layout(data)
    if kind == 0 and bits in (2, 4):
        image.info["transparency"] *= 255 // (2**bits - 1)
    elif kind == 2 and bits == 16:
        low = Image.open(io.BytesIO(data), formats=FORMATS)
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]  # reads the other byte of each sample
        colour = np.array(image.info.pop("transparency"))
        alpha = Image.new("L", image.size, 255)
        for box in _strips(image):
            high_YXZ, low_YXZ = np.asarray(image.crop(box)), np.asarray(low.crop(box))
            clear_YX = ((high_YXZ == colour >> 8) & (low_YXZ == colour & 255)).all(-1)
            alpha.paste(0, box, Image.fromarray(clear_YX))
        image.putalpha(alpha)


def _strips(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Boxes from top to bottom of about `_STRIP` pixels each."""
    rows = max(1, _STRIP // image.width)
    return [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """In strips, so that no second large picture is held beside the one that is returned."""
    if image.mode == "RGB" and not profile and not image.has_transparency_data:
        return image
    out = image if image.mode == "RGB" else Image.new("RGB", image.size)
    for box in _strips(image):
        out.paste(_over_white(_to_bytes(image.crop(box)), profile), box)
    return out


def _to_bytes(image: Image.Image) -> Image.Image:
    """16-bit greys as 8-bit ones with their transparency, as convert() does not; others as they are."""
    if not image.mode.startswith("I"):
        return image
    grey_YX = np.asarray(image)
    out = Image.fromarray((np.clip(grey_YX, 0, 65535) >> 8).astype(np.uint8))
    if "transparency" in image.info:
        out.putalpha(Image.fromarray(np.where(grey_YX == image.info["transparency"], 0, 255).astype(np.uint8)))
    return out


def _over_white(image: Image.Image, profile: bytes | None) -> Image.Image:
    if not image.has_transparency_data:
        return profiles.to_srgb(image, profile)
    alpha = image.convert("RGBA").getchannel("A")
    rgba = profiles.to_srgb(image, profile)
    rgba.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def encode_png(image: Image.Image) -> bytes:
    """Encodes `image` as PNG, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def resize_shorter(image: Image.Image, size: int) -> Image.Image:
    """Resizes (antialiased) so that the shorter side is `size`, centre-cropping what is longer than MAX_ASPECT."""
    width, height = image.size
    shorter = min(width, height)
    kept = (min(width, MAX_ASPECT * shorter), min(height, MAX_ASPECT * shorter))
    return _resample(image, kept, (round(kept[0] * size / shorter), round(kept[1] * size / shorter)))


def shrink(image: Image.Image, data: bytes, size: int | None) -> bytes:
    """Encodes `image`, which was decoded from `data`, with a shorter side of at most `size` pixels; None sets no limit.

    Where it is no longer than that, and PNG, JPEG or WebP, `data` itself; else JPEG where `data` are of a format that loses
    something, and PNG where not.
    """
    fits = size is None or min(image.size) <= size
    if fits and _STORED.match(data):
        return data
    small = image if size is None or fits else resize_shorter(image, size)
    if not _LOSSY.match(data):
        return encode_png(small)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def fit(image: Image.Image, shape: tuple[int, int]) -> np.ndarray:
    """Cuts out the largest central part of that aspect ratio, resized (antialiased) to uint8 (*shape, 3). `shape` is (Y, X)."""
    (width, height), (rows, columns) = image.size, shape
    wide = width * rows > height * columns
    kept = (height * columns / rows, height) if wide else (width, width * rows / columns)
    return np.asarray(_resample(image, kept, (columns, rows)))


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Cuts out the central square, resized (antialiased) to uint8 (size, size, 3)."""
    return fit(image, (size, size))


def _resample(image: Image.Image, kept: tuple[float, float], target: tuple[int, int]) -> Image.Image:
    """Resizes the central part of `kept` pixels, of which each side may end within a pixel."""
    if all(a == b == c for a, b, c in zip(kept, image.size, target, strict=True)):
        return image
    left, top = ((side - part) / 2 for side, part in zip(image.size, kept, strict=True))
    box = (left, top, left + kept[0], top + kept[1])
    return image.resize(target, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def random_crop(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts out a uniformly placed (size, size, 3) window of `pixels` (Y, X, 3), whose sides are at least `size`."""
    top = int(rng.integers(pixels.shape[0] - size + 1))
    left = int(rng.integers(pixels.shape[1] - size + 1))
    return pixels[top : top + size, left : left + size]


def to_float(pixels: np.ndarray) -> np.ndarray:
    """Converts uint8 to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


GREY = 128  # of a picture whose numbers are not finite


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Converts float in [-1, 1] (clipped) to the nearest uint8; NaN becomes mid-grey."""
    values = np.clip(np.nan_to_num(np.asarray(values, np.float32), nan=0.0), -1, 1)
    return np.round((values + 1) * 127.5).astype(np.uint8)


def to_pil(image: Image.Image | np.ndarray) -> Image.Image:
    """Makes a PIL RGB image from one, from uint8 (Y, X, 3) or from float (Y, X, 3) in [-1, 1]."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    return Image.fromarray(array if array.dtype == np.uint8 else to_uint8(array))
