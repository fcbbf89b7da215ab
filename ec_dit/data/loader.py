"""Batches from a prepared data set, by Grain: deterministic from a seed and resumable at any step.

The stream is one global order of examples. Shuffling, repeating and augmenting come before a process takes its blocks of
each batch, so the blocks of all processes, in their order, are the global batch, the same for any number of processes and
workers. A batch holds NumPy arrays.
"""

import dataclasses
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from ec_dit.core import paths
from ec_dit.core.errors import TryAgain, UserError
from ec_dit.data.batch import Batch, Row, stack
from ec_dit.data.rows import Rows

_THREADS = 16  # that read batches from a bucket
# Exit codes of workers that are not missed: alive, told of an error by what they made, told to stop with the trainer.
_ENDED = (None, 0, -signal.SIGALRM)


@dataclasses.dataclass(frozen=True)
class Share:
    """What a process loads of every global batch: `blocks`, ascending, of the `ways` equal blocks that a batch is cut into."""

    blocks: tuple[int, ...] = (0,)
    ways: int = 1

    def rows(self, batch_size: int) -> list[int]:
        """The rows of a global batch that are loaded, in order. Raises UserError if blocks do not come out even."""
        size = self.block_size(batch_size)
        return [block * size + row for block in self.blocks for row in range(size)]

    def block_size(self, batch_size: int) -> int:
        """Rows of a block. Raises UserError if blocks do not come out even."""
        if batch_size < 1 or batch_size % self.ways:
            raise UserError(f"batch_size is {batch_size}; it must be a positive multiple of its {self.ways} blocks")
        return batch_size // self.ways


ALL = Share()


class _Stretch:
    """Records start, start + 1, ... of a split, by index."""

    def __init__(self, rows: Rows, start: int, size: int):
        self._rows, self._start, self._size = rows, start, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Any:
        return self._rows.read(self._start + index)


@dataclasses.dataclass(frozen=True)
class _Augment(grain.transforms.RandomMap):
    """Makes rows by a generator that depends on the position in the global order alone."""

    rows: Rows

    def random_map(self, example: Any, rng: np.random.Generator) -> Row:
        return self.rows.row(example, rng)


class _Blocks:
    """A process's part of batch after batch, by index; `order` is the endless order, in blocks."""

    def __init__(self, order: grain.MapDataset, share: Share):
        self._order, self._share = order, share

    def __len__(self) -> int:
        return len(self._order) // self._share.ways

    def __getitem__(self, step: int) -> Batch:
        parts = [self._order[step * self._share.ways + block] for block in self._share.blocks]
        return jax.tree.map(lambda *blocks: np.concatenate(blocks), *parts)


