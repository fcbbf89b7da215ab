"""Processes without the seconds that imports take: a server that has imported everything forks one for every request.

A process begins where `python -m tests.entry_point` begins, with its own arguments, variables, folder, session and output; JAX,
of which only the modules are loaded, finds its devices anew. What a variable decides at Python's start is the server's. Two
servers take turns, whose hashes of strings differ, so that what depends on the order of a set differs between the processes of
a run, and between a run and its next start.
"""

import contextlib
import functools
import gc
import importlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from ec_dit import cli

LOADED = (
    "runs.training",
    "runs.loaded",
    "convert",
    "evaluate",
    "main",
    "prepare",
    "sample",
)  # what a fork finds imported


class Process:
    """A forked process, with those parts of `subprocess.Popen` that tests use."""

    def __init__(self, server, pid, output):
        self._server, self.pid, self.returncode = server, pid, None
        self.stdout = os.fdopen(output, encoding="utf-8", errors="replace")

    def poll(self):
        """The exit code, minus the signal that ended it; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.code(self.pid)
        return self.returncode

    def communicate(self, timeout=None):
        """(its output to the end, None), when it has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        read = []
        reader = threading.Thread(target=lambda: read.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        while reader.is_alive() or self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        self.stdout.close()
        return read[0], None

    def send_signal(self, number):
        """Sends a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """Ends it by SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Server:
    """A process that forks others; it ends with the process that started it."""

    def __init__(self, hash_seed):
        self._mine, theirs = socket.socketpair()
        self._codes = {}
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.entry_point", "--serve", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=Path(__file__).parents[1],
                env=os.environ | {"PYTHONHASHSEED": hash_seed},
            )

    def start(self, arguments, cwd, env):
        """A process that runs `tests.entry_point` with these arguments."""
        output, theirs = os.pipe()
        request = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}
        with self._lock:
            data = json.dumps(request).encode()
            socket.send_fds(self._mine, [len(data).to_bytes(8)], [theirs])
            self._mine.sendall(data)
            os.close(theirs)
            while not isinstance(pid := self._told(), int):
                pass
        return Process(self, pid, output)

    def code(self, pid):
        """The exit code of a process; None while it runs."""
        with self._lock:
            while pid not in self._codes and select.select([self._mine], [], [], 0)[0]:
                self._told()
            return self._codes.get(pid)

    def _told(self):
        """The next message: the number of a new process, or [process, exit code] of one that ended."""
        line = self._mine.recv(1)
        while not line.endswith(b"\n"):
            more = self._mine.recv(1)
            if not more:
                raise RuntimeError("the server of processes is gone")
            line += more
        message = json.loads(line)
        if isinstance(message, list):
            self._codes[message[0]] = message[1]
        return message


@functools.cache
def _servers():
    return itertools.cycle([Server("1"), Server("2")])


def start(arguments, cwd, env):
    """A process that runs `tests.entry_point` with these arguments, by the server whose turn it is."""
    return next(_servers()).start(arguments, cwd, env)


def serve(channel):
    """Forks until the channel closes, and then ends; returns in a forked process alone, with its arguments."""
    cli.quiet()  # as every entry point does first
    for name in LOADED:
        importlib.import_module(f"ec_dit.{name}")
    for name in LOADED:  # or runpy warns of what it finds imported
        if "." not in name:
            del sys.modules[f"ec_dit.{name}"]
    gc.freeze()  # what they share stays shared
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    connection = socket.socket(fileno=channel)
    while True:
        ready, _, _ = select.select([connection, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    connection.sendall(json.dumps([ended[0], os.waitstatus_to_exitcode(ended[1])]).encode() + b"\n")
        if connection in ready:
            size, sent, *_ = socket.recv_fds(connection, 8, 1)
            if not size:
                os._exit(0)
            (output,) = sent
            data = b""
            while len(data) < int.from_bytes(size):
                data += connection.recv(int.from_bytes(size) - len(data))
            pid = os.fork()
            if not pid:
                connection.close()
                for end in (woken, wake):
                    os.close(end)
                return _become(json.loads(data), output)
            os.close(output)
            connection.sendall(json.dumps(pid).encode() + b"\n")


def _become(request, output):
    """Gives this process what a start would have given it; its arguments."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[0] = request["cwd"]
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    # As Python opens them where they are pipes; the server's may be files.
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    return request["arguments"]
