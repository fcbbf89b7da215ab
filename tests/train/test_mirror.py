"""A folder that is copied to another place: what is copied when, and what is told where that fails."""

import itertools
import os
import time

import pytest

from ec_dit.core import paths
from ec_dit.core.errors import TryAgain
from ec_dit.train import mirror


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(mirror, "_PAUSE_SECONDS", 0.0)


def test_what_ends_the_copying_to_a_bucket_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror.Mirror, "copy", lambda self: 1 / 0)
    copies = mirror.Mirror(tmp_path, paths.at(tmp_path / "b"), 0.01)
    copies._thread.join(5)
    with pytest.raises(RuntimeError, match=r"files are no longer copied to .*ZeroDivisionError"):
        copies.check()


def test_a_copy_that_fails_is_tried_again_and_at_last_told(tmp_path, monkeypatch, capsys, quick):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    tries, copy = itertools.count(), paths.copy_file

    def flaky(path, target):
        if next(tries) < 3:
            raise ConnectionResetError("gone")
        copy(path, target)

    monkeypatch.setattr(paths, "copy_file", flaky)
    with mirror.Mirror(tmp_path / "a", paths.at(tmp_path / "b")) as copies:
        assert copies.copy() == [f"file was not copied to {tmp_path / 'b'}: gone"]
    assert (tmp_path / "b" / "file").read_text() == "x"
    assert "warning: file was not copied" in capsys.readouterr().err

    tries = itertools.count(-1000)
    (tmp_path / "a" / "file").write_text("longer")
    with (
        pytest.raises(TryAgain, match=r"file was not copied .*: gone"),
        mirror.Mirror(tmp_path / "a", paths.at(tmp_path / "b")),
    ):
        pass


@pytest.fixture
def copied(monkeypatch):
    """Names of the files that are copied, in their order."""
    names, copy = [], paths.copy_file
    monkeypatch.setattr(paths, "copy_file", lambda path, target: (names.append(path.name), copy(path, target)))
    return names


def test_what_changed_since_is_copied_and_nothing_else(tmp_path, copied):
    local, remote = tmp_path / "local", tmp_path / "remote"
    (local / "board").mkdir(parents=True)
    (local / "a").write_text("1")
    (local / "board" / "b").write_text("2")
    (local / "c.tmp").write_text("on its way to another name")
    with mirror.Mirror(local, paths.at(remote), every_seconds=1000) as copies:
        assert copies.copy() == [] and copied == ["a", "b"]
        assert copies.copy() == [] and copied == ["a", "b"]
        (local / "board" / "b").write_text("22")
        assert copies.copy() == [] and copied == ["a", "b", "b"]
        os.utime(local / "a", ns=(1, 1))  # of the same size
        assert copies.copy() == [] and copied == ["a", "b", "b", "a"]
        (local / "d").write_text("last")
    assert copied == ["a", "b", "b", "a", "d"]
    found = {path.relative_to(remote).as_posix(): path.read_text() for path in remote.rglob("*") if path.is_file()}
    assert found == {"a": "1", "board/b": "22", "d": "last"}


def test_it_copies_by_itself_now_and_then(tmp_path):
    (tmp_path / "local").mkdir()
    with mirror.Mirror(tmp_path / "local", paths.at(tmp_path / "remote"), every_seconds=0.01) as copies:
        (tmp_path / "local" / "a").write_text("1")
        deadline = time.monotonic() + 20
        while not (tmp_path / "remote" / "a").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "remote" / "a").read_text() == "1"
        copies.check()


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_copies(tmp_path, monkeypatch, capsys, quick):
    (tmp_path / "a").write_text("x")

    def gone(path, target):
        raise ConnectionResetError("gone")

    monkeypatch.setattr(paths, "copy_file", gone)
    with pytest.raises(KeyError, match="of the run"), mirror.Mirror(tmp_path, paths.at(tmp_path / "b")):
        raise KeyError("of the run")
    assert capsys.readouterr().err.count("warning: a was not copied") == 5