def spread(total: int, count: int) -> Sequence[int]:
    """`count` indices of `total` records, evenly spread, all different; all of them if there are no more."""
    return range(total) if count >= total else [i * total // count for i in range(count)]


def _plain_errors(batches: grain.IterDataset) -> Iterator[Batch]:
    """Passes batches on, and ends their workers; takes from a UserError the lines that Grain adds about its stack frames.

    Raises:
        TryAgain: when a worker was killed, before the next batch, whatever is ready.
    """
    others = set(multiprocessing.active_children())
    iterator, workers = iter(batches), None
    try:
        for batch in iterator:
            if workers is None:  # all of them start with the first batch
                workers = set(multiprocessing.active_children()) - others
            for worker in workers:
                if worker.exitcode not in _ENDED:
                    raise _killed(worker.exitcode)
            yield batch
    except TryAgain:
        raise
    except UserError as error:
        raise UserError(str(error).partition("\n")[0]) from error
    except RuntimeError as error:
        if ended := re.search(r"Worker process was terminated .* exit code (-?\d+)", str(error)):
            raise _killed(ended[1]) from error
        raise
    finally:
        iterator.close()  # ends the workers


def _killed(code: int | str | None) -> TryAgain:
    return TryAgain(
        f"a process that loads data ended with exit code {code}. -9 is how the system ends one when memory is short: "
        "if it happens again, lower --config.data.workers."
    )


def _outlive_sigterm(*_: int) -> None:
    """In a worker: a signal to the whole group of processes must not take the batches from a trainer that still stops."""
    signal.signal(signal.SIGTERM, _end_soon)
    threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_soon(*_: object) -> None:
    signal.alarm(60)


def _end_with_trainer() -> None:
    """A trainer that is killed takes nobody along by itself."""
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        os._exit(1)


class Loader:
    """An endless, shuffled, augmented stream of training batches.

    A batch has one shape. Of each shape there is an endless shuffled order of its own, cut into batches; they take turns in
    proportion to how many records they have, in a pattern that follows from those numbers alone.

    Args:
        rows: the records of a split, as rows.
        batch_size: examples per global batch.
        seed: decides the order and what is drawn for each row.
        workers: processes that prepare batches; 0 prepares them in threads of this one.
        share: which blocks of each global batch this process gets.

    Raises:
        UserError: a batch that does not come out in blocks.
    """

    def __init__(self, rows: Rows, *, batch_size: int, seed: int, workers: int = 0, share: Share = ALL):
        size = share.block_size(batch_size)
        augment = _Augment(rows)
        streams = []
        for i, part in enumerate(rows.records.parts):
            order = (
                grain.MapDataset.source(_Stretch(rows, part.start, part.size))
                .seed((seed + i) % 2**32)
                .shuffle()
                .repeat()
            )
            blocks = order.random_map(augment).batch(size, drop_remainder=True, batch_fn=stack)
            streams.append(grain.MapDataset.source(_Blocks(blocks, share)))
        sizes = [part.size for part in rows.records.parts]
        self._stream = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, sizes)
        self._records = rows.records
        self._workers = workers

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yields this process's share of the global batches start_step, start_step + 1, ... without end."""
        stream = self._stream[start_step:]
        if not self._workers:
            threads = _THREADS if paths.is_remote(self._records.path) else 2  # a bucket takes its time for each record
            read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
            return _plain_errors(stream.to_iter_dataset(read))
        if not flags.FLAGS.is_parsed():  # Grain hands absl flags to its workers; libraries and notebooks parse none.
            flags.FLAGS.mark_as_parsed()
        options = grain.multiprocessing.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
        threads = -(-_THREADS // self._workers) if paths.is_remote(self._records.path) else 1
        each = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        return _plain_errors(stream.to_iter_dataset(each).mp_prefetch(options, _outlive_sigterm))

    def record_ids(self, record_B: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of a batch's records, for messages."""
        return [self._records[int(index)].id for index in record_B]


def fixed_batches(
    rows: Rows, *, batch_size: int, max_batches: int | None = None, share: Share = ALL
) -> Iterator[Batch]:
    """Yields a split once, in stored order and without chance: the same batches every time.

    About `max_batches` take records from all over the split: of each shape, in proportion, rounded up. position_B counts the
    records taken, from 0 on. The last batch of each shape is filled up with records from its start, whose position is -1: leave
    those out of any mean.

    Raises:
        UserError: a batch that does not come out in blocks.
    """
    local = share.rows(batch_size)
    most = len(rows.records) if max_batches is None else max_batches * batch_size

    def read(number: int) -> Any:
        return rows.read(part.start + chosen[number % len(chosen)])

    taken = 0  # of the parts before
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in rows.records.parts:
            chosen = spread(part.size, -(-most * part.size // len(rows.records)))
            for start in range(0, len(chosen), batch_size):
                numbers = [start + row for row in local]
                batch = stack([rows.row(example, None) for example in pool.map(read, numbers)])
                positions = [taken + number if number < len(chosen) else -1 for number in numbers]
                yield batch._replace(position_B=np.array(positions, np.int32))
            taken += len(chosen)
