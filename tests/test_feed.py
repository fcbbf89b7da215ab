"""A run's data: made on first use, and made once where two runs need it."""

import shutil
import threading
import time

import pytest

from ec_dit import config, feed
from ec_dit.core import lock, paths
from ec_dit.core.errors import UserError
from ec_dit.data import dataset


def small(path):
    c = config.default()
    c.data.update(source="shapes", path=str(path), space="pixels", size=32, channels=3)
    c.data.options.update(image_size=48, train=8, validation=4, novel=2)
    c.text.encoder = "tower"
    return c


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
    other.data.options.train = 9
    with pytest.raises(UserError, match=r"has train 8 instead of 9: give another --config.data.path, or remove it"):
        feed.open_data(other, lambda line: None)
