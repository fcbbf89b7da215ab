"""What the bar of a preparation counts towards."""

import pytest

from ec_dit.core import processes
from ec_dit.preparation.progress import Bar


def test_a_total_is_known_or_follows_from_the_units_that_are_done(capsys):
    with Bar("set", [[5, 7], [3]], 0, True) as bar:
        for _ in range(15):
            bar.update()
        assert bar.count == 15
    assert capsys.readouterr().err.startswith("set: 15 of 15 images")
    with Bar("set", [[5, None], [3], [None]], 2, True) as bar:
        for _ in range(10):
            bar.update()
        bar.unit_done()  # one of three gave ten: thirty in all
    assert capsys.readouterr().err.startswith("set, going on after 2 of 5 units: 10 of 30 images")


@pytest.mark.parametrize("index", [0, 1])
def test_of_several_processes_the_first_tells_its_part(index, capsys, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 4)
    monkeypatch.setattr(processes, "is_first", lambda: index == 0)
    with Bar("set", [[2]], 0, True) as bar:
        bar.update()
    told = capsys.readouterr().err
    assert told.startswith("set, 1 of 4 parts: 1 of 2 images") if index == 0 else told == ""
