"""Whether a bucket answers, asked before anything is read there: the libraries try again for minutes where none ever will."""

import functools
import logging
import os
import socket
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from etils.epath import backend

from ec_dit.core.errors import TryAgain, UserError

_SECONDS = 8  # for a connection, and for an answer


@functools.cache
def reach(bucket: str) -> None:
    """Asks a bucket of Google Cloud Storage for one name, with little patience; an answer is remembered.

    Raises:
        TryAgain: nothing answers.
        UserError: there is no such bucket, or it wants credentials and none are found.
    """
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs with tracebacks what it also raises
    host = os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    host = host if "://" in host else f"http://{host}"
    _connect(bucket, host)

    import requests  # which gcsfs brings

    files = backend.fsspec_backend.fs(f"gs://{bucket}")
    headers: dict[str, str] = {}
    files.credentials.apply(headers)
    try:
        url = f"{host}/storage/v1/b/{quote(bucket, safe='')}/o?maxResults=1"
        status = requests.get(url, headers=headers, timeout=_SECONDS).status_code
    except requests.RequestException as error:
        raise TryAgain(f"gs://{bucket} does not answer: {error}") from error
    if status == 404:
        raise UserError(f"there is no bucket gs://{bucket}; check its name.")
    if status in (401, 403) and files.credentials.credentials is None:
        raise UserError(
            f"gs://{bucket} wants credentials, and none are found here: run gcloud auth application-default login, or name a "
            f"key file in GOOGLE_APPLICATION_CREDENTIALS."
        )


def _connect(bucket: str, host: str) -> None:
    parts = urlsplit(host)
    if parts.scheme in getproxies():  # which may reach what this machine does not
        return
    met: OSError | None = None
    try:
        # One address of each family: where a firewall swallows what is sent, all that a name has would take minutes.
        port = parts.port or 443
        found = socket.getaddrinfo(parts.hostname or "", port, type=socket.SOCK_STREAM)
        for address in {family: str(where[0]) for family, *_, where in reversed(found)}.values():
            try:
                socket.create_connection((address, port), _SECONDS).close()
            except OSError as error:
                met = error
            else:
                return
    except OSError as error:
        met = error
    raise TryAgain(f"gs://{bucket}: {parts.hostname} cannot be reached ({met}). Is this machine online?") from met
