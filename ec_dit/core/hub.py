"""Weights as hubs publish them: a folder with config.json and safetensors files, one or several with an index.

A folder may be named as `download` reads names: OWNER/NAME[/FOLDER][@REVISION].

Names, shapes and dtypes come from the files' headers, data on demand and a slice at a time; no file stays mapped, so that the
host holds no more than what was asked for. Pickles are never opened.
"""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes  # noqa: F401 - teaches NumPy bfloat16, which safetensors returns
import numpy as np
from safetensors import SafetensorError, safe_open

from ec_dit.core import json_file, paths
from ec_dit.core.download import STEMS, Fetched, Name, fetch
from ec_dit.core.errors import UserError

CONFIG = "config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SAFE = (
    "weights are read from safetensors only, since a pickle may run any program. Load them once with transformers or diffusers "
    "and write them with save_pretrained(FOLDER)"
)
AGAIN = "Download it again."  # what to do about a damaged file
_PART = r"-\d+-of-\d+\.safetensors$"
_MAX_HEADER = 100_000_000
_Spec = TypeVar("_Spec")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies, its shape, and its dtype as safetensors calls it, such as BF16."""

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: str


class TensorFiles:
    """The tensors of a folder in a hub's layout, or of one safetensors file.

    Args:
        path: of the folder or the file, on a disk; or a name.
        rename: from a tensor's name in the files to the name it goes by here.

    Raises:
        UserError: for a missing, damaged, incomplete or ambiguous set of files, or a pickle; it names the file.
    """

    def __init__(self, path: str | Path, rename: Callable[[str], str] = str):
        self.path = local(path)
        self.tensors: dict[str, TensorInfo] = {}
        files, index = _choose(self.path)
        self.source = files[0] if len(files) == 1 else self.path
        stored = set()
        for file in files:
            for info in _tensors(file):
                if index.get(info.stored_name, file.name) != file.name:
                    raise UserError(
                        f"{file}: tensor {info.stored_name} is in this file, but the index says {index[info.stored_name]}; "
                        f"download the folder again."
                    )
                self.tensors[rename(info.stored_name)] = info
                stored.add(info.stored_name)
        if absent := sorted(index.keys() - stored):
            raise UserError(
                f"{self.path / index[absent[0]]}: the index promises {len(absent)} tensors that are not there, first "
                f"{absent[0]}; download the folder again."
            )

    @property
    def config_path(self) -> Path:
        """Of the config.json that says what the tensors are."""
        return folder_of(self.path) / CONFIG

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A tensor, or the part of it that `index` names, as it is stored."""
        info = self.tensors[name]
        with safe_open(info.file, "numpy") as file:
            return file.get_tensor(info.stored_name) if index is None else file.get_slice(info.stored_name)[index]


def local(path: str | Path) -> Path:
    """The path, if it lies on a disk, or where what a name stands for was downloaded to.

    Raises:
        UserError: for one in a bucket, or one that does not exist and cannot be downloaded.
    """
    if paths.is_remote(path):
        raise UserError(
            f"{path}: published weights are read from a disk; copy the folder, or mount the bucket (gcsfuse)."
        )
    found = paths.home_expanded(path)
    if found.exists():
        return found
    if (fetched := named(path)) is not None:
        return fetched.path
    raise UserError(f"there is no file or folder {path}.")


def named(path: str | Path, *, pipeline: bool = False) -> Fetched | None:
    """What a name led to, downloaded where it is not yet; None for a path.

    Args:
        pipeline: with the other parts of the pipeline that it is, or is the transformer of.

    Raises:
        UserError: if it cannot be downloaded.
    """
    name = Name.parse(path) if isinstance(path, str) else None
    return None if name is None else fetch(name, pipeline=pipeline)


def pinned(path: str | Path) -> str:
    """What finds the same files again: an absolute path, or a name with its commit.

    Raises:
        UserError: as `local` does.
    """
    fetched = named(path)
    return str(local(path).absolute()) if fetched is None else str(fetched.name)


def is_there(path: str | Path) -> bool:
    """Whether a path exists, or a name leads somewhere."""
    try:
        return local(path).exists()
    except UserError:
        return False


def folder_of(path: Path) -> Path:
    """A folder itself, or the folder that a file lies in."""
    return path if path.is_dir() else path.parent


def config(folder: str | Path) -> dict[str, Any]:
    """The config.json of a folder, or of the folder that a file lies in.

    Raises:
        UserError: if it is missing or not a JSON object.
    """
    path = folder_of(local(folder)) / CONFIG
    if not path.is_file():
        raise UserError(f"{path} is missing: it says what the weights beside it are; download it with them.")
    return read_json(path)


def described(path: str | Path, read: Callable[[dict[str, Any], str], _Spec]) -> _Spec:
    """Reads the config.json of a folder, or of the folder that a file lies in, and makes of it what `read` does.

    Args:
        read: from the object and where it comes from.

    Raises:
        UserError: if the file is missing, or holds no such description.
    """
    where = str(folder_of(local(path)) / CONFIG)
    with interpreted(where):
        return read(config(path), where)


