import hashlib
import json
import math

import pytest

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.data.sources import found


class Source(found.FoundSource):
    name = "mine"


def record(fields, id_="a", **options):
    return Source(found.FoundOptions(**options))._record(id_, b"image", fields)


def test_weights_of_captions():
    fields = {"txt": "t", "long": ["a", "b", " a "], "none": None}
    made = record(fields, captions=("long=0.6", "txt=0.2", "absent=5", "none=7"))
    assert made.captions == ("a", "b", "t")
    assert made.weights == (pytest.approx(0.4), pytest.approx(0.2), 0.2)
    assert record(fields, captions=("long=1", "txt=0.5")).weights == (2 / 3, 1 / 3, 0.5)
    assert record({"caption": ["a", "b"]}).weights == ()
    assert record({"caption": ["a", "a"]}).captions == ("a",)
    assert record({"a=b": "x"}, captions=("a=b=2",)).captions == ("x",)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no caption"),
        (math.nan, "no caption"),
        ([], "no caption"),
        ([None], "no caption"),
        (" \n", "empty caption"),
        (b"\xff", "caption is not UTF-8 text"),
        (3, "caption is not text"),
        ([["nested"]], "caption is not text"),
    ],
)
def test_captions_that_are_none(value, reason):
    assert record({"caption": value}).reason == reason
    assert record({"caption": value, "txt": "x"}, captions=("caption", "txt")).captions == ("x",)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ((), "captions is empty"),
        (("txt=0",), "captions has 'txt=0'; write KEY or KEY=WEIGHT"),
        (("txt=-1",), "'txt=-1'"),
        (("txt=inf",), "'txt=inf'"),
        (("txt=nan",), "'txt=nan'"),
        (("txt=much",), "'txt=much'"),
        (("=1",), "'=1'"),
        (("",), "''"),
        (("txt=1", "txt=2"), "names 'txt' twice"),
    ],
)
def test_wrong_captions(captions, message):
    with pytest.raises(UserError, match=f"mine: .*{message}"):
        record({}, captions=captions)


def test_captions_are_cleaned():
    assert record({"caption": b"\xef\xbb\xbfcaf\xc3\xa9 \xe2\x80\xa8 x"}).captions == ("café x",)
    assert record({"caption": "lone \ud800"}).captions == ("lone ?",)


def test_mirroring_needs_every_caption():
    assert record({"caption": ["a dog", "a cat"]}).flip
    assert not record({"caption": ["a dog", "a dog on the left"]}).flip
    assert not record({"caption": "a dog"}, flip=False).flip


def test_facts_are_sound_json():
    fields = {
        "caption": "x",
        "exif": "{}",
        "long": "x" * 1001,
        "text": "x" * 1000,
        "lone\ud800": "\udfff",
        "nan": math.nan,
        "inf": -math.inf,
        "huge": 10**400,
        "hash": 2**64 - 1,
        "flag": False,
        "none": None,
        "list": [1],
        "dict": {},
        "bytes": b"x",
        "k" * 1001: 1,
    }
    made = record(fields)
    assert made.meta == {"text": "x" * 1000, "lone?": "?", "hash": 2**64 - 1, "flag": False}
    assert json.loads(json.dumps(dict(made.meta), ensure_ascii=False, allow_nan=False).encode()) == made.meta


def test_held_out_by_a_hash():
    names = [f"{number}" for number in range(300)]
    split = {name: record({"caption": "x"}, name, validation_share=0.1).split for name in names}
    for name, which in split.items():
        share = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64
        assert which == ("validation" if share < 0.1 else "train")
    assert record({}, names[0], validation_share=0.1).split == split[names[0]]  # One that is skipped, too.
    for share in (1, -0.1, math.nan):
        with pytest.raises(UserError, match="mine: validation_share is"):
            record({}, validation_share=share)


def test_names_that_print():
    assert found.printable("été 犬/x\u3000.png") == "été 犬/x\u3000.png"
    assert found.printable("a\nb\0\x1b[31m\u2028\udce9\ud800") == "a\\nb\\x00\\x1b[31m\\u2028\\xe9\\ud800"
    assert record({"caption": "x"}, "n" * 1001).reason == "name of more than 1000 characters"


def test_braces():
    assert list(found.braces("a")) == ["a"]
    assert list(found.braces("{8..11}")) == ["8", "9", "10", "11"]
    assert list(found.braces("{008..011}.tar")) == ["008.tar", "009.tar", "010.tar", "011.tar"]
    assert list(found.braces("{a,b}{1..2}-{x,}"))[:5] == ["a1-x", "a1-", "a2-x", "a2-", "b1-x"]


def test_files_within_a_folder(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "x.txt").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "out").symlink_to(tmp_path)
    (root / "in.txt").symlink_to(root / "sub" / "x.txt")
    (root / "loop").symlink_to(root / "loop")

    def read(name, limit=5):
        return found.read_file(paths.at(root), name, limit)

    assert read("sub/x.txt") == read("./sub//x.txt") == read("in.txt") == b"12345"
    for name, reason in {
        "../secret": "path leaves the folder",
        "sub/../../secret": "path leaves the folder",
        f"{tmp_path}/secret": "path leaves the folder",
        "gs://bucket/x": "path leaves the folder",
        "out/secret": "link leaves the folder",
        "loop": "unreadable",
        "sub": "not a regular file",
        "sub/x.txt/y": "missing file",
        "n\0l": "missing file",
        "": "not a regular file",
        "x" * 5000: "unreadable",
    }.items():
        with pytest.raises(found.Unusable, match=f"^{reason}"):
            read(name)
    with pytest.raises(found.Unusable, match="too large: 5 bytes, at most 4 are read"):
        read("sub/x.txt", 4)
