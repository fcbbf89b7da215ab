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
_PASSING |= {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETRESET, errno.EADDRINUSE, errno.ESTALE, errno.EAGAIN}
_BROKEN = {errno.EIO, errno.ENOTCONN, errno.EREMOTEIO, errno.ENODEV}  # of disks, and of mounted buckets and folders
_NETWORK = ("aiohttp", "requests", "urllib3", "gcsfs", "google.api_core", "google.auth", "google.cloud")
_PASSING_KINDS = ("TransportError", "TimeoutError")  # of google.auth
# Of TensorStore: what a transport gives for servers and networks. Damaged content is DATA_LOSS, FAILED_PRECONDITION,
# OUT_OF_RANGE, INVALID_ARGUMENT or NOT_FOUND.
_PASSING_STATUS = (
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "ABORTED",
    "CANCELLED",
    "INTERNAL",
    "RESOURCE_EXHAUSTED",
    "UNKNOWN",
)
_MISTAKEN_STATUS = ("PERMISSION_DENIED", "UNAUTHENTICATED")


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
    if code in _BROKEN:
        return TryAgain, ". The disk, or what is mounted there, failed; once it answers, start the same command again."
    if code == errno.ENOMEM:
        return TryAgain, " (memory is used up)"
    if _of_network(error):
        return (TryAgain if _passes(error) else UserError), ""
    if (
        code in _PASSING
        or status in _PASSING_STATUS
        or isinstance(error, ConnectionError | TimeoutError | socket.gaierror)
    ):
        return TryAgain, ""
    forbidden = isinstance(error, OSError) and str(error).startswith("Forbidden: ")  # of gcsfs
    # Whatever else a system refuses is of the place, not of the program: mounted buckets and rare file systems differ.
    return (UserError, "") if code is not None or status in _MISTAKEN_STATUS or forbidden else None


def _passes(error: BaseException) -> bool:
    """Whether what a package of the network raised may pass by itself, as credentials and addresses do not."""
    causes = list(_causes(error))
    if any(type(cause).__name__ in _PASSING_KINDS or getattr(cause, "retryable", False) for cause in causes):
        return True  # however gcsfs tells of it
    answer = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if answer is not None:
        return str(answer) in ("408", "429") or str(answer).startswith("5")
    mistaken = isinstance(error, ValueError) or type(error).__name__ == "NonRetryableError"  # an address; of gcsfs
    return not (mistaken or _of_network(error, ("google.auth",)))


def system_code(error: BaseException) -> int | None:
    """The errno that an exception carries; TensorStore's ValueErrors have it in their text."""
    if isinstance(error, OSError):
        return error.errno if isinstance(error.errno, int) else None
    found = re.search(r"\[os_error_code='(\d+)'\]", str(error)) if isinstance(error, ValueError) else None
    return int(found[1]) if found else None


def status_of(error: BaseException) -> str:
    """The status with which a ValueError of TensorStore begins, such as NOT_FOUND; '' of anything else."""
    found = re.match(r"([A-Z_]{5,}): ", str(error)) if type(error) is ValueError else None
    return found[1] if found else ""


def _of_network(error: BaseException, packages: tuple[str, ...] = _NETWORK) -> bool:
    """Whether the exception is of one of the packages that speak with networks."""
    return any(f"{kind.__module__}.".startswith(f"{name}.") for kind in type(error).__mro__ for name in packages)


def shortened(text: str) -> str:
    """A text of the user's for a message, and not all of it where it is long."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """' (did you mean X?)' with the nearest of the `known` words; '' where none is as similar as `cutoff`, of 0 to 1."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""
