"""Which files of a folder are a data set's: only what our own record of it lists is ever removed, and all else stays."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath

from etils import epath

from ec_dit.core import json_file, paths
from ec_dit.core.errors import DamageError, UserError
from ec_dit.data import layout
from ec_dit.data.layout import INCOMPLETE, REPORT

_RESERVED = (layout.SKIPPED, layout.TOKENIZER, layout.ENCODING, layout.DESCRIPTION, layout.FEATURES)


class TakenError(UserError):
    """A finished data set is where another was to be made."""


def place_of(out: str | PurePath) -> epath.Path:
    """Resolves the folder that `out` means: on a disk with links followed, as a folder itself is moved to its place."""
    place = paths.at(out)
    return place if paths.is_remote(place) else epath.Path(os.path.realpath(place))


def listed(folder: epath.Path) -> list[str] | None:
    """Lists the files of the data set in a folder, its report last; None where it holds no report of one."""
    try:
        found = json_file.read(folder / REPORT)
    except (DamageError, FileNotFoundError, NotADirectoryError):
        return None
    names = found.get("files")
    if type(found.get("format")) is not int or not {"source", "kept"} <= found.keys() or not isinstance(names, dict):
        return None
    if any(name in ("", "..", REPORT) or name != PurePosixPath(name).name for name in names):
        return None
    return [*names, REPORT]


def foreign(folder: epath.Path, own: Sequence[str]) -> list[epath.Path]:
    """Lists what else lies in a folder."""
    return sorted(path for path in folder.iterdir() if path.name not in own)


def remove(folder: epath.Path, own: Sequence[str]) -> None:
    """Removes files, the last one last, and the folder if that leaves nothing in it."""
    *files, last = own
    paths.remove(folder / name for name in files)
    (folder / last).unlink(missing_ok=True)
    if not paths.is_remote(folder) and not any(folder.iterdir()):
        folder.rmdir()


def check_free(out: str | PurePath, overwrite: bool) -> None:
    """Looks whether a data set may be made at `out`: where nothing is, one is in the making, or one may be replaced.

    Raises:
        TakenError: there is a finished data set.
        UserError: there is something else, or a disk is mounted there, which no folder can replace; or its name is no text.
    """
    place = place_of(out)
    paths.check_is_text(place, "a data set")
    if not paths.is_remote(place) and _is_mount_point(place):
        raise UserError(
            f"{place} is where a disk is mounted, and a finished data set is moved to its place as a folder; name a folder "
            f"in it, such as {place / 'data'}"
        )
    if is_free(place):
        return
    if not place.is_dir():
        raise UserError(f"{place} is a file; name a folder for the data set")
    if paths.is_remote(place) and (place / INCOMPLETE).exists():
        return
    own = listed(place)
    if own is None:
        state = f"a {REPORT} that is none of a data set" if (place / REPORT).exists() else "other files"
        raise UserError(f"{place} holds {state}, and nobody knows what in it may be replaced; name another folder")
    if not overwrite:
        raise TakenError(f"{place} already holds a data set; name another folder, or pass --overwrite to replace it")
    names = [path.name for path in foreign(place, own)]
    if taken := [name for name in names if name in _RESERVED or layout.is_record_file(name)]:
        raise UserError(
            f"{place} holds {', '.join(taken[:5])}, which its {REPORT} does not list, under names that a data set takes; "
            "move that away first"
        )


def is_free(out: epath.Path) -> bool:
    """Tells whether nothing lies there, but perhaps an empty folder."""
    return not out.exists() or (out.is_dir() and not any(out.iterdir()))


def _is_mount_point(folder: epath.Path) -> bool:
    """Whether something is mounted there, if only another folder of the same disk."""
    if os.path.ismount(folder):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    mounted = (line.split(" ", 5)[4] for line in lines)  # spaces and the like are written as \040
    return str(folder) in (re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), name) for name in mounted)


def restore(replaced: Path, place: epath.Path) -> None:
    """Brings an old data set back that was not replaced after all; removes one that was, but for what is not its own.

    Args:
        replaced: where it waits; there may be none.
        place: its folder; what is not its own goes on to the set that is there now.
    """
    if not replaced.exists():
        return
    if is_free(place):
        if place.exists():
            place.rmdir()
        replaced.rename(place)
        return
    own = listed(epath.Path(replaced)) or [REPORT]
    for path in foreign(epath.Path(replaced), own):
        if not (place / path.name).exists():
            Path(path).rename(place / path.name)
    remove(epath.Path(replaced), own)
