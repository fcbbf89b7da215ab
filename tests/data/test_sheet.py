import time

import numpy as np
import pytest
from PIL import Image

from ec_dit.data.sheet import contact_sheet, wrap


def test_contact_sheet_shows_every_picture_and_its_caption():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [np.full((8, 8, 3), color, np.uint8) for color in colors]
    bare = np.asarray(contact_sheet(pictures, columns=2))
    sheet = np.asarray(contact_sheet(pictures, ["red", "a long caption that takes several lines", ""], columns=2))
    for color in colors:
        where = np.argwhere((sheet == color).all(-1))
        assert len(where) == 128 * 128  # Enlarged to 128 pixels, nothing drawn over it.
        assert (np.ptp(where, axis=0) == 127).all()
    assert sheet.shape[1] == bare.shape[1] and sheet.shape[0] > bare.shape[0]
    below_red = sheet[8 + 128 + 2 : 8 + 128 + 20, 8 : 8 + 128]
    assert below_red.min() < 100  # Ink.


def test_contact_sheet_takes_floats_pil_and_mixed_sizes():
    mixed = [np.zeros((4, 4, 3), np.float32), Image.new("RGB", (8, 6))]
    assert contact_sheet(mixed, columns=5).size == (2 * (128 + 8) + 8, 96 + 8 + 8)
    with pytest.raises(ValueError, match=r"at least one"):
        contact_sheet([])
    with pytest.raises(ValueError, match=r"1 captions for 2"):
        contact_sheet(mixed, ["one"])


def plain_wrap(text, width):
    """Four lines of words of one pixel a letter, for texts whose words fit."""
    lines = [""]
    for word in text.split():
        if len(f"{lines[-1]} {word}".strip()) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    if len(lines) <= 4:
        return lines
    return [*lines[:3], lines[3][: width - 1] + "…"]


def test_words_are_wrapped_as_by_a_plain_loop():
    rng = np.random.default_rng(0)
    for _ in range(300):
        words = ["x" * int(n) for n in rng.integers(1, 10, rng.integers(1, 20))]
        text = "  \n".join(words)
        assert wrap(text, len, 10) == plain_wrap(text, 10)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("   ", []),
        ("abcdefghij klm", ["abcde", "fghij", "klm"]),
        ("a bcdefghij", ["a", "bcdef", "ghij"]),
        ("abcdefghijklmnopqrstuvw", ["abcde", "fghij", "klmno", "pqrs…"]),
        ("一二三四五六七", ["一二三四五", "六七"]),  # round any sign
        ("一二三四五。六七", ["一二三四", "五。六七"]),  # a line does not begin with what closes
        ("一二三四\uff08五六\uff09七", ["一二三四", "\uff08五六\uff09七"]),  # nor end with what opens
        ("「「「「「「「「", ["「「「「「", "「「「"]),
        ("a狐 b狸は犬", ["a狐 b狸", "は犬"]),
    ],
)
def test_lines_end_where_they_may(text, lines):
    assert wrap(text, len, 5) == lines


@pytest.mark.parametrize("text", ["x" * 100_000, "漢" * 100_000, "「" * 100_000, "x " * 50_000, "\u0301" * 5_000])
def test_a_caption_of_any_length_is_measured_only_as_far_as_it_is_shown(text):
    measured = 0

    def length(part):
        nonlocal measured
        measured += len(part)
        return len(part)

    assert len(wrap(text, length, 20)) == 4
    assert measured < 20_000
    start = time.process_time()
    contact_sheet([np.zeros((8, 8, 3), np.uint8)], [text])
    assert time.process_time() - start < 5  # 1,600 letters took 58 s
