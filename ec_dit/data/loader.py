"""Batches from a prepared data set, by Grain: deterministic from a seed and resumable at any step.

The stream is one global order of examples. Shuffling, repeating and augmenting come before a process takes its blocks of
each batch, so the blocks of all processes, in their order, are the global batch, the same for any number of processes and
workers. A batch is a dict of numpy arrays:
image_BYXZ float32 in [-1, 1], ids_BT int32, mask_BT bool (True = real token), record_B int32 (index within the split).
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.data.dataset import Dataset
from ec_dit.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]

CROPS = ("center", "random")
CACHE_BYTES = 512 * 2**20


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


@dataclasses.dataclass(frozen=True)
class _Example:
    """A decoded record: uint8 pixels_YXZ (the crop, or all of it where crops are random), one row of tokens."""

    pixels_YXZ: np.ndarray
    ids_T: np.ndarray
    mask_T: np.ndarray
    flip: bool
    record: int


class _Examples:
    """Decoded examples by index, kept in memory once seen for as long as they fit `cache_bytes`."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        tokenizer: Tokenizer,
        image_size: int,
        text_length: int,
        crop: str,
        cache: int,
    ):
        self._records = dataset[split]
        self._tokenizer, self._length = tokenizer, text_length
        self._size, self._crop = image_size, crop
        self._cache: dict[int, _Example] = {}
        self._budget = cache

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> _Example:
        example = self._cache.get(index)
        if example is None:
            example = self._read(index)
            if example.pixels_YXZ.nbytes <= self._budget:
                self._budget -= example.pixels_YXZ.nbytes
                self._cache[index] = example
        return example

    def _read(self, index: int) -> _Example:
        record = self._records[index]
        try:
            image = images.decode(record.image)
        except images.ImageError as error:
            raise UserError(f"{self._records.path}: record {record.id!r}: {error}") from error
        if self._crop == "center":
            pixels_YXZ = images.center_crop(image, self._size)
        else:
            pixels_YXZ = np.asarray(images.resize_shorter(image, self._size))
        ids_BT, mask_BT = self._tokenizer.encode([record.caption], self._length)
        return _Example(pixels_YXZ, ids_BT[0], mask_BT[0], record.flip, index)


@dataclasses.dataclass(frozen=True)
class _Augment(grain.transforms.RandomMap):
    """Crops and mirrors, by a generator that depends on the position in the global order alone."""

    size: int
    flip: bool

    def random_map(self, example: _Example, rng: np.random.Generator) -> Batch:
        pixels_YXZ = images.random_crop(example.pixels_YXZ, self.size, rng)
        mirrored = rng.random() < 0.5  # Drawn for every example, so that `flip` changes no other draw.
        if self.flip and example.flip and mirrored:
            pixels_YXZ = pixels_YXZ[:, ::-1]
        return _row(example, pixels_YXZ)


class _Blocks:
    """A process's part of batch after batch, by index; `order` is the endless order, in blocks."""

    def __init__(self, order: grain.MapDataset, share: Share):
        self._order, self._share = order, share

    def __len__(self) -> int:
        return len(self._order) // self._share.ways

    def __getitem__(self, step: int) -> Batch:
        parts = [self._order[step * self._share.ways + block] for block in self._share.blocks]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _row(example: _Example, pixels_YXZ: np.ndarray) -> Batch:
    return {
        "image_BYXZ": pixels_YXZ,
        "ids_BT": example.ids_T,
        "mask_BT": example.mask_T,
        "record_B": np.array(example.record, np.int32),
    }


def _to_float(batch: Batch) -> Batch:
    return batch | {"image_BYXZ": images.to_float(batch["image_BYXZ"])}


def _plain_errors(batches: grain.IterDataset) -> Iterator[Batch]:
    """Passes batches on, and ends their workers; takes from a UserError the lines that Grain adds about its stack frames."""
    iterator = iter(batches)
    try:
        yield from iterator
    except UserError as error:
        raise UserError(str(error).partition("\n")[0]) from error
    finally:
        iterator.close()  # ends the workers


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

    Args:
        dataset, split: where the records are.
        tokenizer: usually the data set's own.
        batch_size: examples per global batch.
        image_size: side of the square images, in pixels; the shorter side is resized to it.
        text_length: tokens per caption, the end-of-text token included.
        seed: decides the order, the crops and the flips.
        crop: `center`, or `random` along the longer side.
        flip: mirrors half of the examples whose record allows it.
        workers: processes that prepare batches; 0 prepares them in threads of this one.
        share: which blocks of each global batch this process gets.
        cache_bytes: memory for decoded images; smaller sets are decoded once.

    Raises:
        UserError: no such crop or split, or a batch that does not come out in blocks.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        image_size: int,
        text_length: int,
        seed: int,
        crop: str = "center",
        flip: bool = False,
        workers: int = 0,
        share: Share = ALL,
        cache_bytes: int = CACHE_BYTES,
    ):
        if crop not in CROPS:
            raise UserError(f"crop is {crop!r}; choose one of {', '.join(CROPS)}")
        size = share.block_size(batch_size)
        cache = cache_bytes // max(1, workers)
        examples = _Examples(dataset, split, tokenizer, image_size, text_length, crop, cache)
        order = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
        blocks = order.random_map(_Augment(image_size, flip)).batch(size, drop_remainder=True)
        self._stream = grain.MapDataset.source(_Blocks(blocks, share)).map(_to_float)
        self._records = dataset[split]
        self._workers = workers

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yields this process's share of the global batches start_step, start_step + 1, ... without end."""
        stream = self._stream[start_step:]
        if not self._workers:
            threads = 16 if paths.is_remote(self._records.path) else 2  # a bucket takes its time for each record
            read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
            return _plain_errors(stream.to_iter_dataset(read))
        if not flags.FLAGS.is_parsed():  # Grain hands absl flags to its workers; libraries and notebooks parse none.
            flags.FLAGS.mark_as_parsed()
        options = grain.multiprocessing.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
        one_by_one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        return _plain_errors(stream.to_iter_dataset(one_by_one).mp_prefetch(options, _outlive_sigterm))

    def record_ids(self, record_B: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of a batch's records, for messages."""
        return [self._records[int(index)].id for index in record_B]


def fixed_batches(
    dataset: Dataset,
    split: str,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    image_size: int,
    text_length: int,
    max_batches: int | None = None,
    share: Share = ALL,
) -> Iterator[Batch]:
    """Yields a split once, in stored order, centre-cropped and never mirrored: the same batches every time.

    The stored order is that of a hash of the ids, so the first `max_batches` are a fair sample. The last batch is
    filled up with records from the start, whose record_B is -1: leave those out of any mean.

    Raises:
        UserError: no such split, or a batch that does not come out in blocks.
    """
    local = share.rows(batch_size)
    examples = _Examples(dataset, split, tokenizer, image_size, text_length, "center", cache=0)
    batches = -(-len(examples) // batch_size)
    for step in range(batches if max_batches is None else min(batches, max_batches)):
        rows = []
        for row_of_batch in local:
            index = step * batch_size + row_of_batch
            example = examples[index % len(examples)]
            row = _row(example, example.pixels_YXZ)
            rows.append(row if index < len(examples) else row | {"record_B": np.array(-1, np.int32)})
        yield _to_float({key: np.stack([row[key] for row in rows]) for key in rows[0]})
