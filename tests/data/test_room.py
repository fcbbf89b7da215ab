import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ec_dit.data import dataset, images
from ec_dit.data.loader import fixed_batches
from ec_dit.data.room import Room
from ec_dit.data.rows import PictureRows
from ec_dit.data.tokenizer import Tokenizer
from tests.data.sets import Listed, Record, write
from tests.data.test_profiles import encoded


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
    assert batch["image_BYXZ"].shape == (3, 8, 8, 3)
    assert sorted(room.asked) == [16 * 17, 20 * 30, 40 * 16]
