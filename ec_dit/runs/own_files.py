"""Whose the files of an output folder are: a record that a call leaves lists those that the next one may replace."""

import contextlib
import re
from collections.abc import Callable

from etils import epath

from ec_dit.core import json_file, paths
from ec_dit.core.errors import DamageError, UserError


def of_earlier_call(folder: epath.Path, record: str, ours: re.Pattern[str], wanted: Callable[[str], bool]) -> list[str]:
    """Lists the files of an earlier call, without its record; [] where there is no folder.

    Args:
        record: name of a JSON file, whose `files` names the others.
        ours: what those may be called; a record that lists others is somebody else's.
        wanted: tells names that this call may write.

    Raises:
        UserError: the folder cannot be written, or holds a file under a wanted name that no record lists.
    """
    paths.check_can_write(folder, "--out")
    if not folder.exists():
        return []
    there = set(paths.sizes(folder))
    own: list[str] = []
    if record in there:
        with contextlib.suppress(DamageError):  # then it is none of ours
            listed = json_file.read(folder / record).get("files")
            if isinstance(listed, list) and all(isinstance(name, str) and ours.fullmatch(name) for name in listed):
                own = [record, *listed]
    if foreign := sorted(name for name in there - set(own) if name == record or wanted(name)):
        raise UserError(
            f"--out={folder} holds {foreign[0]}{' and others' if len(foreign) > 1 else ''}, which no record of an earlier call "
            f"there lists, and which would be written over: give another folder"
        )
    return sorted(there & set(own) - {record})
