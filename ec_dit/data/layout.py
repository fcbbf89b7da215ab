"""The layout of a data set on disk: how its files are named, and which of their names say something.

`preparation` writes by it and `dataset` reads by it; nothing else does either know where something lies.
"""

import re

FORMAT = 2  # of the whole; a report says by which its folder was written
REPORT = "report.json"  # the last file of a data set to be written, which lists the others
SKIPPED, TOKENIZER, ENCODING = "skipped.jsonl", "tokenizer.model", "encoding.safetensors"
DESCRIPTION, FEATURES = "dataset_info.json", "features.json"  # TFDS's own
INCOMPLETE = ".incomplete"  # beside the files of an unfinished set in a bucket
BLOCK = 2**26  # bytes that are hashed together: of a large file, some are compared

Shape = tuple[int, int]  # rows and columns of a latent


def file_name(name: str, split: str, unit: int, units: int) -> str:
    """Names the file that holds a unit's records of a split, of the data set `name`."""
    width = max(5, len(str(units)))  # as TFDS does it
    return f"{name}-{split}.array_record-{unit:0{width}d}-of-{units:0{width}d}"


def is_record_file(file: str, name: str | None = None, units: int | None = None) -> bool:
    """Tells whether a file of that name may hold records: of the data set `name` or any, of so many units or any number."""
    if name is None:
        return ".array_record-" in file
    total = r"\d{5,}" if units is None else f"{units:0{max(5, len(str(units)))}d}"
    return bool(re.fullmatch(rf"{re.escape(name)}-.+\.array_record-\d{{5,}}-of-{total}", file))


def split_name(split: str, shape: Shape) -> str:
    """Names a split's latents of one shape, which have files of their own: 'train_32x24'."""
    return f"{split}_{shape_name(shape)}"


def split_of(name: str) -> tuple[str, Shape]:
    """Takes a name of `split_name` apart."""
    split, _, shape = name.rpartition("_")
    rows, _, columns = shape.partition("x")
    return split, (int(rows), int(columns))


def shape_name(shape: Shape) -> str:
    """Names a shape, '32x24'."""
    return f"{shape[0]}x{shape[1]}"
