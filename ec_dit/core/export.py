"""Models written as hubs publish them, and the digests of their files beside them, by which damage is found on reading."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ec_dit.core import hub, json_file, paths
from ec_dit.core.digests import FILE as DIGESTS

_SHARD_BYTES = 2 * 2**30


def write(
    folder: str | Path, stem: str, tensors: Iterable[tuple[str, np.ndarray | None]], shard_bytes: int = _SHARD_BYTES
) -> dict[str, str]:
    """Writes tensors as safetensors, with an index where they are more than a file should hold.

    Args:
        tensors: (name, array); an array of None is somebody else's to write.
        shard_bytes: of one file, at most, unless one tensor has more.

    Returns:
        The SHA-256 of each file by its name; none where all tensors are another process's.
    """
    target = paths.at(folder)
    target.mkdir(parents=True, exist_ok=True)
    shards: list[tuple[list[str], str]] = []  # names, and the digest of their file
    waiting: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        if not shards:
            for old in [*target.glob(f"{stem}*.safetensors"), *target.glob(f"{stem}*.safetensors.index.json")]:
                old.unlink()
        data = save(waiting, metadata={"format": "pt"})
        shards.append((list(waiting), hashlib.sha256(data).hexdigest()))
        (target / f"{stem}-{len(shards):05d}.part").write_bytes(data)
        waiting.clear()

    for name, array in tensors:
        if array is None:
            continue
        if waiting and sum(a.nbytes for a in waiting.values()) + array.nbytes > shard_bytes:
            flush()
        waiting[name] = np.asarray(array, order="C")
        total += array.nbytes
    if waiting:
        flush()
    digests: dict[str, str] = {}
    where: dict[str, str] = {}
    for number, (names, digest) in enumerate(shards, 1):
        final = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        (target / f"{stem}-{number:05d}.part").rename(target / final)
        where |= dict.fromkeys(names, final)
        digests[final] = digest
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        digests |= write_files(folder, {f"{stem}.safetensors.index.json": _json(index)})
    return digests


def write_files(folder: str | Path, contents: Mapping[str, bytes]) -> dict[str, str]:
    """Writes files in their order; the SHA-256 of each by its name."""
    for name, data in contents.items():
        (paths.at(folder) / name).write_bytes(data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def finish(folder: str | Path, digests: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Writes what `check` compares, and config.json, with which the folder is complete."""
    data = _json(config)
    listed = {**digests, hub.CONFIG: hashlib.sha256(data).hexdigest()}
    write_files(folder, {DIGESTS: _json(json_file.seal({"files": listed})), hub.CONFIG: data})


def check(path: str | Path) -> None:
    """Compares the files of a folder, or of the folder that a file lies in, with the digests written beside them.

    Folders without digests pass: files that others published, and those of whoever removed the digests after a change.

    Raises:
        DamageError: naming a file that is missing or not as it was written.
    """
    folder = hub.folder_of(hub.local(path))
    where = folder / DIGESTS
    if not where.is_file():
        return
    advice = f"Bring a copy back, or write the folder again. After a change of your own, remove {where}."
    found = json_file.read_sealed(where, advice)
    for name, digest in json_file.typed(found.get("files"), dict[str, str], str(where), advice).items():
        file = folder / Path(name).name
        if not file.is_file():
            raise json_file.damaged(str(folder), f"{name} is missing", advice)
        with file.open("rb") as data:
            if hashlib.file_digest(data, "sha256").hexdigest() != digest:
                raise json_file.damaged(str(file), f"its SHA-256 is not that in {DIGESTS}", advice)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
