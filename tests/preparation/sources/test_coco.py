import hashlib
import json
import os
import subprocess
import sys

import pytest

from ec_dit.core import errors, paths
from ec_dit.core.errors import UserError
from ec_dit.data.records import Record
from ec_dit.preparation.source import Skipped, everything
from ec_dit.preparation.sources.found.coco import CocoOptions, CocoSource
from tests import gcs_server
from tests.sets import BadDisk

JPEG = b"\xff\xd8 not decoded here"


def image(number, file=None, **fields):
    return {"id": number, "file_name": file or f"{number:012}.jpg", **fields}


def caption(number, image_id, text, **fields):
    return {"id": number, "image_id": image_id, "caption": text, **fields}


def source(folder, images, annotations, files=(), **options):
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for name in files:
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_bytes(JPEG + name.encode())
    listing = folder / "captions.json"
    listing.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    return CocoSource(CocoOptions(str(pictures), annotations=str(listing), **options))


def sorted_out(*args, **options):
    items = list(everything(source(*args, **options)))
    assert len({item.id for item in items}) == len(items)
    kept = {item.id: item for item in items if isinstance(item, Record)}
    return kept, {item.id: item.reason for item in items if isinstance(item, Skipped)}


def test_images_with_all_their_captions(tmp_path):
    images = [
        image(9, "nine.jpg", width=640, height=480, license=4, coco_url="http://a/b"),
        image(2, "two.jpg"),
        image(10, "sub/ten.jpg"),
    ]
    annotations = [
        caption(7, 9, "third of nine"),
        caption(1, 9, "first  of nine\n"),
        caption(3, 2, "a sign"),
        caption(4, 9, "second"),
        caption(5, 9, "second"),
        caption(6, 10, "ten"),
        caption(8, 2, "two"),
    ]
    kept, skipped = sorted_out(tmp_path, images, annotations, ["nine.jpg", "two.jpg", "sub/ten.jpg"])
    assert skipped == {}
    assert list(kept) == ["two.jpg", "nine.jpg", "sub/ten.jpg"]
    nine, two = kept["nine.jpg"], kept["two.jpg"]
    assert nine.image == JPEG + b"nine.jpg"
    assert (nine.captions, nine.weights) == (("first of nine", "second", "third of nine"), (0.25, 0.5, 0.25))
    assert nine.meta == {"id": 9, "width": 640, "height": 480, "license": 4, "coco_url": "http://a/b"}
    assert (two.captions, two.weights, two.flip) == (("a sign", "two"), (), False)
    assert nine.flip
    annotations[0]["long"] = "a long text of nine"
    kept, _ = sorted_out(tmp_path, images[:1], annotations, captions=("caption=1", "long=3"))
    texts = ("first of nine", "second", "third of nine", "a long text of nine")
    assert (kept["nine.jpg"].captions, kept["nine.jpg"].weights) == (texts, (0.25, 0.5, 0.25, 3.0))


def test_what_is_skipped(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    names = [
        "fine.jpg",
        "fine.jpg",
        "silent.jpg",
        "gone.jpg",
        "../secret.jpg",
        "link.jpg",
        str(tmp_path / "secret.jpg"),
        "n.jpg",
    ]
    images = [
        *(image(number, name) for number, name in enumerate(names)),
        image(0, "again.jpg"),
        {"id": 77},
        {"file_name": "x.jpg"},
        {"id": [1], "file_name": "x.jpg"},
        "no object",
    ]
    annotations = [caption(number, number, "x") for number in (0, 1, 3, 4, 5, 6)]
    annotations += [
        caption(20, 7, 7),
        caption(21, 500, "x"),
        caption(22, None, "x"),
        "no object",
        caption(23, [7], "x"),
    ]
    kept, skipped = sorted_out(tmp_path, images, annotations, ["fine.jpg", "silent.jpg", "n.jpg", "again.jpg"])
    assert list(kept) == ["fine.jpg", "fine.jpg#2"]
    missing = dict.fromkeys(["image", "image#2", "image#3", "image#4"], "image without id or file_name")
    assert {name: reason.split(":")[0] for name, reason in skipped.items()} == missing | {
        "silent.jpg": "no caption",
        "gone.jpg": "missing file",
        "../secret.jpg": "path leaves the folder",
        "link.jpg": "link leaves the folder",
        str(tmp_path / "secret.jpg"): "absolute path",
        "n.jpg": "caption is not text",
        "again.jpg": "repeated image id",
        **{f"annotation {number}": "annotation of an unknown image" for number in (7, 8, 9, 10)},
    }


def test_shards_and_splits(tmp_path):
    images = [image(number) for number in range(2500, 0, -1)]
    made = source(tmp_path, images, [], validation_share=0.25)
    assert [shard.size for shard in made.shards()] == [1000, 1000, 500]
    assert made.shards() is made.shards()
    items = list(made.records(1))
    assert [item.id for item in items] == [f"{number:012}.jpg" for number in range(1001, 2001)]
    for item in items:
        held = int(hashlib.sha256(item.id.encode()).hexdigest()[:8], 16) / 2**32 < 0.25
        assert item.split == ("validation" if held else "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "indices"),
        ("{", "Expecting"),
        ('{"images": []}', "no 'annotations'"),
        ('{"images": [], "annotations": []}', "no images"),
        ('{"images": {}, "annotations": []}', "no images"),
        ("[" * 100_000, "recursion"),
        (b"\xff\xff", "decode"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer; run git lfs pull"),
    ],
)
def test_annotations_that_are_none(tmp_path, content, message):
    listing = tmp_path / "a.json"
    listing.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"cannot read .*a.json: .*{message}.*captions_train2017.json"):
        CocoSource(CocoOptions(str(tmp_path), annotations=str(listing)))


