"""JSON files: one message for whatever may be wrong with them, and a digest by which a file shows that it is whole."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from ec_dit.core.errors import DamageError

SEAL = "sha256"  # the key of a sealed object's digest


def read(path: epath.Path, advice: str = "") -> dict[str, Any]:
    """Reads a file that holds one JSON object; `advice` says what to do about a damaged one.

    Raises:
        DamageError: where it holds anything else.
        OSError: where it cannot be read.
    """
    return parse(path.read_bytes(), str(path), advice)


def parse(data: bytes, where: str, advice: str = "") -> dict[str, Any]:
    """The JSON object in `data`, which come from `where`.

    Raises:
        DamageError: where they hold anything else.
    """
    try:
        content = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise damaged(where, f"byte {error.start} of {len(data)} is no text", advice) from error
    except ValueError as error:
        raise damaged(where, f"it is no JSON: {error}" if data.strip() else "it is empty", advice) from error
    except RecursionError as error:
        raise damaged(where, "its JSON is nested too deeply", advice) from error
    if not isinstance(content, dict):
        raise damaged(where, f"it holds a {type(content).__name__}, not an object", advice)
    return content


def damaged(where: str, reason: str, advice: str = "") -> DamageError:
    """The error that says so."""
    return DamageError(f"{where} is damaged: {reason}. {advice}".rstrip())


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with a digest of its other keys and values in it."""
    return {**content, SEAL: _digest(content)}


def unseal(sealed: Mapping[str, Any], where: str, advice: str = "") -> dict[str, Any]:
    """The object without its digest, which was compared; one that has none passes as it is.

    Raises:
        DamageError: where the digest is another.
    """
    content = {name: value for name, value in sealed.items() if name != SEAL}
    if SEAL in sealed and sealed[SEAL] != _digest(content):
        raise damaged(where, f"its content is not what its {SEAL} says", advice)
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
