"""SIGTERM is noticed between steps and batches, and ends at once what has nothing to save."""

import os
import signal

import pytest

from ec_dit.core import stopping


def tell():
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_stop_signal_catches_sigterm_and_gives_it_back():
    before = signal.getsignal(signal.SIGTERM)
    with stopping.StopSignal() as stop:
        assert not stop()
        tell()
        tell()
        assert stop() and stop()
    assert signal.getsignal(signal.SIGTERM) is before


def test_long_work_ends_before_its_next_item():
    made = []

    def items():
        for item in range(4):
            made.append(item)
            yield item

    def work():
        for item in stop.between(items()):
            if item == 1:
                tell()

    with stopping.StopSignal() as stop:
        assert list(stop.between(items())) == [0, 1, 2, 3]
        made.clear()
        with pytest.raises(stopping.Stopped):
            work()
    assert made == [0, 1]


def test_at_once_means_at_once_and_no_longer():
    before, went_on = signal.getsignal(signal.SIGTERM), False

    @stopping.at_once()
    def work():
        nonlocal went_on
        tell()
        went_on = True

    with pytest.raises(stopping.Stopped):
        work()
    assert not went_on
    assert signal.getsignal(signal.SIGTERM) is before