def test_paths_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none is no folder"):
        CocoSource(CocoOptions(str(tmp_path / "none"), annotations="x"))
    with pytest.raises(UserError, match=r"cannot read .*none.json: .*No such file"):
        CocoSource(CocoOptions(str(tmp_path), annotations=str(tmp_path / "none.json")))


def test_a_disk_that_fails_is_no_damage_of_the_list(tmp_path, monkeypatch):
    monkeypatch.setattr(type(paths.at(tmp_path)), "open", lambda path, mode: BadDisk(path, range(10, 20)))
    with pytest.raises(UserError) as caught:
        source(tmp_path, [image(1)], [caption(1, 1, "x")])
    told = errors.explain(caught.value)
    assert type(told) is errors.TryAgain
    assert str(told).startswith(f"coco: cannot read {tmp_path}/captions.json: [Errno 5] Input/output error")
    assert "captions_train2017" not in str(told)


def test_a_list_that_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    for path, kind in ((tmp_path / "a.json", "pipe or device"), (tmp_path, "folder")):
        with pytest.raises(UserError, match=rf"cannot read {path}: it is a {kind}; pass a file like"):
            CocoSource(CocoOptions(str(tmp_path), annotations=str(path)))


READ = """
from ec_dit.preparation.source import everything
from ec_dit.preparation.sources.found.coco import CocoOptions, CocoSource
source = CocoSource(CocoOptions("gs://bucket/set", annotations="gs://bucket/a.json"))
print([(item.id, getattr(item, "image", None), getattr(item, "reason", None)) for item in everything(source)])
"""


def test_images_in_a_bucket():
    listing = {
        "images": [image(1, "a.jpg"), image(2, "none.jpg")],
        "annotations": [caption(1, 1, "x"), caption(2, 2, "x")],
    }
    with gcs_server.Server() as server:
        server.put("bucket", "a.json", json.dumps(listing).encode(), {})
        server.put("bucket", "set/a.jpg", JPEG, {})
        command = [sys.executable, "-c", READ]
        printed = subprocess.check_output(command, env=os.environ | server.environment(), text=True)
    assert printed.strip() == str([("a.jpg", JPEG, None), ("none.jpg", None, "missing file: 'none.jpg'")])


def test_what_is_known_of_an_image_that_is_not_there(tmp_path):
    (item,) = everything(source(tmp_path, [image(1, width=640)], [caption(1, 1, "x")]))
    assert isinstance(item, Skipped) and item.meta == {"id": 1, "width": 640}


def test_what_the_list_does_not_name_is_counted(tmp_path):
    made = source(tmp_path, [image(1, "a.jpg")], [caption(1, 1, "x")], ["a.jpg", "b.jpg", "c.PNG", "d.xyz"])
    assert made.unread() == {"picture that is not listed": 2, ".xyz": 1}


def test_where_captions_and_images_are_looked_for(tmp_path):
    images = [
        image(1, "a.jpg"),
        image(2, f"{tmp_path}/pictures/b.jpg"),
        image(3, "http://x.y/c.jpg"),
        image(4, "d.jpg"),
    ]
    annotations = [
        {"image_id": 1, "raw": {"text": "deep"}},
        {"image_id": 2, "raw": {"text": "t"}},
        {"image_id": 3, "raw": None},
    ]
    kept, skipped = sorted_out(tmp_path, images, annotations, ["a.jpg", "b.jpg"], captions=("raw.text",))
    assert [record.caption for record in kept.values()] == ["deep", "t"]
    assert skipped == {
        "http://x.y/c.jpg": "no caption: no 'raw.text' (did you mean raw?); there is id, image_id, raw",
        "d.jpg": "no caption: no annotation is of this image",
    }
    kept, skipped = sorted_out(tmp_path, images[:3], [caption(1, 3, "x"), *annotations], captions=("caption",))
    assert skipped["a.jpg"] == "no caption: no 'caption'; there is id, image_id, raw.text"
    assert skipped["http://x.y/c.jpg"].startswith("a URL and no picture: ")
