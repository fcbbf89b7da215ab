"""What an exception says of the user's machine."""

import errno
import os
import resource

import aiohttp
import gcsfs.retry
import google.auth.exceptions
import google.protobuf.message
import pytest
import requests
import tensorstore

from ec_dit.core.errors import TryAgain, UserError, explain


def system(number, *rest):
    return OSError(number, os.strerror(number), *rest)


def caused(error, cause):
    error.__cause__ = cause
    return error


def answered(status):
    response = requests.Response()
    response.status_code = status
    return requests.exceptions.HTTPError(f"the server answered {status}", response=response)


NO_WAY = google.auth.exceptions.TransportError("the metadata server does not answer")
REJECTED = gcsfs.retry.HttpError({"code": 401, "message": "Invalid Credentials"})  # gcsfs says so of all that fails


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (system(errno.ENOSPC, "/a/b"), TryAgain, "No space left on device: '/a/b'. Make room there"),
        (system(errno.EDQUOT), TryAgain, "Make room there, or raise the limit"),
        (system(errno.EFBIG), TryAgain, "File too large. Make room there, or raise the limit"),
        (caused(UserError("cannot write x"), system(errno.ENOSPC)), TryAgain, "cannot write x. Make room there"),
        (system(errno.EACCES, "/a"), UserError, "Permission denied: '/a'"),
        (system(errno.ENAMETOOLONG, "a"), UserError, "File name too long"),
        (system(errno.EIO, "/m/x"), TryAgain, "Input/output error: '/m/x'. The disk, or what is mounted there, failed"),
        (system(errno.ENOTCONN, "/m/x"), TryAgain, "is not connected: '/m/x'. The disk, or what is mounted there"),
        (system(errno.EREMOTEIO), TryAgain, "Remote I/O error. The disk, or what is mounted there"),
        (system(errno.ENODEV), TryAgain, "No such device. The disk, or what is mounted there"),
        (BlockingIOError(errno.EAGAIN, "busy"), TryAgain, "busy"),
        (system(errno.ENOMEM), TryAgain, "Cannot allocate memory (memory is used up)"),
        (
            ValueError("reading local file /m/0 [os_error_code='5']"),
            TryAgain,
            "what is mounted there",
        ),  # of TensorStore
        (system(errno.EINVAL, "/m/x"), UserError, "Invalid argument: '/m/x'"),  # a mounted bucket, a rare file system
        (system(errno.ENOLCK, "/m/x"), UserError, "No locks available: '/m/x'"),
        (system(errno.EXDEV, "/a", None, "/b"), UserError, "Invalid cross-device link: '/a' -> '/b'"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), TryAgain, "reset"),
        (TimeoutError(), TryAgain, "TimeoutError"),
        (requests.exceptions.ConnectionError("no route"), TryAgain, "no route"),
        (aiohttp.ClientPayloadError("cut off"), TryAgain, "cut off"),
        (gcsfs.retry.HttpError({"code": 503, "message": "busy"}), TryAgain, "busy, 503"),
        (gcsfs.retry.HttpError({"code": 429, "message": "slow"}), TryAgain, "slow, 429"),
        (gcsfs.retry.HttpError({"code": 401, "message": "who"}), UserError, "who, 401"),
        (OSError("Forbidden: b/bucket/o\n403 for GET"), UserError, "Forbidden: b/bucket/o"),  # of gcsfs
        (google.auth.exceptions.TransportError("no token"), TryAgain, "no token"),
        (google.auth.exceptions.TimeoutError("slow"), TryAgain, "slow"),
        (google.auth.exceptions.RefreshError("slow down", retryable=True), TryAgain, "slow down"),
        (caused(google.auth.exceptions.RefreshError("no"), NO_WAY), TryAgain, "no"),
        (caused(REJECTED, caused(google.auth.exceptions.RefreshError("no"), NO_WAY)), TryAgain, "Invalid Credentials"),
        (google.auth.exceptions.RefreshError("invalid_grant"), UserError, "invalid_grant"),
        (google.auth.exceptions.DefaultCredentialsError("none"), UserError, "none"),
        (google.auth.exceptions.ReauthFailError("again"), UserError, "again"),
        (
            caused(gcsfs.retry.NonRetryableError("half a key"), google.auth.exceptions.RefreshError("x")),
            UserError,
            "half",
        ),
        (requests.exceptions.InvalidURL("no host in http://"), UserError, "no host"),
        (answered(404), UserError, "answered 404"),
        (answered(503), TryAgain, "answered 503"),
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
    "error",
    [
        ValueError("x"),
        KeyError("x"),
        OSError("connection lost"),
        RuntimeError("UNAVAILABLE: a"),
        google.protobuf.message.DecodeError("x"),
    ],
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
