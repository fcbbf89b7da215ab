"""Real pictures at a path: a prepared data set, a folder of pictures, or the statistics of some."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ec_dit.core import ahead, digests, paths
from ec_dit.core.errors import UserError
from ec_dit.data import dataset, images
from ec_dit.data.dataset import Split
from ec_dit.evaluators.base import Reference
from ec_dit.judges import moments
from ec_dit.layouts import files as layout_files


def at_path(name: str, count: int) -> Reference:
    """Finds what is at a path; arguments, and what is raised, as `evaluators.base.RunFacts.reference` has them."""
    if name.endswith(moments.SUFFIX):
        path = paths.at(name)
        if not path.is_file():
            raise UserError(f"there is no statistics file {path}")
        return Reference((), None, functools.partial(moments.read, path), {"statistics": digests.of_file(path)})
    if not paths.at(name).exists() and ":" in Path(name).name:
        folder, _, split = name.rpartition(":")
        return of_split(folder, split, count)
    if dataset.is_there(name) and (paths.at(name) / dataset.REPORT).exists():
        return of_split(name, "", count)
    folder = paths.at(name)
    files = layout_files.pictures_below(folder)
    chosen = files[:count] if count else files

    facts: dict[str, Any] = {"folder": str(folder), "images": len(chosen)}

    def read() -> Iterator[np.ndarray]:
        files = layout_files.read_all(folder, chosen)
        return digests.of_passing(itertools.chain.from_iterable(files), facts)

    return Reference((), read, None, facts)


def of_split(folder: str, split: str, count: int) -> Reference:
    """Opens a split of a prepared data set of pictures; '' = its validation split, or else 'train'."""
    data = dataset.open(folder)
    if data.encoding is not None:
        raise UserError(f"{folder} holds latents, not pictures: a reference is prepared without --vae.")
    name = split or preferred(data.splits)
    records = data[name]
    chosen = range(min(count or len(records), len(records)))
    facts = {"data": str(data.path), "split": name, "images": len(chosen), "fingerprint": data.fingerprint}
    captions = [records[i].caption for i in chosen]
    return Reference(
        captions, functools.partial(_pictures, records, chosen), None, {**facts, "captions": "the first of each"}
    )


def preferred(splits: Sequence[str]) -> str:
    """Chooses the split that models are compared with."""
    return "validation" if "validation" in splits else "train"


def _pictures(records: Split, chosen: range) -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(ahead.THREADS) as pool:
        yield from ahead.results(pool, lambda i: np.asarray(images.decode(records[i].image)), chosen, 2 * ahead.THREADS)
