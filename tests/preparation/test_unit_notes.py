"""What is noted of units that are done, and what of it counts once a file was damaged."""

import pytest

from ec_dit.core import paths
from ec_dit.core.errors import DamageError
from ec_dit.preparation.counting import UnitFacts
from ec_dit.preparation.unit_notes import UnitNotes

COUNTS = UnitFacts({"tiny": 2}, {}, {"damaged image": 1}, {}, [5, 7], {"1": "damaged archive"})
FACTS = {"files": {"train": {"records": 9, "bytes": 100, "sha256": ["aa"], "file": "x"}}, "captions": ["one"]}
LINES = ['{"id": "a"}', '{"id": "\u00e9"}']


@pytest.fixture
def notes(tmp_path):
    return UnitNotes(paths.at(tmp_path), lambda path, text: path.write_text(text, encoding="utf-8"))


def test_what_was_written_is_read(notes, tmp_path):
    assert notes.finished() == set()
    notes.write(3, FACTS, COUNTS, LINES)
    notes.write(12, FACTS, COUNTS, [])
    again = UnitNotes(paths.at(tmp_path), None)
    assert again.finished() == {3, 12}
    assert again.lines(3) == LINES and again.lines(12) == []
    assert again.facts(3) == FACTS | {"counts": COUNTS}
    notes.discard(3)
    assert notes.finished() == {12}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("000003.json", b'"tiny": 2', b'"tiny": 3'),
        ("000003.json", b"{", b"["),
        ("000003.lines", b'"a"', b'"b"'),
        ("000003.lines", b"\n", b""),
    ],
)
def test_a_unit_whose_notes_are_damaged_is_made_again(notes, tmp_path, file, old, new):
    notes.write(3, FACTS, COUNTS, LINES)
    data = (tmp_path / file).read_bytes()
    assert old in data
    (tmp_path / file).write_bytes(data.replace(old, new, 1))
    with pytest.raises(DamageError, match=rf"{file} is damaged: .*The same command makes that part again"):
        notes.lines(3) if file.endswith("lines") else notes.facts(3)
    assert notes.finished() == set()


def test_lines_that_are_gone_are_damage_too(notes, tmp_path):
    notes.write(3, FACTS, COUNTS, LINES)
    (tmp_path / "000003.lines").unlink()
    with pytest.raises(DamageError, match="it is missing"):
        notes.lines(3)
    assert notes.finished() == set()
