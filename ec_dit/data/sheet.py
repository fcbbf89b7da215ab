"""Contact sheets: pictures in rows, each with its caption beneath, for people to look at."""

import bisect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ec_dit.data.images import to_pil

_INK, _FRAME, _PAPER = (40, 40, 48), (222, 222, 228), (250, 250, 252)
_LINES = 4  # of a caption, at most

# Han, kana and full-width signs may each begin a line, but for what closes a phrase; what opens one stays with what follows.
_WIDE = r"\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff"
_OPENS = r"\u3008\u300a\u300c\u300e\u3010\u3014\u3016\u3018\u301d\uff08\uff3b\uff5b\uff5f"
_CLOSES = (
    r"\u3001\u3002\u3005\u3009\u300b\u300d\u300f\u3011\u3015\u3017\u3019\u301f\u30fb\u30fc\uff01\uff09\uff0c\uff0e\uff1a\uff1b"
    r"\uff1f\uff3d\uff5d\uff60\u2026"
)
_PIECES = re.compile(rf"[{_OPENS}]*(?:[{_WIDE}]|[^\s{_WIDE}]+)[{_CLOSES}]*|\s+")


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
    texts = [wrap(text, font.getlength, cell_x) for text in captions or [""] * len(pictures)]
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


def wrap(text: str, length: Callable[[str], float], width: float) -> list[str]:
    """Breaks a text into at most four lines; of a longer one the last ends in an ellipsis.

    Lines end at spaces and round the signs of Chinese, Japanese and Korean; inside a word where it is longer than a line.
    Only what is shown is measured, so that the text may be of any length.

    Args:
        length: of a text in pixels.
        width: of a line in pixels, at most.
    """
    lines = list(itertools.islice(_lines(text, length, width), _LINES + 1))
    if len(lines) > _LINES:
        lines = lines[:_LINES]
        kept = _fitting(lines[-1], lambda part: length(part + "…"), width)
        lines[-1] = lines[-1][:kept] + "…"
    return lines


def _lines(text: str, length: Callable[[str], float], width: float) -> Iterator[str]:
    """All lines of a text, made as they are asked for."""
    line = space = ""
    for match in _PIECES.finditer(text):
        piece = match[0]
        if piece.isspace():
            space = " " if line else ""
            continue
        joined = line + space + piece
        if line and _fitting(joined, length, width) < len(joined):
            yield line
            joined = piece
        while (fits := _fitting(joined, length, width)) < len(joined):
            yield joined[:fits]
            joined = joined[fits:]
        line, space = joined, ""
    if line:
        yield line


def _fitting(text: str, length: Callable[[str], float], width: float) -> int:
    """How many letters, at least one, a line of `width` takes; no text is measured that is much longer."""
    fits, least = 1, 2
    while least <= len(text) and length(text[:least]) <= width:
        fits, least = least, 2 * least
    last = min(least, len(text) + 1)
    return bisect.bisect_right(range(last), width, fits + 1, last, key=lambda n: length(text[:n])) - 1
