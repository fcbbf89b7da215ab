"""A run's data: made on first use, and made once where two runs need it."""

import shutil
import threading
import time

import pytest
import sentencepiece

from ec_dit import config
from ec_dit.core import lock, paths
from ec_dit.core.errors import UserError
from ec_dit.data import dataset
from ec_dit.data.records import Record
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.runs import feed
from tests import helpers


def small(path):
    c = config.default()
    c.data.update(source="shapes", path=str(path), space="pixels", size=32, channels=3)
    c.data.options.update(image_size=48, train=8, validation=4, novel=2)
    c.text.encoder = "tower"
    return config.typed(c)


def test_a_second_run_waits_for_data_that_another_prepares(tmp_path, monkeypatch):
    first = feed.open_data(small(tmp_path / "first"), lambda line: None)
    said, found, place = [], [], tmp_path / "second"
    prepares = threading.Thread(target=lambda: found.append(feed.open_data(small(place), said.append)))
    with lock.held(paths.at(tmp_path / ".second.lock"), "the data set", print):
        prepares.start()
        deadline = time.monotonic() + 30
        while not any("waiting until it is free" in line for line in said) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not place.exists()
        shutil.copytree(tmp_path / "first", place)  # what the other run makes meanwhile
        made = (place / "report.json").stat().st_mtime_ns
    prepares.join(60)
    assert found and found[0].fingerprint == first.fingerprint == dataset.open(place).fingerprint
    assert (place / "report.json").stat().st_mtime_ns == made


def test_a_second_run_takes_data_that_another_finished_just_before(tmp_path, monkeypatch):
    """Between its look and its turn; data of other options are told as such, and not as in the way of a preparation."""
    found = feed.open_data(small(tmp_path / "set"), lambda line: None)
    monkeypatch.setattr(feed.datasets, "is_there", lambda path: False)
    assert feed.open_data(small(tmp_path / "set"), lambda line: None).fingerprint == found.fingerprint
    other = small(tmp_path / "set")
    other = helpers.change(other, data__options={**other.data.options, "train": 9})
    with pytest.raises(UserError, match=r"has train 8 instead of 9: give another --config.data.path, or remove it"):
        feed.open_data(other, lambda line: None)


class Captions:
    """A data set of captions alone."""

    def __init__(self, captions):
        self._records = [Record(f"{n}", b"", (caption, "never looked at " * 9)) for n, caption in enumerate(captions)]

    def __getitem__(self, split):
        return {"train": self._records}[split]


class Words:
    """A tokenizer of one token a word."""

    def length(self, caption):
        return len(caption.split()) + 1


def test_captions_that_training_cuts_are_told():
    """The share of the first captions of the first 500 records, and the longest of them."""

    def said(captions, length):
        lines = []
        feed.warn_of_cut_captions(Captions(captions), Words(), length, lines.append)
        return lines

    captions = ["a b c"] * 5 + ["a b c d"] * 2 + ["a b c d e f g"]
    told = "warning: {} % of the captions are cut at --config.text.length={} tokens; the longest of {} has {}"
    assert said(captions, 8) == []
    assert said(captions, 7) == [told.format("12.5", 7, 8, 8)]
    assert said(captions, 4) == [told.format("37.5", 4, 8, 8)]
    assert said(captions, 3) == [told.format("100.0", 3, 8, 8)]
    assert said(["a"] * 499 + ["a b", "a b c"], 2) == [told.format("0.2", 2, 500, 3)]


def test_a_run_tells_of_the_captions_that_it_cuts(tmp_path):
    """By the set's own tokenizer, whose pieces sentencepiece counts here itself."""
    data = feed.open_data(small(tmp_path / "set"), lambda line: None)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(data.tokenizer_path))
    counts = [len(processor.encode(record.caption)) + 1 for record in data["train"]]
    length, lines = sorted(counts)[4], []
    feed.warn_of_cut_captions(data, Tokenizer.load(data.tokenizer_path), length, lines.append)
    share = 100 * sum(count > length for count in counts) / 8
    cut = f"{share:.1f} % of the captions are cut at --config.text.length={length} tokens"
    assert share and lines == [f"warning: {cut}; the longest of 8 has {max(counts)}"]