@contextlib.contextmanager
def interpreted(where: str) -> Iterator[None]:
    """A context for what makes something of a file: whatever is wrong with its content is a UserError that names it."""
    try:
        with json_file.whole(where, AGAIN):
            yield
    except UserError as error:
        raise error if where in str(error) else UserError(f"{where}: {error} {AGAIN}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Raises:
        UserError: if it is missing, or holds none.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; download it.")
    return json_file.parse(path.read_bytes(), str(path), AGAIN)


def files(path: str | Path) -> list[Path]:
    """What a model consists of: its files of weights, in the order of their names, and its config.json.

    Raises:
        UserError: as TensorFiles does.
    """
    weights = TensorFiles(path)
    return [*sorted({info.file for info in weights.tensors.values()}), weights.config_path]


def sha256(some: Iterable[Path]) -> str:
    """One hash of the content of files, in their order."""
    digest = hashlib.sha256()
    for path in some:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def fields(found: Mapping[str, Any], where: str, **wanted: Any) -> dict[str, Any]:
    """The values of the `wanted` keys, each of the type given or of the default's type.

    Args:
        wanted: key -> a type where the key must be there, or else its default.

    Raises:
        UserError: naming `where`, the key and what was found.
    """
    values = {}
    for key, default in wanted.items():
        kind = default if isinstance(default, type) else type(default)
        value = found.get(key)
        if value is None and not isinstance(default, type):
            value = default
        if value is None:
            raise UserError(
                f"{where} has no {key!r}; it is not the config.json of these weights, or is damaged. {AGAIN}"
            )
        right = isinstance(value, int | float) and math.isfinite(value) if kind is float else isinstance(value, kind)
        if not right or (kind in (int, float) and isinstance(value, bool)):
            raise UserError(f"{where}: {key} is {value!r}, not of the kind {kind.__name__}. {AGAIN}")
        if kind is int and value < (default != 0):
            raise UserError(f"{where}: {key} is {value}, not above 0. {AGAIN}")
        values[key] = value
    return values


def supported(found: Mapping[str, Any], where: str, **only: Any) -> None:
    """Refuses settings that the code here does not know.

    Args:
        only: key -> the value, or tuple of values, that it may have where it is given.

    Raises:
        UserError: naming the key, its value and what would do.
    """
    for key, allowed in only.items():
        choices = allowed if isinstance(allowed, tuple) else (allowed,)
        if key in found and found[key] not in choices:
            raise UserError(f"{where}: {key} is {found[key]!r}; supported: {', '.join(map(repr, choices))}.")


def divisible(values: Mapping[str, Any], where: str, **parts: str) -> None:
    """Refuses sizes that do not divide.

    Args:
        parts: key -> the key of what divides its value.

    Raises:
        UserError: naming both keys and their values.
    """
    for key, part in parts.items():
        if values[key] % values[part]:
            raise UserError(f"{where}: {key} {values[key]} is not divisible by {part} {values[part]}. {AGAIN}")


def _choose(path: Path) -> tuple[list[Path], dict[str, str]]:
    """(the files to read, the index's tensor -> file name)."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{path} is no safetensors file; {_SAFE}.")
        return [path], {}
    indices = {p.name: p for p in path.glob("*.safetensors.index*.json")}
    singles = {p.name: p for p in path.glob("*.safetensors") if "-of-" not in p.name}
    for stem in STEMS:
        if index := indices.get(f"{stem}.safetensors.index.json"):
            return _indexed(index)
        if single := singles.get(f"{stem}.safetensors"):
            return [single], {}
    others = sorted([*indices.values(), *singles.values()])
    if len(others) == 1:
        return _indexed(others[0]) if others[0].suffix == ".json" else ([others[0]], {})
    if others:
        raise UserError(
            f"{path} holds several sets of weights: {', '.join(p.name for p in others)}; give the file's own path."
        )
    if parts := sorted(p.name for p in path.glob("*-of-*.safetensors")):
        raise UserError(
            f"{path} holds {parts[0]} and the like without their index {re.sub(_PART, '', parts[0])}.safetensors.index.json; "
            f"download it too."
        )
    if pickles := sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES):
        raise UserError(f"{path / pickles[0]} is a pickle; {_SAFE}.")
    inside = sorted(p.parent.name for p in path.glob("*/*.safetensors*"))
    hint = f"did you mean a folder in it: {', '.join(dict.fromkeys(inside))}?" if inside else "download them."
    names = " or ".join(f"{stem}.safetensors" for stem in STEMS)
    raise UserError(f"{path} holds no safetensors weights ({names}, or several with an index); {hint}")


def _indexed(index: Path) -> tuple[list[Path], dict[str, str]]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise UserError(f"{index} has no weight_map from tensors to files; download it again.")
    names = sorted(set(found.values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index} names a file outside its folder: {name}")
        if not (index.parent / name).is_file():
            first = next(tensor for tensor, file in found.items() if file == name)
            raise UserError(
                f"{index.parent / name} is missing; it holds {first} and others. Download the folder again."
            )
    return [index.parent / name for name in names], found


def _tensors(path: Path) -> list[TensorInfo]:
    try:
        with safe_open(path, "numpy") as file:
            parts = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118 - it is no dict
            return [TensorInfo(path, name, tuple(part.get_shape()), part.get_dtype()) for name, part in parts]
    except SafetensorError as error:
        raise UserError(f"{path}: {_damage(path) or error}") from error


def _damage(path: Path) -> str:
    """What is wrong with a file that the library refuses, as far as its header tells."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = int.from_bytes(start, "little")
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
            return f"this is a pickle under another name; {_SAFE}."
        if len(start) < 8 or header_bytes > min(size - 8, _MAX_HEADER):
            return f"this is no safetensors file, or one cut within its header ({size} bytes); download it again."
        try:
            header = json.loads(file.read(header_bytes))
            ends = {name: info["data_offsets"][1] for name, info in header.items() if name != "__metadata__"}
            there = size - 8 - header_bytes
            cut = sorted((end, name) for name, end in ends.items() if end > there)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return "its header is damaged; download it again."
    if not cut:
        return ""
    return (
        f"truncated: {there} of {max(ends.values())} bytes of data are there, tensor {cut[0][1]} is the first that is cut. "
        "Download it again."
    )


def flag_names(names: Sequence[str], most: int = 3) -> str:
    """The first few of a list of names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
