"""How processes of a run meet before JAX connects them: what JAX ends with a crash, or after minutes, is said here in a line.

Process 0 listens at the coordinator's port, which shows that it is free; the others call, and all go on once all are there.
"""

import contextlib
import select
import socket
import time

from ec_dit.core.errors import TryAgain, UserError

_ANSWER = 10  # seconds in which process 0, or a caller, says its first word


def meet(coordinator: str, count: int, index: int, *, seconds: float, patience: float = 30) -> None:
    """Returns in every process once all `count` of them are there.

    Args:
        coordinator: HOST:PORT of process 0.
        seconds: how long to wait for the others.
        patience: how long for a port that something else has, such as a run that is about to end.

    Raises:
        TryAgain: the port is taken, or some did not come, in time.
        UserError: two processes have one number.
    """
    host, _, port = coordinator.rpartition(":")
    if index == 0:
        _receive(int(port), count, seconds, patience)
    else:
        _call(host.strip("[]"), int(port), count, index, seconds, patience)


def _receive(port: int, count: int, seconds: float, patience: float) -> None:
    """Process 0's part."""
    callers: dict[int, socket.socket] = {}
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        with _listen(port, patience) as server:
            while len(callers) < count - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    caller = stack.enter_context(server.accept()[0])
                except TimeoutError:
                    absent = ", ".join(str(i) for i in range(1, count) if i not in callers)
                    message = f"of {count} processes these did not come within {seconds:g} s: {absent}"
                    _tell(callers, f"no {message}")
                    raise TryAgain(f"process 0: {message}. Do they run, and do they reach port {port} here?") from None
                _welcome(caller, callers, count)
        _tell(callers, "go")
        for caller in callers.values():  # those who called hang up, so that the port is free for JAX at once
            with contextlib.suppress(OSError):
                caller.settimeout(_ANSWER)
                caller.recv(1)


def _listen(port: int, patience: float) -> socket.socket:
    deadline = time.monotonic() + patience
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
            return socket.create_server(("", port), backlog=512)
        except OSError as error:
            if time.monotonic() > deadline:
                raise TryAgain(
                    f"process 0: port {port}, where the others would find it, cannot be had: {error.strerror}. Another run may "
                    f"have it: end that, or give all processes another --coordinator=HOST:PORT."
                ) from error
            time.sleep(0.5)


def _welcome(caller: socket.socket, callers: dict[int, socket.socket], count: int) -> None:
    """Takes a process in, unless it is of another run, or no process at all; forgets those who are gone."""
    for index in [index for index, waiting in callers.items() if _hung_up(waiting)]:
        del callers[index]
    caller.settimeout(_ANSWER)
    with contextlib.suppress(OSError):
        words = _read(caller).split()
        if len(words) != 3 or words[0] != "ec_dit" or not words[1].isdigit():
            caller.close()
        elif words[2] != str(count) or not 0 < int(words[1]) < count:
            caller.sendall(f"wrong it waits for processes 1 to {count - 1} of {count}\n".encode())
        elif int(words[1]) in callers:
            caller.sendall(f"wrong another process {words[1]} is there already\n".encode())
        else:
            caller.sendall(b"wait\n")
            callers[int(words[1])] = caller


def _hung_up(caller: socket.socket) -> bool:
    """Whether a process that waited is gone; those who wait say nothing."""
    return bool(select.select([caller], [], [], 0)[0])


def _tell(callers: dict[int, socket.socket], message: str) -> None:
    for caller in callers.values():
        with contextlib.suppress(OSError):
            caller.sendall(f"{message}\n".encode())


def _call(host: str, port: int, count: int, index: int, seconds: float, patience: float) -> None:
    """The part of the others."""
    start, strange = time.monotonic(), None
    while (now := time.monotonic()) < start + seconds:
        first, reason, connected, silent = "", "", False, False
        try:
            with socket.create_connection((host, port), timeout=_ANSWER) as line:
                connected = True
                line.sendall(f"ec_dit {index} {count}\n".encode())
                if (first := _read(line)) == "wait":
                    line.settimeout(seconds + _ANSWER)  # it knows when to give up
                    word, _, reason = _read(line).partition(" ")
                    if word == "go":
                        return
                    if word == "no":
                        raise TryAgain(f"process {index}: {reason}")
        except UnicodeError:
            raise UserError(f"process {index} of {count}: {host!r} is no name of a host.") from None
        except OSError as error:
            silent = connected and isinstance(error, TimeoutError)
            reason = "it does not answer" if silent else error.strerror or str(error)
        if first.startswith("wrong "):
            raise UserError(
                f"process {index} of {count}: process 0 at {host}:{port} says that {first.removeprefix('wrong ')}. Check "
                f"--num_processes and --process_id, and that another run does not have this port."
            )
        # Process 0 answers at once: whoever listens and does not is another. What cannot be reached, or hangs up, still starts.
        strange = (strange or now) if first not in ("", "wait") or (silent and not first) else None
        if strange is not None and now - strange > patience:
            raise TryAgain(
                f"process {index} of {count}: whatever is at {host}:{port} is not process 0 of this run "
                f"({reason or 'it speaks otherwise'}). Another run may have that port."
            )
        time.sleep(0.5)
    raise TryAgain(
        f"process {index} of {count}: process 0 was not at {host}:{port} within {seconds:g} s ({reason or 'it went away'}). "
        f"Does it run, and can it be reached from here?"
    )


def _read(line: socket.socket) -> str:
    """A line of at most 200 characters."""
    found = b""
    try:
        while not found.endswith(b"\n") and len(found) < 200 and (byte := line.recv(1)):
            found += byte
    except ConnectionError:  # who hangs up with our words unread resets the line; what it said before that counts
        if not found:
            raise
    return found.decode(errors="replace").rstrip("\n")
