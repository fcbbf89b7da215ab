"""Processes that meet, played by threads."""

import errno
import select
import socket
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import pytest

from ec_dit.core import rendezvous
from ec_dit.core.errors import TryAgain, UserError
from ec_dit.core.rendezvous import meet

pytestmark = pytest.mark.slow


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def come(port, count, indices, seconds=20.0, patience=0.5):
    """What became of processes that come together: None, or what was raised."""
    with ThreadPoolExecutor(len(indices)) as pool:
        calls = [
            pool.submit(meet, f"localhost:{port}", count, index, seconds=seconds, patience=patience)
            for index in indices
        ]
        return [call.exception() for call in calls]


def test_all_come(port):
    assert come(port, 4, [3, 1, 0, 2]) == [None] * 4
    assert come(port, 4, [0, 1, 2, 3]) == [None] * 4  # the port is free again at once


def test_who_does_not_come_is_named_by_all(port):
    first, second = come(port, 4, [0, 2], seconds=1.0)
    assert type(first) is type(second) is TryAgain
    assert "of 4 processes these did not come within 1 s: 1, 3" in str(first)
    assert str(second) == "process 2: of 4 processes these did not come within 1 s: 1, 3"


def test_without_process_0(port):
    (error,) = come(port, 2, [1], seconds=1.0)
    assert type(error) is TryAgain
    assert f"process 0 was not at localhost:{port} within 1 s (Connection refused)" in str(error)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "No route to host"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "Network is unreachable"),
        (TimeoutError("timed out"), "timed out"),
    ],
)
def test_a_host_that_still_boots_is_waited_for(port, monkeypatch, error, reason):
    """For longer than another program at its port would be."""

    def connect(*arguments, **options):
        if time.monotonic() < there_at:
            raise error
        return real(*arguments, **options)

    real, there_at = socket.create_connection, float("inf")
    monkeypatch.setattr(socket, "create_connection", connect)
    (told,) = come(port, 2, [1], seconds=0.7, patience=0.1)
    assert type(told) is TryAgain
    assert f"process 0 was not at localhost:{port} within 0.7 s ({reason})" in str(told)
    there_at = time.monotonic() + 0.3
    assert come(port, 2, [0, 1], patience=0.1) == [None, None]


def test_a_line_that_is_cut_without_a_word_is_tried_again(port):
    """As what stands before a host does that is not there yet."""
    with ThreadPoolExecutor(1) as pool:
        with socket.create_server(("", port)) as before:
            before.settimeout(5)
            second = pool.submit(meet, f"localhost:{port}", 2, 1, seconds=20, patience=0.1)
            for _ in range(3):
                before.accept()[0].close()
        assert come(port, 2, [0], seconds=5) == [None]
        assert second.result() is None


def test_a_name_that_no_host_can_have():
    with pytest.raises(UserError, match=r"process 1 of 2: 'a\.\.b' is no name of a host"):
        meet("a..b:1", 2, 1, seconds=5)


@pytest.mark.parametrize("greeting", [None, b"SSH-2.0-x\r\n", b"\x00\x00\x12\x04\x00\x00"])
def test_a_port_that_another_program_has(port, greeting, monkeypatch):
    """All end soon, whatever that program says, or where it says nothing."""
    monkeypatch.setattr(rendezvous, "_ANSWER", 0.5)

    def serve():
        while not ended.is_set():
            try:
                with server.accept()[0] as caller:
                    if greeting is None:
                        ended.wait()
                    else:
                        select.select([caller], [], [], 5)  # closed with words of ours unread, the line is reset
                        caller.sendall(greeting)
            except OSError:
                return

    ended = threading.Event()
    with socket.create_server(("", port)) as server:
        server.settimeout(0.2)
        thread = threading.Thread(target=serve)
        server.settimeout(5)
        thread.start()
        since = time.monotonic()
        first, second = come(port, 2, [0, 1], seconds=60.0)
        assert time.monotonic() - since < 30
        ended.set()
        socket.create_connection(("localhost", port)).close()
        thread.join()
    assert type(first) is type(second) is TryAgain
    assert f"port {port}, where the others would find it, cannot be had: Address already in use" in str(first)
    assert f"whatever is at localhost:{port} is not process 0 of this run" in str(second)


def test_two_of_one_number_and_another_count(port):
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(meet, f"localhost:{port}", 3, 0, seconds=20)
        both = [pool.submit(meet, f"localhost:{port}", 3, 1, seconds=20) for _ in range(2)]
        (refused,), (second,) = wait(both, return_when=FIRST_COMPLETED)  # whichever came later
        with pytest.raises(UserError, match=r"process 1 of 3: .*another process 1 is there already"):
            refused.result()
        with pytest.raises(UserError, match=r"process 3 of 4: .*it waits for processes 1 to 2 of 3"):
            meet(f"localhost:{port}", 4, 3, seconds=20)
        meet(f"localhost:{port}", 3, 2, seconds=20)
        assert (first.result(), second.result()) == (None, None)


def test_one_that_died_while_it_waited_may_come_again(port):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, f"localhost:{port}", 3, 0, seconds=20)
        for _ in range(100):
            try:
                dying = socket.create_connection(("localhost", port))
                break
            except OSError:
                time.sleep(0.05)
        dying.sendall(b"ec_dit 1 3\n")
        assert dying.recv(100) == b"wait\n"
        dying.close()
        with socket.create_connection(("localhost", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert come(port, 3, [1, 2]) == [None, None]
        assert first.result() is None
