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
