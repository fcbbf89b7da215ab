"""The `emoji` package's names in plain words, and which combinations are held out of training.

Everything here follows from the names alone, so that splits do not depend on the font.
"""

import hashlib
import importlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ec_dit.core.errors import UserError
from ec_dit.preparation.finding.captions import may_mirror

_TONE = re.compile(r"_((?:medium-light|medium-dark|light|medium|dark)_skin_tone)")
_TONE_CHARACTER = re.compile("[\U0001f3fb-\U0001f3ff]")
_GENDERED = re.compile(r"(man|woman)_(?!.*facing)(.+)")
_BALD = re.compile(r"(man|woman|person)_bald")
_HAIR = re.compile(r"(man|woman|person)_(beard|(?:red|curly|white|blond)_hair)")
_JOINED = re.compile(r"(family|kiss|couple_with_heart)((?:_(?:man|woman|person|boy|girl|adult|child))+)")
_REGIONAL = range(0x1F1E6, 0x1F200)
_TAG = "\U000e0067"  # Second character of the flags of England, Scotland and Wales.

# One tone is held out of one in so many figures, one gender of one in so many activities, so many pairs of each couple.
_TONE_ONE_IN, _GENDER_ONE_IN, _PAIRS = 3, 7, 2

# First characters of people, faces, hands, animals, plants and food: no writing, no arrows, no flags.
_MIRROR = (
    *((0x261D, 0x261D), (0x26F9, 0x26F9), (0x270A, 0x270D), (0x1F32D, 0x1F37F), (0x1F385, 0x1F385)),
    *((0x1F3C2, 0x1F3C4), (0x1F3C7, 0x1F3CC), (0x1F400, 0x1F450), (0x1F464, 0x1F487), (0x1F574, 0x1F575)),
    *((0x1F57A, 0x1F57A), (0x1F590, 0x1F596), (0x1F600, 0x1F64F), (0x1F6A3, 0x1F6A3), (0x1F6B4, 0x1F6B6)),
    *((0x1F6C0, 0x1F6C0), (0x1F6CC, 0x1F6CC), (0x1F90C, 0x1F93E), (0x1F950, 0x1F97A), (0x1F980, 0x1F9AE)),
    *((0x1F9B5, 0x1F9CB), (0x1F9CD, 0x1F9DF), (0x1FAB0, 0x1FAC5), (0x1FACE, 0x1FADF), (0x1FAE0, 0x1FAF8)),
)


@dataclass(frozen=True)
class Glyph:
    """A sequence of characters that is one emoji; `name` as the emoji package writes it, without its colons."""

    text: str
    name: str

    @property
    def id(self) -> str:
        """The code points in hexadecimal, such as 1f469-200d-1f692."""
        return "-".join(f"{ord(character):x}" for character in self.text)

    @property
    def tones(self) -> tuple[str, ...]:
        """Skin tones in the order of the name, such as ('light skin tone',)."""
        return tuple(tone.replace("_", " ") for tone in _TONE.findall(self.name))

    @property
    def base(self) -> str:
        """The name without skin tones."""
        return _TONE.sub("", self.name)

    @property
    def plain_text(self) -> str:
        """The characters without skin tones."""
        return _TONE_CHARACTER.sub("", self.text)

    @property
    def caption(self) -> str:
        """The name in plain words, such as 'woman firefighter, medium-dark skin tone' or 'flag of Kuwait'."""
        base = self.base
        if ord(self.text[0]) in _REGIONAL or self.text[1:2] == _TAG:
            base = f"flag_of_{base}"
        base = _BALD.sub(r"bald_\1", base)
        base = _HAIR.sub(r"\1_with_\2", base)
        if joined := _JOINED.fullmatch(base):
            base = joined[1] + joined[2].replace("_", ", ")
        words = base.replace("_", " ").replace("&", "and").replace("\u2019", "'")
        return ", ".join(filter(None, [words, " and ".join(self.tones)]))

    @property
    def flip(self) -> bool:
        """Whether mirroring leaves the caption true. The order of two skin tones says who stands where."""
        return is_living(ord(self.text[0])) and len(self.tones) < 2 and may_mirror(self.caption)


def is_living(code_point: int) -> bool:
    """Tells whether an emoji that begins so shows people, animals, plants or food, of which mirror images are true."""
    return any(first <= code_point <= last for first, last in _MIRROR)


def all_glyphs() -> list[Glyph]:
    """Gives every fully qualified sequence, ordered by code points. UserError without the emoji package."""
    try:
        package = importlib.import_module("emoji")
    except ImportError as error:
        raise UserError("emoji: the package of names is not installed; run: pip install 'ec_dit[emoji]'") from error
    full = package.STATUS["fully_qualified"]
    items = sorted(package.EMOJI_DATA.items())
    return [Glyph(text, facts["en"].strip(":")) for text, facts in items if facts["status"] == full]


def held_out(glyphs: Iterable[Glyph]) -> dict[str, str]:
    """Chooses the validation glyphs: their ids, with 'tone' or 'gender' for what is new about the combination.

    A 'tone' is one of a figure's five skin tones (two of a couple's twenty pairs); the figure is trained in the others
    and the tone on other figures. A 'gender' is the woman or man of an activity, in every tone; its counterpart and
    other women and men are trained.
    """
    toned: dict[str, list[Glyph]] = defaultdict(list)
    plain: dict[str, Glyph] = {}
    for glyph in glyphs:
        if glyph.tones:
            toned[glyph.base].append(glyph)
        else:
            plain[glyph.base] = glyph

    chosen: dict[str, str] = {}
    pairs = {match[2] for base in toned if (match := _GENDERED.fullmatch(base))}
    activities = sorted(
        (activity for activity in pairs if all(f"{who}_{activity}" in toned for who in ("man", "woman"))), key=rank
    )
    for number, activity in enumerate(activities[: len(activities) // _GENDER_ONE_IN]):
        base = f"{('woman', 'man')[number % 2]}_{activity}"
        family = toned.pop(base) + [plain[base]] * (base in plain)
        chosen |= {glyph.id: "gender" for glyph in family}
    for base, family in toned.items():
        ranked = sorted(family, key=lambda glyph: rank(glyph.id))
        if len(family) == 5:
            held = ranked[: rank(base) % _TONE_ONE_IN == 0]
        else:
            held = ranked[:_PAIRS] if len(family) > 5 else []
        chosen |= {glyph.id: "tone" for glyph in held}
    return chosen


def rank(text: str) -> int:
    """Gives a number below 2^64 that looks random and is the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
