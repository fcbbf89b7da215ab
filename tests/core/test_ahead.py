"""Working ahead, beside plain loops: the order, how far it goes, and that it ends with its consumer."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ec_dit.core import ahead


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def taken(items, log):
    """The items; notes which are asked for."""
    for item in items:
        log.append(item)
        yield item


def test_results_come_in_the_order_of_the_items(pool):
    def slow_where_even(item):
        time.sleep(0.002 * (item % 2 == 0))
        return item**2

    for count in (0, 1, 5, 30):
        expected = [item**2 for item in range(count)]
        assert list(ahead.results(pool, slow_where_even, range(count), 5)) == expected
        pairs = [(item, future.result()) for item, future in ahead.futures(pool, slow_where_even, range(count), 5)]
        assert pairs == list(enumerate(expected))


def test_no_more_than_the_window_is_taken_ahead(pool):
    log = []
    results = ahead.results(pool, str, taken(range(20), log), 3)
    for number in range(20):
        assert next(results) == str(number)
        assert log == list(range(min(number + 3, 20)))


def test_large_items_shorten_the_window(pool):
    """Sizes 4, 4, 4, ... of at most 10: the third is taken, and that is too much."""
    log = []
    results = ahead.results(pool, str, taken([4] * 6, log), 100, size=lambda item: item, most=10)
    counts = []
    for _ in range(6):
        next(results)
        counts.append(len(log))
    assert counts == [3, 4, 5, 6, 6, 6]
    log.clear()
    assert next(ahead.results(pool, str, taken([50, 1], log), 100, size=lambda item: item, most=10)) == "50"
    assert log == [50]  # alone, larger than all that may be held


def test_what_was_begun_is_cancelled_with_its_consumer():
    go, begun = threading.Event(), []

    def wait(item):
        begun.append(item)
        go.wait(30)

    with ThreadPoolExecutor(1) as pool:
        pairs = ahead.futures(pool, wait, range(50), 10)
        _, first = next(pairs)
        pairs.close()
        go.set()
        first.result()
    assert begun in ([0], [0, 1])  # the thread may have taken the second before


def test_an_error_comes_in_its_turn_and_ends_the_rest():
    go, begun = threading.Event(), []

    def work(item):
        begun.append(item)
        if item == 2:
            raise OSError("gone")
        if item > 2:
            go.wait(30)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = ahead.results(pool, work, range(50), 10)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(OSError, match="gone"):
            next(results)
        go.set()
    assert begun in ([0, 1, 2], [0, 1, 2, 3])
