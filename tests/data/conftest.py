"""Data sets that many tests read."""

import pytest

from ec_dit.data import dataset, tokenizer
from tests.data import sets


@pytest.fixture
def counting():
    """Builds the source, from fields of its options."""
    return lambda **options: sets.CountingSource(sets.CountingOptions(**options))


@pytest.fixture(scope="session")
def numbers(tmp_path_factory):
    """A prepared data set of 23 training and 7 validation records."""
    out = tmp_path_factory.mktemp("sets") / "numbers"
    sets.write(sets.CountingSource(), out)
    return dataset.open(out)


@pytest.fixture(scope="session")
def words(numbers):
    """The tokenizer of `numbers`."""
    return tokenizer.Tokenizer.load(numbers.tokenizer_path)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """Encoded records of three shapes, 13 + 7 + 3 for training and 5 + 2 for validation; half have a mirror image."""
    out = tmp_path_factory.mktemp("sets") / "mixed"
    sets.write(sets.MixedSource(), out, encoding=sets.plan())
    return dataset.open(out)
