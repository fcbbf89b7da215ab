"""What reaches a terminal."""

import io
import sys

import pytest

from ec_dit.core import terminal
from ec_dit.core.terminal import printable, printable_lines


def test_names_that_print():
    assert printable("été 犬/x\u3000.png") == "été 犬/x\u3000.png"
    assert printable("a\nb\0\x1b[31m\u2028\udce9\ud800") == "a\\nb\\x00\\x1b[31m\\u2028\\xe9\\ud800"


def test_lines_keep_their_own_newlines():
    assert printable_lines("one\n\ttwo\x1b[2J\r\x07\n") == "one\n\ttwo\\x1b[2J\\r\\x07\n"


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"\\u72ac \\xe9"), ("utf-8", "犬 é".encode())])
def test_any_text_can_be_written(monkeypatch, encoding, shown):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.accept_any_text()
    print("犬 é", end="", flush=True)
    assert stream.buffer.getvalue() == shown


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


def test_progress_in_a_file_is_a_line_now_and_then(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    with terminal.Progress("draw\x1b", 4000, "images", every=60) as progress:
        for _ in range(1000):
            clock.now += 0.25
            progress.update(4)
    assert capsys.readouterr().err.splitlines() == [
        "draw\\x1b: 960 of 4,000 images in 0:01:00, 16 a second, 0:03:10 left",
        "draw\\x1b: 1,920 of 4,000 images in 0:02:00, 16 a second, 0:02:10 left",
        "draw\\x1b: 2,880 of 4,000 images in 0:03:00, 16 a second, 0:01:10 left",
        "draw\\x1b: 3,840 of 4,000 images in 0:04:00, 16 a second, 0:00:10 left",
        "draw\\x1b: 4,000 of 4,000 images in 0:04:10, 16 a second",
    ]
    with terminal.Progress("draw", None, "images", shown=False) as progress:
        progress.update(3)
        progress.reach(5, 8)
    assert (progress.count, progress.total, capsys.readouterr().err) == (5, 8, "")


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with terminal.Progress("draw", 2, "images") as progress:
        progress.update()
        progress.total = 3
        progress.update(2)
    shown = capsys.readouterr().err
    assert "\n" not in shown.strip() and "draw: 100%" in shown and "3/3" in shown
