import copy
import importlib
import re

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.data.records import Record
from ec_dit.preparation.drawing.emoji_names import Glyph, all_glyphs, held_out
from ec_dit.preparation.source import Skipped, everything
from ec_dit.preparation.sources.drawn import emoji

needs_emoji = pytest.mark.extra("emoji")


@pytest.mark.parametrize(
    ("text", "name", "caption", "flip"),
    [
        ("👩🏾‍🚒", "woman_firefighter_medium-dark_skin_tone", "woman firefighter, medium-dark skin tone", True),
        ("👩🏾‍🦰", "woman_medium-dark_skin_tone_red_hair", "woman with red hair, medium-dark skin tone", True),
        ("👨🏻‍🦲", "man_light_skin_tone_bald", "bald man, light skin tone", True),
        (
            "👩🏻‍🤝‍👩🏿",
            "women_holding_hands_light_skin_tone_dark_skin_tone",
            "women holding hands, light skin tone and dark skin tone",
            False,
        ),
        ("👨‍👩‍👧", "family_man_woman_girl", "family, man, woman, girl", True),
        ("💏", "kiss", "kiss", False),
        ("💋", "kiss_mark", "kiss mark", False),
        ("🇰🇼", "Kuwait", "flag of Kuwait", False),
        ("🇹🇹", "Trinidad_&_Tobago", "flag of Trinidad and Tobago", False),
        ("🏴󠁧󠁢󠁷󠁬󠁳󠁿", "Wales", "flag of Wales", False),
        ("🏴‍☠️", "pirate_flag", "pirate flag", False),
        ("🕔", "five_o\u2019clock", "five o'clock", False),
        ("7️⃣", "keycap_7", "keycap 7", False),
        ("🤛", "left-facing_fist", "left-facing fist", False),
        ("🏃‍➡️", "person_running_facing_right", "person running facing right", False),
        ("🦊", "fox", "fox", True),
        ("🔤", "input_latin_letters", "input latin letters", False),
    ],
)
def test_names_in_plain_words(text, name, caption, flip):
    assert Glyph(text, name).caption == caption
    assert Glyph(text, name).flip is flip


@needs_emoji
def test_held_out_combinations_are_new_but_their_parts_are_not():
    glyphs = all_glyphs()
    held = held_out(glyphs)
    assert held == held_out(reversed(glyphs))
    assert len(glyphs) > 3900 and len({glyph.id for glyph in glyphs}) == len(glyphs)
    assert 0.04 < len(held) / len(glyphs) < 0.06

    train = [glyph for glyph in glyphs if glyph.id not in held]
    words = {word for glyph in train for word in re.findall(r"[^\s,]+", glyph.caption)}
    captions = {glyph.caption for glyph in train}
    bases = {(glyph.base, tone) for glyph in train for tone in glyph.tones}
    for glyph in glyphs:
        if glyph.id not in held:
            continue
        assert set(re.findall(r"[^\s,]+", glyph.caption)) <= words
        assert glyph.caption not in captions
        if held[glyph.id] == "tone":
            assert sum(base == glyph.base for base, _ in bases) >= 4
        else:
            who, activity = re.fullmatch(r"(man|woman)_(.+)", glyph.base).groups()
            assert all(base != glyph.base for base, _ in bases)
            assert any(base == f"{'man' if who == 'woman' else 'woman'}_{activity}" for base, _ in bases)


@pytest.fixture(scope="module")
def source():
    try:
        emoji.find_font()
    except UserError as error:
        pytest.skip(str(error))
    return emoji.EmojiSource(emoji.EmojiOptions(image_size=64))


def drawn(source, *names):
    """The named records by name, whichever split they are in."""
    chosen = copy.copy(source)
    chosen._glyphs = [(split, glyph) for split, glyph in source._glyphs if glyph.name in names]
    return {item.meta["name"]: item for item in everything(chosen)}


