"""Records of ArrayRecord files by index, from any number of threads, with a bounded number of files open."""

import bisect
import collections
import contextlib
import errno
import itertools
import os
import resource
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from ec_dit.core import paths

_OPEN, _OPEN_REMOTE = 512, 4096  # of a process: files of a disk take a descriptor each, those of a bucket a request

_readers: collections.OrderedDict[str, Any] = collections.OrderedDict()  # the least used first
_lock = threading.Lock()


class Examples:
    """The examples of several files, one after the other.

    Args:
        files: paths, of files that may hold nothing and need not be there then.
        lengths: records in each.
    """

    def __init__(self, files: Sequence[str], lengths: Sequence[int]):
        self._files = [file for file, length in zip(files, lengths, strict=True) if length]
        self._ends = list(itertools.accumulate(length for length in lengths if length))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        """Reads one example, for `fields`. Raises OSError where its file cannot be opened, or the disk fails."""
        number = bisect.bisect_right(self._ends, index)
        start = self._ends[number - 1] if number else 0
        reader = _reader(self._files[number])
        with system_errors(self._files[number]):
            (data,) = reader.read([index - start])
        return data


def fields(data: bytes) -> dict[str, Any]:
    """Parses the fields of a tf.train.Example with one value each."""
    found: Mapping[str, Any] = tf_example_pb2.Example.FromString(data).features.feature
    return {name: (value.bytes_list.value or value.int64_list.value)[0] for name, value in found.items()}


@contextlib.contextmanager
def system_errors(path: Path | str) -> Iterator[None]:
    """Gives errors of ArrayRecord the system's number, which they carry as text alone."""
    try:
        yield
    except RuntimeError as error:
        for code in errno.errorcode:
            if f": {os.strerror(code)}" in str(error):
                raise OSError(code, os.strerror(code), str(path)) from error
        raise


def _reader(file: str) -> Any:
    """The open file; opened outside of the lock, so that a bucket opens many at a time."""
    with _lock:
        if file in _readers:
            _readers.move_to_end(file)
            return _readers[file]
    with system_errors(file):
        reader = array_record_module.ArrayRecordReader(
            file, options="readahead_buffer_size:0", file_reader_buffer_size=32768
        )
    with _lock:
        _readers[file] = reader
        while len(_readers) > _most(file):
            _readers.popitem(last=False)  # whoever reads from it still holds it
    return reader


def _most(file: str) -> int:
    if paths.is_remote(file):
        return _OPEN_REMOTE
    return min(_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
