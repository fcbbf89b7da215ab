"""What an exception says of the user's machine."""

import errno
import os
import resource

import aiohttp
import gcsfs.retry
import google.auth.exceptions
import pytest
import requests
import tensorstore

from ec_dit.core.errors import TryAgain, UserError, explain


def system(number, *rest):
    return OSError(number, os.strerror(number), *rest)


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (system(errno.ENOSPC, "/a/b"), TryAgain, "No space left on device: '/a/b'. Make room there"),
        (system(errno.EDQUOT), TryAgain, "Make room there, or raise the limit"),
        (system(errno.EFBIG), TryAgain, "File too large. Make room there, or raise the limit"),
        (caused(UserError("cannot write x"), system(errno.ENOSPC)), TryAgain, "cannot write x. Make room there"),
        (system(errno.EACCES, "/a"), UserError, "Permission denied: '/a'"),
        (system(errno.ENAMETOOLONG, "a"), UserError, "File name too long"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), TryAgain, "reset"),
        (TimeoutError(), TryAgain, "TimeoutError"),
        (requests.exceptions.ConnectionError("no route"), TryAgain, "no route"),
        (aiohttp.ClientPayloadError("cut off"), TryAgain, "cut off"),
        (gcsfs.retry.HttpError({"code": 503, "message": "busy"}), TryAgain, "busy, 503"),
        (gcsfs.retry.HttpError({"code": 429, "message": "slow"}), TryAgain, "slow, 429"),
        (gcsfs.retry.HttpError({"code": 401, "message": "who"}), UserError, "who, 401"),
        (OSError("Forbidden: b/bucket/o\n403 for GET"), UserError, "Forbidden: b/bucket/o"),  # of gcsfs
        (google.auth.exceptions.TransportError("no token"), TryAgain, "no token"),
        (ValueError("UNAVAILABLE: try later"), TryAgain, "try later"),
        (ValueError("PERMISSION_DENIED: no"), UserError, "PERMISSION_DENIED: no"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
            UserError,
            "Out of memory. The memory of a device is used up",
        ),
        (MemoryError(), UserError, "memory is used up"),
        (TryAgain("the port is taken"), TryAgain, "the port is taken"),
        (UserError("a typo"), UserError, "a typo"),
    ],
)
def test_what_is_the_users_or_passes(error, kind, part):
    found = explain(error)
    assert type(found) is kind
    assert part in str(found)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), OSError("connection lost"), RuntimeError("UNAVAILABLE: a")]
)
def test_faults_of_the_program_stay_what_they_are(error):
    assert explain(error) is None


def test_a_file_that_the_system_lets_grow_no_further(tmp_path):
    """As TensorStore tells of it, which writes checkpoints."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = {"driver": "file", "path": f"{tmp_path}/x"}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ValueError, match=r"File too large") as caught:
            tensorstore.KvStore.open(store).result().write("", b"0" * 10_000).result()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert type(explain(caught.value)) is TryAgain
