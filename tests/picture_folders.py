"""Small pictures with captions, as folders and tars of them are made of."""

import os
from pathlib import Path

from PIL import Image

from tests import encoded_sets as sets


def pictures(count):
    return [sets.encoded(Image.new("RGB", (40, 40), (9 * number, 0, 0)), (40, 40)) for number in range(count)]


def put(folder, names, data=None):
    folder.mkdir(exist_ok=True)
    for name in names:
        if data is None:
            Image.new("RGB", (40, 40), (7 * int(name), 0, 0)).save(folder / f"{name}.png")
        else:
            (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.txt").write_text(f"number {name}")


def captioned(folder, count=12):
    """Pictures with captions, in a folder whose name may be bytes."""
    Path(os.fsdecode(folder)).mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (20, 20 + index), (10 * index, 0, 0)).save(Path(os.fsdecode(folder)) / f"{index}.png")
        (Path(os.fsdecode(folder)) / f"{index}.txt").write_text(f"picture {index}")
