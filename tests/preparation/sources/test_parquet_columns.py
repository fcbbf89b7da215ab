"""What columns of tables hold: bytes, paths, texts of pictures, nested values."""

import base64
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ec_dit.core.errors import UserError
from ec_dit.preparation.source import everything
from ec_dit.preparation.sources.found.parquet import ParquetOptions, ParquetSource
from tests.preparation.sources.test_parquet import JPEG, read, sorted_out, write


def test_hugging_face_images_and_several_captions(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "p.jpg").write_bytes(JPEG + b"p")
    (tmp_path / "beside.jpg").write_bytes(JPEG + b"beside")
    columns = {
        "picture": [
            {"bytes": JPEG, "path": "none.jpg"},
            {"bytes": None, "path": "p.jpg"},
            {"bytes": None, "path": None},
        ],
        "texts": [["one", "two", "one"], [], ["x"]],
        "alt": [None, "alt", "x"],
    }
    write(tmp_path / "t.parquet", columns)
    options = {"image": "picture", "captions": ("texts=3", "alt=1")}
    kept, skipped = sorted_out(tmp_path / "t.parquet", images=str(tmp_path / "pictures"), **options)
    assert {name: (record.image, record.captions, record.weights) for name, record in kept.items()} == {
        "t.parquet#0": (JPEG, ("one", "two"), (2.0, 1.0)),
        "t.parquet#1": (JPEG + b"p", ("alt",), ()),
    }
    assert skipped == {"t.parquet#2": "no image: column 'picture' holds nothing"}
    write(tmp_path / "t.parquet", {"image": ["beside.jpg", "pictures/p.jpg"], "caption": ["x", "x"]})
    kept, _ = sorted_out(tmp_path / "t.parquet")
    assert [record.image for record in kept.values()] == [JPEG + b"beside", JPEG + b"p"]


def test_names_from_a_column(tmp_path):
    columns = {"image": [JPEG] * 5, "caption": ["x"] * 5, "key": ["a", "b", "a", None, "line\nfeed"]}
    write(tmp_path / "t.parquet", columns)
    kept, _ = sorted_out(tmp_path, id_column="key")
    assert list(kept) == [f"t.parquet#{key}" for key in ("a", "b", "a#2", "3", "line\\nfeed")]
    write(tmp_path / "t.parquet", columns | {"key": range(10, 15)})
    assert next(iter(sorted_out(tmp_path, id_column="key")[0])) == "t.parquet#10"


