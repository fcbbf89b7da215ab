"""The processes of one run: how they find each other, wait for each other, agree, and end together.

On a TPU pod, under SLURM's srun, or where the JAX_* variables or flags say so, a run is several processes, each of which sees a
part of the devices. Everywhere else it is one, and everything here does nothing.
"""

import contextlib
import hashlib
import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from ec_dit.core import paths, places, rendezvous
from ec_dit.core.errors import DamageError, TryAgain, UserError, explain

HEARTBEAT_SECONDS = 100  # after which a silent process counts as dead
_START_SECONDS, _END_SECONDS = 600, 120  # how long processes wait for each other to start, and to end
_WORK_SECONDS = 24 * 3600  # at a barrier, for what one process does for all; a dead one is noticed by its heartbeat
VISIBLE_SECONDS = 90  # until what one host writes to a network disk shows on another


def join(
    place: tuple[str | None, int | None, int | None] = (None, None, None),
    *,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Connects this process with the others, where there are others; to be called before anything asks JAX for devices.

    Args:
        place: as in `places.find`. Where it and the environment say nothing, JAX asks the metadata of a TPU pod.
        heartbeat_seconds: after which a process that died brings down the others.

    Raises:
        UserError: if there are others, which do not say where they are.
        TryAgain: if others do not come, or the coordinator's port is taken.
    """
    if joined():
        return
    found = places.find(place, os.environ)
    if found.count == 1 if found else not _on_tpu():
        return
    import jax

    # Orbax would ask this service too, with step numbers of its own; stopping.StopSignal makes one for itself.
    jax.config.update("jax_enable_preemption_service", False)
    arguments: dict[str, Any] = {}
    if found is not None:  # a process sees all devices of its host, where JAX under SLURM gives each task one
        arguments = {"coordinator_address": found.coordinator, "num_processes": found.count, "process_id": found.index}
        arguments["cluster_detection_method"] = "deactivate"
        where = f"process {found.index} of {found.count}"
        print(f"{where}: waiting for {found.coordinator}, {_START_SECONDS} s at most", file=sys.stderr, flush=True)
        rendezvous.meet(found.coordinator, found.count, found.index, seconds=_START_SECONDS)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=_END_SECONDS,
        )
    except (ValueError, OSError) as error:  # a TPU without a pod around it, or without a server that tells of it
        if found is not None:
            raise
        if jax.process_count() > 1:
            raise UserError(
                f"this TPU belongs to a slice of {jax.process_count()} hosts, and its metadata do not say where they are: "
                f"{error}. Give --coordinator=HOST:PORT --num_processes=N --process_id=I."
            ) from error


def joined() -> bool:
    """Whether `join` has connected this process with others."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _on_tpu() -> bool:
    wanted = os.environ.get("JAX_PLATFORMS", "")
    return (not wanted or "tpu" in wanted) and any(Path(p).exists() for p in ("/dev/accel0", "/dev/vfio/0"))


_alone = False


@contextlib.contextmanager
def alone() -> Any:
    """Within it, this process counts as the only one: for what each does by itself."""
    global _alone  # noqa: PLW0603 - a process is in one place at a time
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def count() -> int:
    """How many processes the run has."""
    if _alone or not joined():
        return 1
    import jax

    return jax.process_count()


def index() -> int:
    """Which of them this is."""
    if _alone or not joined():
        return 0
    import jax

    return jax.process_index()


def is_first() -> bool:
    """Whether this is the process that prints and writes what is written once."""
    return index() == 0


def label() -> str:
    """' [process 1 of 2]' for messages; empty where there is one process."""
    return f" [process {index()} of {count()}]" if count() > 1 else ""


def wait(name: str, seconds: int = _WORK_SECONDS) -> None:
    """Until all processes are here; every call needs a `name` of its own."""
    if count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=f"ec_dit {name}", timeout_ms=1000 * seconds)


@contextlib.contextmanager
def first_goes_ahead(name: str) -> Any:
    """The body runs in process 0 alone first, then in all others: what it finds done it need not do again.

    Raises:
        what process 0 met, in all, as `told_by_first` does; the others do not begin.
    """
    first = is_first()
    with told_by_first():
        if first:
            try:
                yield
            except Exception:
                wait(name)
                raise
        wait(name)
    if not first:
        yield


@contextlib.contextmanager
def told_by_first() -> Any:
    """In the body process 0 does something for all: what it meets is raised in every process. All of them enter it.

    Raises:
        UserError: where it is one, or what `errors.explain` makes one, of the same kind in all.
        RuntimeError: in the others, where process 0 raises something else.
    """
    met: Exception | None = None
    try:
        yield
    except Exception as error:
        if count() == 1:
            raise
        met = explain(error) or error
    if count() > 1:
        (told,) = _said(b"" if met is None else _packed(met), (0,))
        if met is None and told:
            met = _unpacked(told)
    if met is not None:
        raise met


