"""Every mistake of a user ends in one message and exit code 2, with nothing left behind, at every entry point."""

import importlib

import pytest

from tests import bad_inputs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    bad_inputs.lay(folder)
    return folder


@pytest.mark.parametrize("case", bad_inputs.CASES, ids=lambda case: " ".join([case.module, *case.arguments])[:80])
def test_a_mistake_ends_with_one_message(case, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for name, value in case.env.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    before = sorted(place.rglob("*"))
    code = importlib.import_module(case.module).main([case.module, *case.arguments])
    error = capsys.readouterr().err
    assert (code, case.message in error) == (2, True), error
    assert "Traceback" not in error and "\x1b" not in error
    assert len(error.strip().splitlines()) <= 12
    assert sorted(place.rglob("*")) == before


def test_there_are_many_cases_over_all_entry_points():
    assert len(bad_inputs.CASES) >= 100
    assert len({case.module for case in bad_inputs.CASES}) == 15
