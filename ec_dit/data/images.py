"""Encoded bytes to RGB pictures and back: safe decoding, resizing, cropping and the contact sheets people look at.

Pictures are PIL images or uint8 arrays of shape (Y, X, 3); models see float32 in [-1, 1].
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ec_dit.core.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
MAX_ASPECT = 4  # longer side over shorter side, once resized

_INK, _FRAME, _PAPER = (40, 40, 48), (222, 222, 228), (250, 250, 252)


class ImageError(UserError):
    """Bytes that are not a usable picture. The message is the reason, ready for a report."""


class HugeImageError(ImageError):
    """A picture of more pixels than allowed."""


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes PNG, JPEG or WebP bytes to an upright RGB image.

    Transparency is laid over white, 16-bit samples keep their high byte, EXIF orientation is applied, and of an
    animation the first frame is taken. The size is checked before any pixel is decompressed.

    Raises:
        HugeImageError: more than `max_pixels` pixels.
        ImageError: not one of these formats, damaged or cut short.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise HugeImageError(f"huge: {image.width}x{image.height} is more than {max_pixels:,} pixels")
        image.load()
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise HugeImageError(f"huge: more than {max_pixels:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("not a PNG, JPEG or WebP image") from error
    except Exception as error:  # Decoders raise anything (OSError, SyntaxError, struct.error, ...) on damaged bytes.
        raise ImageError(f"damaged image: {error}") from error
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - damaged EXIF says nothing about the pixels: keep them as they are stored.
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it at 255.
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(grey, 0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def encode_png(image: Image.Image) -> bytes:
    """PNG bytes of `image`, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def resize_shorter(image: Image.Image, size: int) -> Image.Image:
    """Resizes (antialiased) so that the shorter side is `size`, centre-cropping what is longer than MAX_ASPECT."""
    width, height = image.size
    shorter = min(width, height)
    kept = (min(width, MAX_ASPECT * shorter), min(height, MAX_ASPECT * shorter))
    return _resample(image, kept, (round(kept[0] * size / shorter), round(kept[1] * size / shorter)))


def shrink(image: Image.Image, data: bytes, size: int) -> bytes:
    """Encodes `image`, which was decoded from `data`, with a shorter side of at most `size` pixels.

    Where it is no longer than that, `data` itself; else PNG where `data` are, and JPEG where not.
    """
    if min(image.size) <= size:
        return data
    small = resize_shorter(image, size)
    if data.startswith(b"\x89PNG"):
        return encode_png(small)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def fit(image: Image.Image, shape: tuple[int, int]) -> np.ndarray:
    """The largest central part of that aspect ratio, resized (antialiased) to uint8 (*shape, 3). `shape` is (Y, X)."""
    (width, height), (rows, columns) = image.size, shape
    wide = width * rows > height * columns
    kept = (height * columns / rows, height) if wide else (width, width * rows / columns)
    return np.asarray(_resample(image, kept, (columns, rows)))


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The central square, resized (antialiased) to uint8 (size, size, 3)."""
    return fit(image, (size, size))


def _resample(image: Image.Image, kept: tuple[float, float], target: tuple[int, int]) -> Image.Image:
    """Resizes the central part of `kept` pixels, of which each side may end within a pixel."""
    if all(a == b == c for a, b, c in zip(kept, image.size, target, strict=True)):
        return image
    left, top = ((side - part) / 2 for side, part in zip(image.size, kept, strict=True))
    box = (left, top, left + kept[0], top + kept[1])
    return image.resize(target, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def random_crop(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A uniformly placed (size, size, 3) window of `pixels` (Y, X, 3), whose sides are at least `size`."""
    top = int(rng.integers(pixels.shape[0] - size + 1))
    left = int(rng.integers(pixels.shape[1] - size + 1))
    return pixels[top : top + size, left : left + size]


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] (clipped) to the nearest uint8; NaN becomes mid-grey."""
    values = np.nan_to_num(np.asarray(values, np.float32), nan=0.0)
    return np.clip(np.round((values + 1) * 127.5), 0, 255).astype(np.uint8)


def to_pil(image: Image.Image | np.ndarray) -> Image.Image:
    """A PIL RGB image from one, from uint8 (Y, X, 3) or from float (Y, X, 3) in [-1, 1]."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    return Image.fromarray(array if array.dtype == np.uint8 else to_uint8(array))


def contact_sheet(
    images: Sequence[Image.Image | np.ndarray] | np.ndarray,
    captions: Sequence[str] | None = None,
    columns: int = 8,
    smooth: bool = False,
) -> Image.Image:
    """Lays pictures out in rows, each with its caption beneath, enlarged until cells are at least 128 pixels wide.

    Args:
        images: what `to_pil` takes, of any sizes; all get the cell of the largest.
        captions: one text per picture, wrapped to at most four lines; None leaves the space out.
        columns: pictures per row, at most.
        smooth: enlarge by Lanczos instead of showing the pixels as they are.
    """
    pictures = [to_pil(image) for image in images]
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"{len(captions)} captions for {len(pictures)} pictures")
    widest, tallest = (max(p.size[axis] for p in pictures) for axis in (0, 1))
    scale = max(1, -(-128 // widest))
    filter_ = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    pictures = [p.resize((p.width * scale, p.height * scale), filter_) for p in pictures]
    cell_x, cell_y = widest * scale, tallest * scale
    columns = max(1, min(columns, len(pictures)))

    gap = max(8, cell_x // 16)
    font = ImageFont.load_default(min(20, max(11, cell_x // 11)))
    line = math.ceil(font.getbbox("Åg")[3]) + 2
    texts = [_wrap(text, font, cell_x) for text in captions or [""] * len(pictures)]
    row_lines = [max(map(len, texts[i : i + columns])) for i in range(0, len(texts), columns)]
    row_y = [cell_y + gap + (lines * line + 5 if lines else 0) for lines in row_lines]

    sheet = Image.new("RGB", (columns * (cell_x + gap) + gap, sum(row_y) + gap), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
        x = gap + (i % columns) * (cell_x + gap)
        y = gap + sum(row_y[: i // columns])
        draw.rectangle((x - 1, y - 1, x + cell_x, y + cell_y), outline=_FRAME)
        sheet.paste(picture, (x + (cell_x - picture.width) // 2, y + (cell_y - picture.height) // 2))
        for j, text in enumerate(lines):
            draw.text((x + cell_x / 2, y + cell_y + 5 + j * line), text, _INK, font, anchor="ma")
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, max_lines: int = 4) -> list[str]:
    """Breaks `text` at spaces (inside a word where it must) into lines of at most `width` pixels."""
    lines, current = [], ""
    for word in text.split():
        joined = f"{current} {word}".strip()
        if current and font.getlength(joined) > width:
            lines.append(current)
            joined = word
        while font.getlength(joined) > width and len(joined) > 1:
            fits = next(n for n in range(len(joined) - 1, 0, -1) if n == 1 or font.getlength(joined[:n]) <= width)
            lines.append(joined[:fits])
            joined = joined[fits:]
        current = joined
    lines = [*lines, current] if current else lines
    if len(lines) > max_lines:
        lines = lines[:max_lines]
        while lines[-1] and font.getlength(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    return lines
