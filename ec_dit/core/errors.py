"""The exceptions for what a user, or time, can mend: entry points print their message alone, without a traceback."""

import difflib
import errno
import re
import socket
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Wrong input, config or environment. The message names the value found, why it fails and what to do."""


class DamageError(UserError):
    """A file whose content was read and is not what was written there; where it could not be read, that is no damage."""


class TryAgain(UserError):
    """What may pass without a change to the command: a full disk, a network or bucket that does not answer, a taken port.

    Entry points end with the exit code that a watcher takes for "start it again, later".
    """


_SHOWN = 80  # letters of what a user wrote
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PASSING = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
}
_PASSING |= {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETRESET, errno.EADDRINUSE, errno.ESTALE}
_MISTAKES = {errno.EROFS, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_MISTAKES |= {errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.EMFILE, errno.ENFILE, errno.ENOTEMPTY, errno.EBUSY}
_NETWORK = ("aiohttp", "requests", "urllib3", "gcsfs", "google")  # packages whose exceptions tell of it
_PASSING_STATUS, _MISTAKEN_STATUS = ("UNAVAILABLE", "DEADLINE_EXCEEDED"), ("PERMISSION_DENIED", "UNAUTHENTICATED")


def explain(error: BaseException) -> UserError | None:
    """What an exception, or the one that caused it, says of the user's machine; None where it is a fault of the program.

    A UserError that a passing trouble caused becomes a TryAgain.
    """
    text = str(error).strip() or type(error).__name__
    for cause in _causes(error):
        if (found := _kind(cause)) is not None:
            kind, advice = found
            return kind(text if advice in text else text + advice)
    return error if isinstance(error, UserError) else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, what it was raised from, and so on."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        yield cause
        seen.append(cause)
        cause = cause.__cause__


def _kind(error: BaseException) -> tuple[type[UserError], str] | None:
    """(kind of message, advice) of an exception that is not the program's own."""
    if isinstance(error, UserError):
        return (TryAgain, "") if isinstance(error, TryAgain) else None
    if isinstance(error, MemoryError):
        return UserError, " (memory is used up)"
    if isinstance(error, RuntimeError) and str(error).startswith("RESOURCE_EXHAUSTED"):  # XLA, of a device
        return UserError, ". The memory of a device is used up: smaller batches, or more devices, need less of it."
    code, status = system_code(error), status_of(error)
    if code in _FULL:
        return TryAgain, ". Make room there, or raise the limit, and start the same command again."
    forbidden = isinstance(error, OSError) and code is None and str(error).startswith("Forbidden: ")  # of gcsfs
    if code in _MISTAKES or status in _MISTAKEN_STATUS or forbidden:
        return UserError, ""
    http = getattr(error, "code", None) if _of_network(error) else None
    if http is not None:
        return (TryAgain, "") if str(http) in ("408", "429") or str(http).startswith("5") else (UserError, "")
    if (
        code in _PASSING
        or status in _PASSING_STATUS
        or isinstance(error, ConnectionError | TimeoutError | socket.gaierror)
    ):
        return TryAgain, ""
    return (TryAgain, "") if _of_network(error) else None


def system_code(error: BaseException) -> int | None:
    """The errno that an exception carries; TensorStore's ValueErrors have it in their text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\[os_error_code='(\d+)'\]", str(error)) if isinstance(error, ValueError) else None
    return int(found[1]) if found else None


def status_of(error: BaseException) -> str:
    """The status with which a ValueError of TensorStore begins, such as NOT_FOUND; '' of anything else."""
    found = re.match(r"([A-Z_]{5,}): ", str(error)) if type(error) is ValueError else None
    return found[1] if found else ""


def _of_network(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] in _NETWORK for kind in type(error).__mro__)


def shortened(text: str) -> str:
    """A text of the user's for a message, and not all of it where it is long."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """' (did you mean X?)' with the nearest of the `known` words; '' where none is as similar as `cutoff`, of 0 to 1."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""
