"""Who writes to a folder holds its lock, on a disk and in a bucket: a second is told of the first, a dead one blocks nobody."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ec_dit.core import lock, paths
from ec_dit.core.errors import UserError
from tests import gcs_server

pytestmark = pytest.mark.slow

HOLD = """
import os, sys, time
from ec_dit.core import lock, paths
with lock.held(paths.at(sys.argv[1]), "it", print):
    reads, writes = os.pipe()
    if os.fork() == 0:
        os.write(writes, b"!")  # what is done after a fork is done
        time.sleep(60)  # as a helper that was forked does, which outlives its parent
    os.read(reads, 1)
    print("held", os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def bucket(monkeypatch):
    """Where a lock may lie in a bucket."""
    with gcs_server.Server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        paths.backend.fsspec_backend._get_filesystem.cache_clear()
        monkeypatch.setattr(lock, "RENEW_SECONDS", 0.2)
        monkeypatch.setattr(lock, "STALE_SECONDS", 1.5)
        yield paths.at("gs://bucket/run/.lock")
        paths.backend.fsspec_backend._get_filesystem.cache_clear()


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    """Where a lock may lie, in a folder that does not exist."""
    return request.getfixturevalue("bucket") if request.param == "bucket" else paths.at(tmp_path / "run" / ".lock")


def held(place, said=None, **options):
    return lock.held(place, "the workdir run", (said if said is not None else []).append, **options)


def test_a_second_is_told_who_holds_it(place, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--workdir=a b"])
    with held(place) as first:
        with pytest.raises(UserError) as told, held(place):
            raise AssertionError("held twice")
        first.check()
    words = str(told.value)
    assert words.startswith(f"the workdir run is in use by process {os.getpid()} on {os.uname().nodename} since 20")
    assert "(main.py '--workdir=a b')" in words
    assert not place.exists()
    with held(place):
        pass


def test_a_second_may_wait(place):
    said, order = [], []

    def hold():
        with held(place):
            started.set()
            time.sleep(0.5)
            order.append("first")

    started = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    started.wait()
    with held(place, said, wait=True):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    (line,) = said
    assert f"the workdir run is in use by process {os.getpid()}" in line and "waiting until it is free" in line


def test_what_a_killed_process_leaves_blocks_nobody(place):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        word, number = process.stdout.readline().split()
        assert (word, int(number)) == ("held", process.pid)
        with pytest.raises(UserError, match=f"in use by process {process.pid} on "), held(place):
            raise AssertionError("held twice")
        process.kill()
        process.wait()
        assert place.exists()
        since = time.monotonic()
        with held(place):
            pass
        assert time.monotonic() - since < 1  # on the same machine, it is seen that the process is gone
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("content", ["", "\0" * 200])
def test_what_a_crash_leaves_blocks_nobody(tmp_path, content):
    place = paths.at(tmp_path / "lock")
    place.write_text(content)
    with held(place) as mine:
        mine.check()
    assert not place.exists()


@pytest.mark.parametrize("content", ["my notes", "[" * 100_000, '{"host": 1}', "[1]"])
def test_a_file_of_somebody_else_is_refused_and_stays(place, content):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content)
    with (
        pytest.raises(UserError, match=r"lock is needed for a lock, but was not written by ec_dit: move it"),
        held(place),
    ):
        raise AssertionError("held")
    assert place.read_text() == content


def test_a_holder_that_tells_less_than_the_last_leaves_nothing_of_it(tmp_path, monkeypatch):
    place = paths.at(tmp_path / "lock")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["python", "x" * 500])
        with held(place):
            longer = place.read_text()
    place.write_text(longer)  # as a process that was killed leaves it
    with held(place):
        assert json.loads(place.read_text())["pid"] == os.getpid()


def test_another_machine_is_given_time_and_then_replaced_and_learns_it(bucket):
    with held(bucket) as first:
        first._end.set()  # as if the process was stopped for long
        first._me["machine"] = "another"
        first.write(first._generation)
        since, said = time.monotonic(), []
        with held(bucket, said) as second:
            assert time.monotonic() - since > 1.4
            assert "silent for 1.5 s" in said[0]
            assert not first.write(first._generation)
            first._lost = lock._describe(first.look()[1])
            with pytest.raises(UserError, match=r"was taken over by process \d+ on"):
                first.check()
            second.check()
        assert not bucket.exists()


def test_a_holder_on_another_machine_that_renews_is_left_alone(bucket, monkeypatch):
    monkeypatch.setattr(lock, "_machine", lambda: os.urandom(8).hex())
    with held(bucket) as first:
        with pytest.raises(UserError, match="in use by process"), held(bucket):
            raise AssertionError("held twice")
        time.sleep(0.5)
        first.check()
        assert json.loads(bucket.read_text())["pid"] == os.getpid()


def test_a_folder_one_may_not_write_to(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(lock.os, "open", refuse)
    with (
        pytest.raises(UserError, match="cannot lock the workdir run: Permission denied"),
        held(paths.at(tmp_path / "a")),
    ):
        pass
