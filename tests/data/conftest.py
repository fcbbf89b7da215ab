"""A small source whose images tell their index, and a data set made from it."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from ec_dit.data import dataset, tokenizer
from ec_dit.data.records import Record, Skipped


@dataclass(frozen=True)
class CountingOptions:
    train: int = 23
    validation: int = 7
    skipped: int = 0
    width: int = 12


class CountingSource:
    """Images 8 pixels high: red holds the index, green rises to the right. Even records may be mirrored."""

    name = "counting"

    def __init__(self, options: CountingOptions):
        self.options = options

    def splits(self):
        return ("train", "validation")

    def records(self, split):
        for index in range(getattr(self.options, split)):
            yield record(split, index, self.options.width)
        for index in range(self.options.skipped if split == "train" else 0):
            yield Skipped(f"bad-{index}", f"damaged image: number {index}")


def record(split, index, width=12):
    pixels = np.zeros((8, width, 3), np.uint8)
    pixels[..., 0] = index
    pixels[..., 1] = np.arange(width) * 10
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    caption = f"number {index} of {split}"
    return Record(f"{split}-{index}", buffer.getvalue(), caption, flip=index % 2 == 0, meta={"index": index})


@pytest.fixture
def counting():
    """Builds the source, from fields of its options."""
    return lambda **options: CountingSource(CountingOptions(**options))


@pytest.fixture(scope="session")
def numbers(tmp_path_factory):
    """A prepared data set of 23 training and 7 validation records."""
    out = tmp_path_factory.mktemp("sets") / "numbers"
    dataset.write(CountingSource(CountingOptions()), out, vocab_size=64, progress=False)
    return dataset.open(out)


@pytest.fixture(scope="session")
def words(numbers):
    """The tokenizer of `numbers`."""
    return tokenizer.Tokenizer.load(numbers.tokenizer_path)
