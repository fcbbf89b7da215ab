import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ec_dit.data import dataset, images
from ec_dit.data.loader import fixed_batches
from ec_dit.data.room import Room
from ec_dit.data.rows import PictureRows
from ec_dit.data.tokenizer import Tokenizer
from tests.data.test_profiles import encoded
from tests.sets import Listed, Record, write


def test_no_more_is_held_than_there_is():
    room, held, most, lock = Room(10), 0, 0, threading.Lock()

    def use(parts):
        nonlocal held, most
        with room.hold(parts):
            with lock:
                held += min(parts, 10)
                most = max(most, held)
            threading.Event().wait(0.001)
            with lock:
                held -= min(parts, 10)

    with ThreadPoolExecutor(8) as pool:  # among them some that want more than all
        list(pool.map(use, np.random.default_rng(0).integers(0, 15, 200).tolist(), timeout=60))
    assert 5 < most <= 10 and held == 0


def test_who_asks_first_is_served_first():
    """A large one is not passed by small ones for ever."""
    room, order = Room(10), []

    def use(name, parts):
        with room.hold(parts):
            order.append(name)

    threads = [threading.Thread(target=use, args=given) for given in (("large", 10), ("small", 1))]
    with room.hold(5):
        for thread in threads:
            thread.start()
            thread.join(0.1)
        assert not order  # the small one would fit
    for thread in threads:
        thread.join(10)
    assert order == ["large", "small"]


def test_a_failure_gives_its_room_back():
    room = Room(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), room.hold(1):
            _ = 1 / 0


def test_two_of_the_largest_pictures_have_room_and_no_more():
    """Of all threads of a process, as it is: 128 million pixels."""
    largest, tiny = encoded(Image.new("1", (8000, 8000))), encoded(Image.new("1", (1, 1)))
    entered, leave = [], threading.Event()

    def use(name, data):
        with images.room_for(data):
            entered.append(name)
            leave.wait(60)

    threads = [threading.Thread(target=use, args=given) for given in (("a", largest), ("b", largest), ("c", tiny))]
    try:
        for thread, most in zip(threads, (1, 2, 2), strict=True):
            thread.start()
            deadline = time.monotonic() + (10 if len(entered) < most else 0.2)
            while time.monotonic() < deadline and (len(entered) < most or thread is threads[2]):
                time.sleep(0.005)
        assert entered == ["a", "b"]
    finally:
        leave.set()
        for thread in threads:
            thread.join(10)
    assert entered == ["a", "b", "c"]


PEAK = """
import re
import sys
from pathlib import Path

from ec_dit.data import images

def memory(what):
    return 1024 * int(re.search(rf"{what}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

data = Path(sys.argv[1]).read_bytes()
before = memory("VmRSS")
image = images.decode(data)
print((memory("VmHWM") - before) / (image.width * image.height))
"""


@pytest.mark.parametrize(("mode", "most"), [("RGBA", 11), ("I;16", 8.5)])
def test_a_large_picture_takes_few_bytes_a_pixel(tmp_path, mode, most):
    """At most, beside its file, all copies together. What Pillow holds is a byte a channel, four of colours; strips come on top.

    9.1 and 6.6 were measured; a copy of the whole in float32, if only of one channel, would take 4 more.
    """
    (tmp_path / "picture").write_bytes(encoded(Image.new(mode, (4000, 4000)), compress_level=1))
    printed = subprocess.check_output([sys.executable, "-c", PEAK, str(tmp_path / "picture")], text=True)
    assert 4 < float(printed) < most


class Watched(Room):
    """Notes what is asked for."""

    def __init__(self, size):
        super().__init__(size)
        self.asked = []

    def hold(self, parts):
        self.asked.append(parts)
        return super().hold(parts)


def test_every_picture_waits_for_room(tmp_path, monkeypatch):
    """In preparation and in training, by the sizes in the headers."""
    room = Watched(100)
    monkeypatch.setattr(images, "_ROOM", room)
    forms = {"PNG": (20, 30), "JPEG": (40, 16), "WEBP": (16, 17)}
    records = [
        Record(form, encoded(Image.new("RGB", size), form), ("a cat",), split="train") for form, size in forms.items()
    ]
    records.append(Record("no picture", b"hello", ("a dog",), split="train"))
    write(Listed(records), tmp_path / "set", max_skipped_share=0.5)
    assert sorted(room.asked) == [0, 16 * 17, 20 * 30, 40 * 16]
    room.asked.clear()
    data = dataset.open(tmp_path / "set")
    tokenizer = Tokenizer.load(data.tokenizer_path)
    rows = PictureRows(data["train"], tokenizer, image_size=8, text_length=4)
    (batch,) = fixed_batches(rows, batch_size=3)
    assert batch.image_BYXZ.shape == (3, 8, 8, 3)
    assert sorted(room.asked) == [16 * 17, 20 * 30, 40 * 16]
