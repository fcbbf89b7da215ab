"""Paths, on a disk or in a bucket (gs://BUCKET/...), as one kind of object."""

import importlib.util
import os
import re
import shutil
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

from etils import epath
from etils.epath import backend

from ec_dit.core import buckets
from ec_dit.core.errors import UserError
from ec_dit.core.terminal import printable


def is_remote(path: str | PurePath) -> bool:
    """Whether a path lies in a bucket."""
    return "://" in str(path)


def copy_files(folder: Path, target: epath.Path) -> None:
    """Copies the files of a local folder, those of its subfolders included."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        copy_file(path, target / path.relative_to(folder).as_posix())


def copy_file(path: Path, target: epath.Path) -> None:
    """Copies a local file, making the folder it goes to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 2**24)


def sizes(folder: epath.Path) -> dict[str, int]:
    """Bytes of every file in a folder, subfolders left out; of a bucket, by one listing."""
    if not is_remote(folder):
        return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    listed = backend.fsspec_backend.fs(folder).ls(str(folder), detail=True, refresh=True)
    return {PurePath(entry["name"]).name: int(entry["size"]) for entry in listed if entry["type"] == "file"}


def look_again(path: str | PurePath) -> None:
    """Forgets what is remembered of buckets: others may have written there since."""
    if is_remote(path):
        backend.fsspec_backend.fs(path).invalidate_cache()


def remove(paths: Iterable[epath.Path]) -> None:
    """Removes files, and folders with what is in them; many at a time."""
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda path: path.rmtree() if path.is_dir() else path.unlink(missing_ok=True), paths))


def at(path: str | PurePath) -> epath.Path:
    """The path as an object; one on a disk is made absolute, ~ being the home folder.

    Raises:
        UserError: for a bucket of a kind that is not supported, without the library that reads buckets, or one that refuses.
        TryAgain: a bucket does not answer.
    """
    text = str(path)
    if not is_remote(path):
        if re.match(r"(gs|s3|https?):", text):
            raise UserError(f"{text!r} is neither a folder nor a bucket; buckets are written gs://BUCKET/FOLDER.")
        if "\0" in text:
            raise UserError(f"{text!r} is no path: it has a NUL character.")
        return epath.Path(home_expanded(text).absolute())
    if not text.startswith("gs://"):
        raise UserError(f"{path}: only gs:// buckets are supported; mount others as a folder.")
    if not (bucket := text.removeprefix("gs://").partition("/")[0]):
        raise UserError(f"{path!r} names no bucket; write gs://BUCKET/FOLDER.")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path}: buckets need gcsfs; run: pip install 'ec-dit[gcs]'")
    buckets.reach(bucket)
    return epath.Path(path)


def check_can_write(path: str | PurePath, flag: str) -> None:
    """Finds out whether a path on a disk is a folder that may be written to, or could be made one; `flag` names it.

    Raises:
        UserError: it could not.
        OSError: it cannot be looked at, as names that are too long cannot.
    """
    whole = at(path)
    if is_remote(whole):
        return
    for place in (Path(whole), *Path(whole).parents):
        try:
            kind = place.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(kind):
            raise UserError(f"{flag}={path}: {place} is a file; give a folder.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"{flag}={path}: {place} may not be written to by this user.")
        return


def check_is_text(path: str | PurePath, what: str) -> None:
    """Finds out whether the libraries that store checkpoints and records can open a path of `what`.

    Raises:
        UserError: it has bytes that are no UTF-8, or that a locale other than UTF-8 hides.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{printable(str(path))} is no UTF-8 text, which the path of {what} must be; name another folder, or, if it is "
            f"text and only the locale is not UTF-8, set PYTHONUTF8=1."
        ) from None


def home_expanded(path: str | PurePath) -> Path:
    """A path on a disk, with ~ as the home folder: a shell leaves it as it is in --workdir=~/runs.

    Raises:
        UserError: for a home that is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}; write the folder in full.") from error


def page(given: str, flag: str) -> epath.Path:
    """Gives where a page of HTML is to be written. Raises UserError where it cannot be, or has another name."""
    if not given.endswith(".html"):
        raise UserError(f"{flag}={given}: the page's name must end in .html")
    out = at(given)
    check_can_write(out.parent, flag)
    if out.is_dir():
        raise UserError(f"{flag}={given} is a folder")
    return out


def short_names(places: Sequence[str]) -> list[str]:
    """Gives the shortest ends of paths that tell them apart."""
    parts = [[part for part in place.split("/") if part] or [place] for place in places]
    for count in range(1, max(map(len, parts)) + 1):
        found = ["/".join(each[-count:]) for each in parts]
        if len(set(found)) == len(found):
            return found
    return list(places)
