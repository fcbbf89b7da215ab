"""A source becomes a data set on disk: unit by unit, in any number of processes, gone on with where it was interrupted.

The bytes are those of one process that was never interrupted.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from ec_dit.core import paths, processes
from ec_dit.core.errors import UserError
from ec_dit.data import tokenizer
from ec_dit.data.layout import FORMAT
from ec_dit.data.report import Report, read_report
from ec_dit.preparation import filters, workplace
from ec_dit.preparation.filters import Filters
from ec_dit.preparation.source import Shard, Source
from ec_dit.preparation.units import EncodingPlan
from ec_dit.preparation.work import Work

_LIBRARIES = ("tensorflow-datasets", "array-record", "sentencepiece", "pillow", "numpy")
_LEAST = 1000  # examples of a unit, unless the source says that it has no more
_PATIENCE = 30 * 24 * 3600  # seconds that a process waits for the others' units


def write(
    source: Source,
    out: str | PurePath,
    *,
    encoding: EncodingPlan | None = None,
    chosen: Filters = filters.DEFAULT,
    image_size: int | None = None,
    num_shards: int | None = None,
    vocab_size: int = 4096,
    tokenizer_path: str | PurePath | None = None,
    max_skipped_share: float = 0.1,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Prepares `source` into the folder `out`, which may lie in a bucket; all processes of the run call it.

    Args:
        encoding: stores latents and embeddings; None: the pictures.
        chosen: which examples are kept.
        image_size: of pictures, shrinks those whose shorter side is longer.
        num_shards: files of a split, and pieces in which the work is done; by default one for each of the source's, of which
            small ones are taken together.
        vocab_size: pieces, at most, of the tokenizer trained on the captions of the split `train`; of pictures only.
        tokenizer_path: a sentencepiece model to copy instead of training one.
        max_skipped_share: fails if more than this share of the examples, from 0 to 1, cannot be used; those that `chosen`
            leaves out do not count.
        overwrite: replaces a finished data set at `out`; never anything else.
        progress: shows a progress bar on stderr.
        say: told who else makes this data set while this one waits for that, and how fast this process was.

    Raises:
        UserError: `out` is taken, too much cannot be used, nothing was kept for training, the tokenizer is unusable, or an
            argument makes no sense. What was finished stays, and the next call goes on from there.
        OSError: a file cannot be written; likewise.
    """
    if not 0 <= max_skipped_share <= 1:
        raise UserError(f"max_skipped_share is {max_skipped_share}; it must be from 0 to 1")
    given = tokenizer.Tokenizer.load(tokenizer_path) if tokenizer_path else None
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size is {image_size}; it must be at least 1")
    parts = _parts(source, num_shards)
    plan = {
        "format": FORMAT,
        "source": source.name,
        "options": _plain(source.options),
        "units": len(parts),
        "shards_sha256": hashlib.sha256(
            json.dumps([[[shard.name, *shard.entries] for shard in part] for part in parts]).encode()
        ).hexdigest(),
        "filters": _plain(chosen),
        "image_size": image_size,
        "encoding": None if encoding is None else dict(encoding.facts),
        "libraries": _versions((*_LIBRARIES, *source.libraries)),
    }
    pieces = [piece for part in parts for shard in part for piece in (shard.entries or (shard.name,))]
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    made_by = [digest, vocab_size, given and hashlib.sha256(given.model).hexdigest()]
    mark = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()
    processes.check_same(digest, "what is to be prepared (source, options, encoders, libraries)")
    with workplace.opened(out, plan, overwrite=overwrite, pieces=pieces, mark=mark, say=say) as place:
        if place is None:
            return read_report(paths.at(out))
        work = Work(source, place, parts, chosen, encoding, image_size, max_skipped_share)
        line = work.run(progress)
        if line and say is not None:
            say(line)
        processes.wait("all units are made", seconds=_PATIENCE)
        paths.look_again(out)
        report = work.finish(plan | {"mark": mark}, given, vocab_size) if processes.is_first() else None
        processes.wait("the report is written")
        if report is None:
            paths.look_again(out)
            report = read_report(place.files)
    return report


def _parts(source: Source, num_shards: int | None) -> list[Sequence[Shard]]:
    """The source's shards in `num_shards` runs of nearly equal length; None: small ones together, `_LEAST` examples or more."""
    shards = source.shards()
    if num_shards is None:
        ends, size = [0], 0
        for end, shard in enumerate(shards, 1):
            size += _LEAST if shard.size is None else shard.size
            if size >= _LEAST or end == len(shards):
                ends.append(end)
                size = 0
    elif 1 <= num_shards <= len(shards):
        ends = [len(shards) * i // num_shards for i in range(num_shards + 1)]
    else:
        raise UserError(
            f"num_shards is {num_shards}; source {source.name} comes in {len(shards)} pieces: give 1 to {len(shards)}"
        )
    return [shards[start:end] for start, end in itertools.pairwise(ends)]


def _plain(options: Any) -> dict[str, Any]:
    """A dataclass as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(options)))


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
