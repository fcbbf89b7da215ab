"""Every fully qualified sequence of the `emoji` package, drawn on white by an installed colour emoji font.

Validation holds out combinations whose parts are all trained (emoji_names.held_out says which), so that it shows
whether a model composes. What the font does not draw as one glyph is skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.data.records import TRAIN, VALIDATION, Record
from ec_dit.preparation.drawing.base import DrawnSource
from ec_dit.preparation.drawing.emoji_names import Glyph, all_glyphs, held_out
from ec_dit.preparation.source import Kind, Skipped, ranges

FONT_FOLDERS = (
    *("~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts"),
    *("~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"),
)
FONT_FILES = ("NotoColorEmoji.ttf", "Apple Color Emoji.ttc", "TwemojiMozilla.ttf")
_STRIKES = (109, 160, 136, 128, 96, 72, 64)  # The pixel sizes that bitmap fonts come in.
_SMILE, _UNASSIGNED = "\U0001f600", "\U0010ffff"


@dataclass(frozen=True)
class EmojiOptions:
    """How the glyphs are drawn.

    Attributes:
        font: file of a colour emoji font; None takes an installed one.
        image_size: side of the square images, in pixels.
    """

    font: str | None = None
    image_size: int = 128

    def __post_init__(self) -> None:
        if not 8 <= self.image_size <= 1024:
            raise UserError(f"emoji: image_size is {self.image_size}; it must be from 8 to 1024")


class EmojiSource(DrawnSource):
    """Draws the emoji. Implements source.Source."""

    name = "emoji"
    libraries: tuple[str, ...] = ("emoji",)

    def __init__(self, options: EmojiOptions):
        glyphs = all_glyphs()
        self._pen = _Pen(find_font(options.font), options.image_size)
        self.options = replace(options, font=self._pen.path)
        self._held = held_out(glyphs)
        placed = [(VALIDATION if glyph.id in self._held else TRAIN, glyph) for glyph in glyphs]
        self._glyphs: list[tuple[str, Glyph]] = sorted(placed, key=lambda item: item[0])  # as `splits` has them
        self._shards = ranges(len(self._glyphs))

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Draws the sequences of one stretch."""
        start, _, end = self._shards[shard].name.partition("-")
        for split, glyph in self._glyphs[int(start) : int(end)]:
            try:
                image = self._pen.draw(glyph)
            except _NotDrawnError as error:
                yield Skipped(glyph.id, str(error), split)
                continue
            meta = {"name": glyph.name, "base": glyph.base, "tones": list(glyph.tones)}
            meta |= {"holdout": self._held[glyph.id]} if glyph.id in self._held else {}
            yield Record(glyph.id, images.encode_png(image), (glyph.caption,), (), split, glyph.flip, meta)


SOURCE = Kind(EmojiSource, EmojiOptions)


def find_font(path: str | None = None) -> Path:
    """Finds the font file to draw with: `path`, or the first known colour emoji font that is installed.

    Raises:
        UserError: `path` is no file, or no such font is installed.
    """
    if path is not None:
        if not Path(path).is_file():
            raise UserError(f"emoji: there is no font file {path}")
        return Path(path).absolute()
    for name in FONT_FILES:
        for folder in FONT_FOLDERS:
            for found in sorted(Path(folder).expanduser().rglob(name)):
                return found
    raise UserError(
        "emoji: no colour emoji font is installed; run: apt-get install fonts-noto-color-emoji "
        "(or pass --font=FILE with another one)"
    )


class _NotDrawnError(Exception):
    """The font has no glyph of its own for a sequence. The message is the reason."""


class _Pen:
    """Draws sequences with one font, each into a square of `size` pixels."""

    def __init__(self, path: Path, size: int):
        if not features.check("raqm"):
            raise UserError(
                "emoji: Pillow cannot join sequences because Raqm is missing; run: apt-get install libraqm0 libfribidi0"
            )
        self.path, self._size = str(path), size
        self._font = _load_font(path)
        ascent, descent = self._font.getmetrics()
        self._advance = self._font.getlength(_SMILE)
        self._cell = (max(1, round(self._advance)), max(1, ascent + descent))
        self._tofu = self._render(_UNASSIGNED)
        smile = self._render(_SMILE)
        if smile == self._tofu or max(smile.convert("HSV").getchannel("S").tobytes()) < 64:
            raise UserError(f"emoji: {path} draws no colour emoji; pass another --font")

    def draw(self, glyph: Glyph) -> Image.Image:
        """Draws a glyph on white. Raises _NotDrawnError where the font draws nothing, several glyphs or a simpler one."""
        if self._font.getlength(glyph.text) > 1.25 * self._advance:
            raise _NotDrawnError("the font draws several glyphs, not one")
        cell = self._render(glyph.text)
        ink = _ink(cell)
        if cell == self._tofu or ink is None:
            raise _NotDrawnError("the font has no glyph")
        if glyph.tones and cell == self._render(glyph.plain_text):
            raise _NotDrawnError("the font draws no skin tone")
        first, rest = glyph.text[0], glyph.text[1:].strip("\ufe0f")
        if rest and cell == self._render(first):
            raise _NotDrawnError("the font draws the first character only")
        return self._fit(cell, ink)

    def _render(self, text: str) -> Image.Image:
        cell = Image.new("RGB", self._cell, "white")
        ImageDraw.Draw(cell).text((0, 0), text, font=self._font, embedded_color=True)
        return cell

    def _fit(self, cell: Image.Image, ink: tuple[int, int, int, int]) -> Image.Image:
        """The cell's central square (with all of the cell, where ink lies outside), at the size asked for."""
        width, height = cell.size
        side = min(width, height)
        box = ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
        if ink[0] < box[0] or ink[1] < box[1] or ink[2] > box[2] or ink[3] > box[3]:
            side = max(width, height)
        square = Image.new("RGB", (side, side), "white")
        square.paste(cell, ((side - width) // 2, (side - height) // 2))
        return square if side == self._size else square.resize((self._size, self._size), Image.Resampling.LANCZOS)


def _ink(cell: Image.Image) -> tuple[int, int, int, int] | None:
    """Bounding box of what is not white."""
    return ImageChops.invert(cell).getbbox()


def _load_font(path: Path) -> ImageFont.FreeTypeFont:
    for size in _STRIKES:
        try:
            return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.RAQM)
        except OSError as error:
            if "pixel size" not in str(error):
                raise UserError(f"emoji: cannot read the font {path}: {error}") from error
    raise UserError(f"emoji: {path} has bitmaps of none of the sizes {_STRIKES}; pass another --font")
