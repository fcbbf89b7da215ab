"""Files of a data set in the making: TFDS's layout of tf.train.Example in ArrayRecord, written without TensorFlow."""

import contextlib
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from ec_dit.data.layout import BLOCK, DESCRIPTION, FEATURES
from ec_dit.data.reading import system_errors
from ec_dit.data.stored import Fields

# One record a group, as random access wants it. What fills the files does not compress: pictures, and noise-like floats.
_OPTIONS = "group_size:1,uncompressed"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def example(fields: Fields) -> bytes:
    """Serialises a tf.train.Example, to the same bytes every time."""
    message = tf_example_pb2.Example()
    for name, value in fields.items():
        if isinstance(value, bool):
            message.features.feature[name].int64_list.value.append(int(value))
        else:
            message.features.feature[name].bytes_list.value.append(value)
    return message.SerializeToString(deterministic=True)


class Writer:
    """One file of records; `close` before it is used.

    Its methods raise OSError where the disk does not take what is written.
    """

    def __init__(self, path: Path):
        self.path, self.records = path, 0
        with system_errors(path):
            self._file = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)

    def write(self, fields: Fields) -> None:
        """Appends a record."""
        with system_errors(self.path):
            self._file.write(example(fields))
        self.records += 1

    def close(self) -> dict[str, Any]:
        """Ends the file: its records, bytes, and SHA-256 of each block."""
        with system_errors(self.path):
            self._file.close()
        size, digests = identity(self.path)
        return {"records": self.records, "bytes": size, "sha256": digests}


def identity(path: Path | epath.Path) -> tuple[int, tuple[str, ...]]:
    """Measures a file: its size, and SHA-256 of each `BLOCK` of it."""
    size, digests = 0, []
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size += len(block)
            digests.append(hashlib.sha256(block).hexdigest())
    return size, tuple(digests)


def write_metadata(folder: epath.Path, features: Any, splits: Mapping[str, Sequence[int]], num_bytes: int) -> list[str]:
    """TFDS's description of the files in `folder`; the names of what it wrote.

    Args:
        features: a TFDS FeaturesDict.
        splits: of each split the records in every file; 0: there is no such file.
        num_bytes: of all files.
    """
    tfds.disable_progress_bar()
    infos = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=list(lengths),
            num_bytes=num_bytes if i == 0 else 0,
            filename_template=tfds.core.ShardedFileTemplate(data_dir=folder, template=_TEMPLATE, split=name),
        )
        for i, (name, lengths) in enumerate(splits.items())
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.folder_dataset.write_metadata(
            data_dir=folder, features=features, split_infos=infos, filename_template=_TEMPLATE, check_data=False
        )
    return [name for name in (DESCRIPTION, FEATURES) if (folder / name).exists()]