def test_paths_that_lead_elsewhere(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    inside = tmp_path / "set"
    inside.mkdir()
    (inside / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (inside / "folder.jpg").mkdir()
    os.mkfifo(inside / "pipe.jpg")
    names = [
        "../secret.jpg",
        str(tmp_path / "secret.jpg"),
        "link.jpg",
        "folder.jpg",
        "pipe.jpg",
        "none.jpg",
        "a\0b",
        "gs://b/x",
    ]
    write(inside / "t.parquet", {"image": names, "caption": ["x"] * len(names)})
    kept, skipped = sorted_out(inside)
    assert kept == {}
    assert [reason.split(":")[0] for reason in skipped.values()] == [
        "path leaves the folder",
        "absolute path",
        "link leaves the folder",
        "not a regular file",
        "not a regular file",
        "missing file",
        "missing file",
        "a URL and no picture",
    ]


def test_base64_texts_that_are_no_sound_picture(tmp_path):
    jpeg, heic = JPEG + bytes(range(256)) * 9, b"\0\0\0\x18ftypheic" + bytes(range(256)) * 9
    sound = base64.b64encode(jpeg).decode()
    texts = [sound, sound[:-3], f"{sound[:900]}#{sound[900:]}", base64.b64encode(heic).decode(), "x/" * 200 + "y.jpg"]
    (tmp_path / texts[-1]).parent.mkdir(parents=True)
    (tmp_path / texts[-1]).write_bytes(JPEG)
    write(tmp_path / "t.parquet", {"image": texts, "caption": ["x"] * 5})
    kept, skipped = sorted_out(tmp_path)
    assert [record.image for record in kept.values()] == [jpeg, JPEG]
    begins = "letters that begin with '/9ggbm90IGRlY29k'"
    assert skipped == {
        "t.parquet#1": f"damaged base64: {len(sound) - 3:,} {begins}",
        "t.parquet#2": f"damaged base64: {len(sound) + 1:,} {begins}",
        "t.parquet#3": "not a readable picture: a HEIC picture; convert it to JPEG",
    }


def test_texts_that_are_not_utf8(tmp_path):
    bad = pa.array([b"caf\xe9", b"fine"], pa.binary()).view(pa.string())
    columns = {"image": [JPEG] * 2, "caption": bad, "source": bad}
    write(tmp_path / "t.parquet", columns)
    kept, skipped = sorted_out(tmp_path)
    assert skipped == {"t.parquet#0": "caption is not UTF-8 text"}
    assert kept["t.parquet#1"].meta == {"source": "fine"}
    lists = pa.array([["fine", "x"], ["y"]])
    lists = pa.ListArray.from_arrays(lists.offsets, pa.array([b"\xff", b"ok", b"y"], pa.binary()).view(pa.string()))
    write(tmp_path / "t.parquet", {"image": [JPEG] * 2, "caption": lists})
    assert [record.captions for record in sorted_out(tmp_path)[0].values()] == [("ok",), ("y",)]


def test_facts_that_stand_twice_are_left_out(tmp_path):
    columns = [pa.array([JPEG]), pa.array(["x"]), pa.array([1]), pa.array([2]), pa.array([3])]
    pq.write_table(pa.Table.from_arrays(columns, ["image", "caption", "a", "a", "b"]), tmp_path / "t.parquet")
    kept, _ = sorted_out(tmp_path)
    assert [record.meta for record in kept.values()] == [{"b": 3}]


def test_nested_columns(tmp_path):
    columns = {
        "sample": [{"image": {"bytes": JPEG + bytes([n]), "path": None}, "key": f"k{n}"} for n in range(2)],
        "captions": [{"short": "a", "long": ["b", "c"]}, {"short": None, "long": []}],
        "annotations": [[{"text": "d", "id": 1}, {"text": "e", "id": 2}], []],
        "scores": [{"aesthetic": 5.5, "deep": {"er": "x"}}, {"aesthetic": None, "deep": {"er": "y"}}],
    }
    write(tmp_path / "t.parquet", columns)
    options = {"image": "sample.image", "id_column": "sample.key"}
    keys = ("captions.short=2", "captions.long=2", "annotations.text=2")
    kept, skipped = sorted_out(tmp_path, captions=keys, **options)
    (record,) = kept.values()
    assert (record.id, record.image) == ("t.parquet#k0", JPEG + b"\0")
    assert (record.captions, record.weights) == (("a", "b", "c", "d", "e"), (2.0, 1.0, 1.0, 1.0, 1.0))
    assert record.meta == {"sample.key": "k0", "scores.aesthetic": 5.5, "scores.deep.er": "x"}
    assert skipped["t.parquet#k1"].startswith("no caption: ")
    for wrong, there in (
        ({"image": "sample.img"}, "sample.image."),
        ({"captions": ("captions.shrot",)}, "captions.short"),
    ):
        with pytest.raises(UserError, match=rf"missing column: .*did you mean {there}.*; it has sample.image.bytes, "):
            read(tmp_path, **{"captions": keys, **options, **wrong})


def test_what_columns_of_texts_hold(tmp_path):
    inside = tmp_path / "pictures"
    inside.mkdir()
    (inside / "a.jpg").write_bytes(JPEG)
    text = base64.b64encode(JPEG * 9).decode()
    images = [
        f"{inside}/a.jpg",
        text,
        f"data:image/jpeg;base64,{text}",
        "https://a.b/c.jpg",
        "/data/c.jpg",
        "C:\\c.jpg",
        "b.jpg",
    ]
    write(tmp_path / "t.parquet", {"image": images, "caption": ["x"] * len(images)})
    kept, skipped = sorted_out(tmp_path, images=str(inside))
    assert [record.image for record in kept.values()] == [JPEG, JPEG * 9, JPEG * 9]
    assert list(skipped.values()) == [
        "a URL and no picture: 'https://a.b/c.jpg'; download the pictures first, as img2dataset does",
        f"absolute path: '/data/c.jpg' is not in {inside}, where pictures are looked for",
        f"absolute path: 'C:\\\\c.jpg' is not in {inside}, where pictures are looked for",
        "missing file: 'b.jpg'",
    ]
    write(tmp_path / "t.parquet", {"image": [text.encode(), b"<html>", b"http://a.b/c"], "caption": ["x"] * 3})
    kept, skipped = sorted_out(tmp_path)
    assert [record.image for record in kept.values()] == [JPEG * 9]
    assert [reason.split(";")[0] for reason in skipped.values()] == [
        "not a readable picture: an HTML page",
        "a URL and no picture: 'http://a.b/c'",
    ]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer; run git lfs pull"),
        (b"<html>", "an HTML page"),
        (b"PK\x03\x04", "a zip archive"),
    ],
)
def test_a_table_that_is_something_else(tmp_path, data, kind):
    write(tmp_path / "0.parquet", {"image": [JPEG], "caption": ["x"]})
    (tmp_path / "1.parquet").write_bytes(data)
    (tmp_path / "README.md").write_bytes(b"x")
    source = ParquetSource(ParquetOptions(str(tmp_path)))
    _, lost = everything(source)
    assert lost.reason.startswith(f"not a parquet table: {kind}") and lost.examples is None
    assert source.unread() == {".md": 1}
