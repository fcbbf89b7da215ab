"""What a watcher remembers, whatever has become of its file."""

import pytest

from ec_dit.core.errors import UserError
from launch.clock import Clock
from launch.journal import Journal


def test_lines_of_others_and_damaged_ones_are_passed_over(tmp_path):
    path = tmp_path / "runs" / "journal.jsonl"
    with Journal(path, lambda line: None, Clock()) as journal:
        journal.note("watching", job="a", step=3)
    with path.open("ab") as file:
        file.write(b'5\n"event"\n[1]\n{"event": 1}\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"time": "2026')
    with Journal(path, lambda line: None, Clock()) as journal:
        assert [entry["event"] for entry in journal.story("a")] == ["watching"]
        journal.note("saved", step=7)
    with Journal(path, lambda line: None, Clock()) as journal:
        assert [entry["event"] for entry in journal.story("a")] == ["watching", "saved"]
        assert journal.last("step", 0) == 7


def test_one_watcher_at_a_time(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, lambda line: None, Clock()), pytest.raises(UserError, match="another watcher is at work here"):
        Journal(path, lambda line: None, Clock())
    with Journal(path, lambda line: None, Clock()):
        pass
