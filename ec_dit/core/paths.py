"""Paths, on a disk or in a bucket (gs://BUCKET/...), as one kind of object."""

import importlib.util
from pathlib import Path, PurePath

from etils import epath

from ec_dit.core.errors import UserError


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
    target.write_bytes(path.read_bytes())


def at(path: str | PurePath) -> epath.Path:
    """The path as an object; one on a disk is made absolute.

    Raises:
        UserError: for a bucket of a kind that is not supported, or without the library that reads buckets.
    """
    if not is_remote(path):
        return epath.Path(Path(path).absolute())
    if not str(path).startswith("gs://"):
        raise UserError(f"{path}: only gs:// buckets are supported; mount others as a folder.")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path}: buckets need gcsfs; run: pip install 'ec-dit[gcs]'")
    return epath.Path(path)