@needs_emoji
def test_sequences_are_drawn_joined_and_toned(source):
    names = ["woman_firefighter", "woman_firefighter_dark_skin_tone", "woman", "fire_engine", "Kuwait", "Wales", "fox"]
    records = drawn(source, *names)
    assert set(records) == set(names)
    pixels = {name: np.asarray(images.decode(record.image)).astype(int) for name, record in records.items()}
    assert {array.shape for array in pixels.values()} == {(64, 64, 3)}
    for name, array in pixels.items():
        assert (array == 255).all(-1).any(), name  # White ground.
        assert (np.ptp(array, axis=-1) > 60).mean() > 0.02, name  # In colour.
    plain, dark = pixels["woman_firefighter"], pixels["woman_firefighter_dark_skin_tone"]
    changed = np.abs(plain - dark).sum(-1) > 60
    assert 0.02 < changed.mean() < 0.5  # The skin, not the helmet and coat.
    assert dark[changed].mean() < plain[changed].mean() - 50
    for part in ("woman", "fire_engine"):
        assert (np.abs(plain - pixels[part]).sum(-1) > 60).mean() > 0.1


@needs_emoji
def test_what_the_font_cannot_draw_is_skipped(source):
    made_up = [
        Glyph("\U0001f98a\u200d\U0001f692", "fox_firefighter"),
        Glyph("\U0001fb00", "unassigned"),
        Glyph("\U0001f98a", "fox"),
    ]
    source = copy.copy(source)
    source._glyphs = [("validation", glyph) for glyph in made_up]
    items = list(everything(source))
    assert {(item.split, isinstance(item, Record)) for item in items} == {("validation", False), ("validation", True)}
    assert not any(item.asked for item in items[:2])
    assert [item.reason for item in items if isinstance(item, Skipped)] == [
        "the font draws several glyphs, not one",
        "the font has no glyph",
    ]
    assert items[2].caption == "fox"


@needs_emoji
def test_shards_hold_every_sequence_once(source):
    shards = source.shards()
    assert source.shards() is shards
    assert [shard.size for shard in shards[:-1]] == [1000] * (len(shards) - 1) and len(shards) > 3
    assert sum(shard.size for shard in shards) == len(all_glyphs())
    last = [item.id for item in source.records(len(shards) - 1)]
    held = held_out(all_glyphs())
    assert len(last) == shards[-1].size and set(last[-100:]) <= set(held)  # validation comes last
    splits = {glyph.id: split for split, glyph in source._glyphs}
    assert {id_ for id_, split in splits.items() if split == "validation"} == set(held)
    assert len(splits) == len(all_glyphs())


@needs_emoji
def test_records_repeat(source):
    assert drawn(source, "fox", "girl") == drawn(source, "fox", "girl")


@needs_emoji
def test_missing_font_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(emoji, "FONT_FOLDERS", (str(tmp_path),))
    with pytest.raises(UserError, match=r"apt-get install fonts-noto-color-emoji .*--font=FILE"):
        emoji.EmojiSource(emoji.EmojiOptions())
    with pytest.raises(UserError, match=r"no font file .*mine.ttf"):
        emoji.EmojiSource(emoji.EmojiOptions(font=str(tmp_path / "mine.ttf")))
    (tmp_path / "mine.ttf").write_text("not a font")
    with pytest.raises(UserError, match=r"cannot read the font"):
        emoji.EmojiSource(emoji.EmojiOptions(font=str(tmp_path / "mine.ttf")))


def test_missing_package_names_the_extra(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"pip install 'ec_dit\[emoji\]'"):
        all_glyphs()


@needs_emoji
def test_missing_raqm_names_the_package(monkeypatch, source):
    monkeypatch.setattr(emoji.features, "check", {"raqm": False}.get)
    with pytest.raises(UserError, match=r"apt-get install libraqm0"):
        emoji.EmojiSource(emoji.EmojiOptions())


def test_sizes_out_of_range():
    with pytest.raises(UserError, match=r"image_size is 4; it must be from 8 to 1024"):
        emoji.EmojiOptions(image_size=4)
