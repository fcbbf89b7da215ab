"""The files of a finished checkpoint: a list of their sizes, and of the digests of small ones, by which a flipped bit is found.

Orbax writes much that reading does not look at, or twice; the fingerprints of arrays say nothing of it. Files of more than a
mebibyte hold arrays, and are not read a second time: their size is compared, and what is read of them by its fingerprints.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath
from etils.epath import backend

from ec_dit.core import digests, json_file, paths

FILE = digests.FILE
_SMALL = 2**20  # bytes


def write_list(folder: epath.Path) -> None:
    """Writes the list of a folder in which nothing is written any more."""
    with ThreadPoolExecutor(32) as pool:
        sizes = _sizes(folder)
        found = pool.map(lambda name: _found(folder, name, sizes[name]), sizes)
        listed = dict(zip(sizes, found, strict=True))
    digests.replace(folder / FILE, json.dumps(json_file.seal({"files": listed})).encode())


def compare(folder: epath.Path) -> None:
    """Compares a folder with its list; one without a list, of an earlier version or after a kill, passes.

    Raises:
        DamageError: naming a file that is missing, or not as it was written.
    """
    where = f"checkpoint {folder}"
    try:
        listed = json_file.typed(json_file.read_sealed(folder / FILE).get("files"), dict[str, str], where)
    except FileNotFoundError:
        return
    except json_file.DamageError:
        raise json_file.damaged(where, f"its {FILE} is not what was written") from None
    sizes = _sizes(folder)
    with ThreadPoolExecutor(32) as pool:
        found = pool.map(lambda name: _found(folder, name, sizes[name]) if name in sizes else None, listed)
        for (name, written), here in zip(listed.items(), found, strict=True):
            if here != written:
                raise json_file.damaged(where, f"{name} is {'missing' if here is None else 'not as it was written'}")


def _found(folder: epath.Path, name: str, size: int) -> str:
    """The digest of a small file, the size of another."""
    return f"{size} bytes" if size > _SMALL else hashlib.sha256((folder / name).read_bytes()).hexdigest()


def _sizes(folder: epath.Path) -> dict[str, int]:
    """Bytes of every file but the list itself, by its path in the folder."""
    if paths.is_remote(folder):
        paths.look_again(folder)
        root = str(folder).partition("://")[2]
        listed = backend.fsspec_backend.fs(folder).find(str(folder), detail=True)
        found = {name.removeprefix(f"{root}/"): int(entry["size"]) for name, entry in listed.items()}
    else:
        files = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
        found = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    return {name: found[name] for name in sorted(found) if name != FILE}
