"""Pictures of a layout in a folder: their bytes, the tiles of one, and what is missing or does not belong there."""

import functools
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from ec_dit.core import ahead
from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.layouts.base import PictureFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")  # of what counts as a picture
_QUALITY = 95  # of JPEG, for tools that want it


def encode(file: PictureFile, pictures: Sequence[np.ndarray]) -> tuple[list[np.ndarray], bytes]:
    """Makes the bytes of a file, its pictures laid out as tiles.

    Args:
        pictures: uint8 (Y, X, 3), all of one size, as many as the file has tiles.

    Returns:
        the pictures as they are read again from the file, and the bytes.
    """
    whole = pictures[0] if file.tiles == 1 else np.vstack([np.hstack(pictures[:2]), np.hstack(pictures[2:])])
    if file.name.endswith(".png"):
        return list(pictures), images.encode_png(images.to_pil(whole))
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return _tiles(file, np.asarray(Image.open(buffer))), buffer.getvalue()


def read(folder: epath.Path, file: PictureFile) -> list[np.ndarray]:
    """Reads the pictures of a file, uint8 (Y, X, 3).

    Raises:
        UserError: it does not open, or cannot be cut into its tiles.
    """
    path = folder / file.name
    try:
        whole = np.asarray(images.decode(path.read_bytes()))
    except images.ImageError as error:
        raise UserError(
            f"{path} does not open: {error}. Remove it; of a run, the same command draws it anew."
        ) from error
    if file.tiles > 1 and (whole.shape[0] % 2 or whole.shape[1] % 2):
        raise UserError(
            f"{path} is no grid of two rows of two pictures: it has {whole.shape[0]} x {whole.shape[1]} pixels"
        )
    return _tiles(file, whole)


def read_all(folder: epath.Path, files: Iterable[PictureFile]) -> Iterator[list[np.ndarray]]:
    """Yields the pictures of each file, read ahead on threads; raises as `read` does."""
    with ThreadPoolExecutor(ahead.THREADS) as pool:
        yield from ahead.results(pool, functools.partial(read, folder), files, 2 * ahead.THREADS)


def _tiles(file: PictureFile, whole_YXZ: np.ndarray) -> list[np.ndarray]:
    if file.tiles == 1:
        return [whole_YXZ]
    return [np.ascontiguousarray(tile) for row in np.split(whole_YXZ, 2) for tile in np.split(row, 2, axis=1)]


def names(folder: epath.Path) -> set[str]:
    """Lists all files below a folder, by their names from there, with slashes; none where there is no folder."""
    return set(_names(folder, "")) if folder.exists() else set()


def _names(folder: epath.Path, start: str) -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _names(path, f"{start}{path.name}/")
        else:
            yield start + path.name


def check_no_others(folder: epath.Path, there: Collection[str], expected: Collection[str], flag: str) -> None:
    """Compares what is there with what may be.

    Raises:
        UserError: there are other files, which an official scorer might count; `flag` names the folder.
    """
    if others := sorted(set(there) - set(expected)):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"{flag}={folder} holds {others[0]}{more}, which is none of the {len(expected)} files of these prompts, such as "
            f"{min(expected)}: take other files out of it, or give another folder"
        )


def check_beside(folder: epath.Path, beside: Mapping[str, bytes]) -> None:
    """Compares the files that a tool wants beside the pictures with what they should hold; JSON may be written otherwise.

    Raises:
        UserError: one is missing, or holds something else.
    """
    for name, data in beside.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, which the tool reads beside the pictures")
        found = path.read_bytes()
        if found.strip() != data.strip() and _json(found) != _json(data):
            raise UserError(f"{path} is not what the prompt file says of these pictures")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data


def check_all_there(folder: epath.Path, there: Collection[str], files: Sequence[PictureFile]) -> None:
    """Compares what is there with what has to be.

    Raises:
        UserError: files are missing.
    """
    if missing := [file.name for file in files if file.name not in there]:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(files)} pictures of these prompts, first {missing[0]}: a score without them "
            "would be of fewer prompts than it says"
        )


def pictures_below(folder: epath.Path) -> list[PictureFile]:
    """Lists whatever pictures are below a folder, in the order of their names.

    Raises:
        UserError: there is no folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = sorted(name for name in names(folder) if name.lower().endswith(SUFFIXES))
    if not found:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return [PictureFile(name, number) for number, name in enumerate(found)]