_TELLABLE: tuple[type[Exception], ...] = (DamageError, TryAgain, UserError)


def _packed(error: Exception) -> bytes:
    """The number of an error's kind, and its message."""
    kinds = [number for number, kind in enumerate(_TELLABLE) if isinstance(error, kind)]
    text = str(error) if kinds else f"process 0 failed: {type(error).__name__}: {error}"
    return f"{kinds[0] if kinds else len(_TELLABLE)} {text}".encode(errors="backslashreplace")


def _unpacked(told: bytes) -> Exception:
    kind, _, text = told.partition(b" ")
    return (*_TELLABLE, RuntimeError)[int(kind)](text.decode(errors="ignore"))


_talks = itertools.count()


def _line() -> tuple[Any, str]:
    """Gives the coordinator's store of words, and where in it those of the next talk lie; all of them ask, in the same order.

    They go that way and not by devices: nothing is compiled, and whoever is late is waited for.
    """
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None
    return client, f"ec_dit/{next(_talks)}"


def _said(content: bytes, speakers: Sequence[int]) -> list[bytes]:
    """What each of `speakers` says, in every process; all of them ask, in the same order."""
    client, talk = _line()
    if index() in speakers:
        client.key_value_set_bytes(f"{talk}/{index()}", content)
    return [client.blocking_key_value_get_bytes(f"{talk}/{i}", 1000 * _WORK_SECONDS) for i in speakers]


def check_same(text: str, what: str) -> None:
    """Compares a short text over all processes.

    Raises:
        UserError: in every process, if one differs from that of process 0.
    """
    if count() == 1:
        return
    said = _said(hashlib.sha256(text.encode(errors="backslashreplace")).digest(), range(count()))
    if differing := [i for i, digest in enumerate(said) if digest != said[0]]:
        raise UserError(f"{what} is not the same on all processes: {differing} differ from 0. Here: {text}")


def of_first(text: str) -> str:
    """The text that process 0 has, in every process; all of them ask."""
    return text if count() == 1 else _said(text.encode(), (0,))[0].decode()


def everywhere(holds: bool) -> bool:
    """Whether something holds in every process; all of them ask."""
    return holds if count() == 1 else all(map(bool, _said(b"holds" if holds else b"", range(count()))))


def add_words(words: np.ndarray) -> np.ndarray:
    """The sum over all processes of an array of uint32, modulo 2**32, in each of them; all ask, with the same shape."""
    if count() == 1:
        return words
    client, talk = _line()
    if is_first():
        for i in range(1, count()):
            said = client.blocking_key_value_get_bytes(f"{talk}/{i}", 1000 * _WORK_SECONDS)
            client.key_value_delete(f"{talk}/{i}")
            words = words + np.frombuffer(said, np.uint32).reshape(words.shape)
    else:
        client.key_value_set_bytes(f"{talk}/{index()}", words.tobytes())
    (total,) = _said(words.tobytes(), (0,))
    return np.frombuffer(total, np.uint32).reshape(words.shape)


def check_shared(folder: epath.Path, flag: str) -> None:
    """Makes `folder`, and finds out whether all processes see the same one.

    Raises:
        UserError: in those that do not; `flag` names what to change. In all, where process 0 cannot write there.
    """
    if count() == 1:
        folder.mkdir(parents=True, exist_ok=True)
        return
    token = of_first(os.urandom(8).hex())
    mark = folder / f".shared-{token}"
    paths.look_again(folder)
    with told_by_first():
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(token)
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not mark.exists():
        if time.monotonic() > deadline:
            raise UserError(f"process 0 wrote to {folder}, which this process does not see: give {flag}, seen by all.")
        time.sleep(1)
        paths.look_again(folder)
    wait(f"all see {folder}")
    if is_first():
        mark.unlink()


def leave(code: int, *, failed: bool) -> int:
    """To be called last, with the exit code, which it returns.

    A process that `failed` does not wait for the others, who may be waiting for it: unless they fail alike within seconds, it is
    gone at once, and its missing heartbeat brings them down.
    """
    if not joined():
        return code
    import jax

    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if failed:
            wait("all fail alike", seconds=5)
        else:
            wait("all are done")  # the first may still be writing; shutting down has little patience
        jax.distributed.shutdown()
    except Exception:  # noqa: BLE001 - whatever it is: Python's own way out would wait for the others
        os._exit(code)
    return code


STOPPED = 75  # exit code of what goes on when started again: SIGTERM stopped it, or a full disk did, ... (EX_TEMPFAIL)
