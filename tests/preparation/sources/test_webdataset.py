import errno
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc

import pytest

from ec_dit.core import errors, paths
from ec_dit.core.errors import UserError
from ec_dit.data.records import Record
from ec_dit.preparation.finding import access
from ec_dit.preparation.source import Shard, Skipped, everything
from ec_dit.preparation.sources.found.webdataset import WebdatasetOptions, WebdatasetSource
from tests import gcs_server
from tests.sets import BadDisk

JPEG = b"\xff\xd8 not decoded here"


def tar(*members, **options):
    """A tar of (name, bytes or TarInfo)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or (len(content) if isinstance(content, bytes) else 0)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def example(key, caption="a dog", **fields):
    """What img2dataset writes of one image."""
    fields = {"caption": caption, "status": "success", "error_message": None, "key": key, **fields}
    return (
        (f"{key}.jpg", JPEG + key.encode()),
        (f"{key}.json", json.dumps(fields).encode()),
        (f"{key}.txt", caption.encode()),
    )


def read(path, **options):
    return list(everything(WebdatasetSource(WebdatasetOptions(str(path), **options))))


def of(folder, *data, **options):
    """What the tars 00000.tar, 00001.tar, ... with these bytes give: ({id: record}, {id: reason})."""
    for number, each in enumerate(data):
        (folder / f"{number:05}.tar").write_bytes(each)
    items = read(folder, **options)
    skipped = [item for item in items if isinstance(item, Skipped)]
    assert len({item.id for item in items}) == len(items)
    return {item.id: item for item in items if isinstance(item, Record)}, {item.id: item.reason for item in skipped}


def link(name, kind=tarfile.SYMTYPE, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def test_examples_of_img2dataset(tmp_path):
    first = example(
        "000000001", " A red\ndog ", url="http://a/b", width=640, similarity=0.31, punsafe=float("nan"), ok=True
    )
    second = example("000000002", "dog to the left", exif='{"Make": "x"}', long="x" * 1001, none=None, several=[1])
    kept, skipped = of(tmp_path, tar(*first, *second), tar(*example("000010000")))
    assert skipped == {}
    assert list(kept) == ["00000/000000001", "00000/000000002", "00001/000010000"]
    one, two = kept["00000/000000001"], kept["00000/000000002"]
    assert one.image == JPEG + b"000000001"
    assert (one.captions, one.weights, one.flip) == (("A red dog",), (), True)
    assert not two.flip
    shared = {"status": "success"}
    assert one.meta == shared | {"key": "000000001", "url": "http://a/b", "width": 640, "similarity": 0.31, "ok": True}
    assert two.meta == shared | {"key": "000000002"}


def test_captions_from_several_keys(tmp_path):
    data = tar(
        *example("a", "raw", recaption=["long one", "long two"]),
        *example("b", "raw"),
        *example("c", "same", recaption="same"),
        *example("d", "", recaption=7),
        ("e.jpg", JPEG),
    )
    kept, skipped = of(tmp_path, data, captions=("recaption=0.8", "txt=0.2"))
    assert {key: (record.captions, record.weights) for key, record in kept.items()} == {
        "00000/a": (("long one", "long two", "raw"), (0.4, 0.4, 0.2)),
        "00000/b": (("raw",), ()),
        "00000/c": (("same",), ()),
    }
    assert "recaption" not in kept["00000/a"].meta
    assert skipped == {
        "00000/d": "caption is not text",
        "00000/e": "no caption: no 'recaption' or 'txt'; there is nothing else",
    }


def test_captions_of_another_ending_are_named(tmp_path):
    data = tar(("a.jpg", JPEG), ("a.caption", b"x"), ("a.npy", b"-"), ("b.v1.jpg", JPEG), ("b.v1.caption", b"y"))
    dotted = "no caption: the example has jpg, .caption; if its key is 'b'"
    for captions, lacks in (
        (("txt",), "no caption: no 'txt'; there is caption, npy"),
        (("captoin",), "no caption: no 'captoin' (did you mean caption?); there is caption, npy"),
    ):
        kept, skipped = of(tmp_path, data, captions=captions)
        assert kept == {} and skipped["00000/a"] == lacks
        assert skipped["00000/b.v1"].startswith(dotted)
    kept, _ = of(tmp_path, data, captions=("caption",))
    assert {name: record.caption for name, record in kept.items()} == {"00000/a": "x", "00000/b.v1": "y"}


def test_each_line_a_caption_but_the_blank_ones(tmp_path):
    lines = [f"text {number}" for number in range(64)]
    data = tar(
        ("a.jpg", JPEG), ("a.txt", "\n \r\n".join([*lines, "", "\t"]).encode()), ("b.jpg", JPEG), ("b.txt", b"\n\n")
    )
    kept, skipped = of(tmp_path, data, caption_lines=True)
    assert kept["00000/a"].captions == tuple(lines)
    assert skipped == {"00000/b": "empty caption"}


def test_what_is_skipped(tmp_path, monkeypatch):
    failed = json.dumps({"status": "failed_to_download", "error_message": "HTTP Error 404"}).encode()
    data = tar(
        ("folder", link("folder", tarfile.DIRTYPE)[1]),
        ("./folder/kept.v1.jpg", b"another suffix"),
        ("./folder/kept.PNG", JPEG),
        ("./folder/kept.txt", b"fine"),
        ("failed.json", failed),
        ("failed.txt", b"gone"),
        ("bare.txt", b"x"),
        ("latin.jpg", JPEG),
        ("latin.txt", b"caf\xe9"),
        ("broken.jpg", JPEG),
        ("broken.json", b"[" * 5000),
        ("list.jpg", JPEG),
        ("list.json", b"[]"),
        ("flood.jpg", JPEG),
        ("flood.json", json.dumps({"caption": ["x"] * 65}).encode()),
        ("novel.jpg", JPEG),
        ("novel.json", json.dumps({"caption": "x" * 10_001}).encode()),
        ("vast.jpg", JPEG * 100),
        ("vast.txt", b"x"),
        *example("twice"),
        *example("other"),
        *example("twice", "another"),
        *example("twice", "a third"),
        ("README", b"no example"),
        ("sound.mp3", b"no example"),
        ("._mac.jpg", b"no example"),
        ("line\nfeed.jpg", JPEG),
    )
    monkeypatch.setattr(access, "MAX_IMAGE", 1000)
    kept, skipped = of(tmp_path, data, captions=("txt", "caption"))
    assert list(kept) == ["00000/folder/kept", "00000/twice", "00000/other"]
    assert kept["00000/twice"].caption == "a dog"
    assert skipped == {
        "00000/failed": "download failed: HTTP Error 404",
        "00000/bare": "no image: the example has txt",
        "00000/latin": "caption is not UTF-8 text",
        "00000/broken": f"damaged json: it begins with {b'[' * 40!r}",
        "00000/list": "damaged json: no object",
        "00000/flood": "too many captions: 65",
        "00000/novel": "endless caption: 10001 characters",
        "00000/vast": "too large: jpg of 1,900 bytes, at most 1,000 are read",
        "00000/twice#2": "repeated key: the files of an example must follow each other",
        "00000/twice#3": "repeated key: the files of an example must follow each other",
        "00000/line\\nfeed": "no caption: no 'txt' or 'caption'; there is nothing else",
        "00000.tar (parts)": "parts passed over: 1 x .v1.jpg, 1 x file without an ending, 1 x .mp3",
    }


def test_names_and_kinds_that_lead_elsewhere(tmp_path):
    data = tar(
        ("../up.jpg", JPEG),
        ("../up.txt", b"x"),
        ("/abs.jpg", JPEG),
        ("/abs.txt", b"x"),
        link("soft.jpg"),
        ("soft.txt", b"x"),
        link("hard.txt", tarfile.LNKTYPE, "last.txt"),
        link("pipe.jpg", tarfile.FIFOTYPE),
        link("null", tarfile.CHRTYPE),
        *example("last"),
    )
    kept, skipped = of(tmp_path, data)
    assert list(kept) == ["00000/last"]
    assert {name.removeprefix("00000/"): reason for name, reason in skipped.items()} == {
        "../up": "path leaves the archive: '../up.txt'",
        "/abs": "path leaves the archive: '/abs.txt'",
        **{
            name.split(".")[0]: f"not a regular file: {name!r}" for name in ("soft.jpg", "hard.txt", "pipe.jpg", "null")
        },
    }
    assert [path.name for path in tmp_path.iterdir()] == ["00000.tar"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names(tmp_path, form):
    key = "/".join(["été" * 9] * 5)
    kept, skipped = of(tmp_path, tar(*example(key), *example("b"), format=form))
    assert list(kept) == [f"00000/{key}", "00000/b"] and skipped == {}
    assert kept["00000/b"].image == JPEG + b"b"


def test_a_name_too_long_to_keep(tmp_path):
    kept, skipped = of(tmp_path, tar(*example("x" * 2000), *example("b")))
    assert list(kept) == ["00000/b"]
    assert list(skipped.values()) == ["name of more than 1000 characters"]


def test_memory_stays_that_of_one_example(tmp_path):
    data = tar(*((f"{number}.jpg", bytes(1 << 20)) for number in range(64)))
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(data, 1))
    source = WebdatasetSource(WebdatasetOptions(str(tmp_path / "x.tar.gz")))
    tracemalloc.start()
    assert sum(1 for _ in source.records(0)) == 64
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_which_tars(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b/..b", "sub/00001", "00000", "sub/00000", ".hidden/x", "10"):
        (tmp_path / f"{name}.tar").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.tar").write_bytes(tar(*example("k")))
    (tmp_path / "empty.tar").write_bytes(tar())

    def ids(path, **options):
        return [item.id for item in read(f"{tmp_path}/{path}", **options)]

    assert ids("") == ["00000/k", "10/k", "empty.tar", "sub/00000/k", "sub/00001/k"]
    assert ids("sub/00001.tar") == ["00001/k"]
    assert ids("sub/*.tar") == ["00000/k", "00001/k"]
    assert ids("s*/*1.tar") == ["sub/00001/k"]
    assert ids("{00000..00001}.tar") == ["00000/k", "00001.tar"]  # The second is missing.
    assert ids("{sub/,}00000.tar") == ["00000/k", "sub/00000/k"]
    assert ids("{8..10}.tar")[-1] == "9.tar"
    source = WebdatasetSource(WebdatasetOptions(f"{tmp_path}/sub"))
    assert source.shards() == [Shard("00000.tar"), Shard("00001.tar")]
    assert source.shards() is source.shards()
    assert [item.id for item in source.records(1)] == ["00001/k"]
    for path, message in (
        ("none", "is not there"),
        ("none/*.tar", "is not there"),
        (".hidden/none", "is not there"),
        ("b", "has no .tar files"),
        ("{0..99999999}.tar", "more than 1,000,000 files"),
        ("**/*.tar", "pass the folder itself"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path / path)


def test_what_is_no_file_is_not_opened(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar(*example("k")))
    (tmp_path / "1.tar").mkdir()
    (tmp_path / "1.tar" / "inner.tar").write_bytes(tar(*example("k")))
    os.mkfifo(tmp_path / "2.tar")
    (tmp_path / "3.tar").symlink_to("nowhere")
    lost = ["3.tar"]
    for path, ids, unread in (
        ("*.tar", ["0/k", *lost], {"folder": 1, "pipe or device": 1}),
        ("{0..3}.tar", ["0/k", *lost], {"folder": 1, "pipe or device": 1}),
        ("", ["0/k", "1.tar/inner/k", *lost], {"pipe or device": 1}),
    ):
        source = WebdatasetSource(WebdatasetOptions(f"{tmp_path}/{path}"))
        assert [item.id for item in everything(source)] == ids
        assert source.unread() == unread
    with pytest.raises(UserError, match=r"1\*.tar is not there \(there is 1 x folder\)"):
        read(tmp_path / "1*.tar")
    with pytest.raises(UserError, match=r"2.tar is neither a folder nor a plain file"):
        read(tmp_path / "2.tar")


def test_held_out_by_the_id(tmp_path):
    data = tar(*(member for number in range(200) for member in example(f"{number}")), *example("0"))
    items = {
        item.id: item.split
        for item in (of(tmp_path, data, validation_share=0.2), read(tmp_path, validation_share=0.2))[1]
    }
    held = [name for name, split in items.items() if split == "validation"]
    assert 20 <= len(held) <= 60
    assert {item.split for item in read(tmp_path, validation_share=0)} == {"train"}


READ = """
import sys
from ec_dit.preparation.source import everything
from ec_dit.preparation.sources.found.webdataset import WebdatasetOptions, WebdatasetSource
for path in sys.argv[1:]:
    source = WebdatasetSource(WebdatasetOptions(path))
    print([(item.id, getattr(item, "image", None), getattr(item, "reason", None)) for item in everything(source)])
"""


def test_tars_in_a_bucket():
    whole = tar(*example("a"), *example("b"))
    with gcs_server.Server() as server:
        server.put("bucket", "set/0.tar", whole, {})
        server.put("bucket", "set/deep/1.tar", whole[: 7 * 512 + 5], {})
        environment = os.environ | server.environment()
        paths = ["gs://bucket/set", "gs://bucket/set/{0..1}.tar", "gs://bucket/*/0.tar"]
        printed = subprocess.check_output([sys.executable, "-c", READ, *paths], env=environment, text=True)
    both = [("0/a", JPEG + b"a", None), ("0/b", JPEG + b"b", None)]
    end = "damaged archive: it ends early"
    lines = printed.splitlines()
    assert lines[0] == str([*both, ("deep/1/a", JPEG + b"a", None), ("deep/1.tar", None, end)])
    assert lines[1] == str([*both, ("1.tar", None, "missing file")])
    assert lines[2] == str([("set/0/a", JPEG + b"a", None), ("set/0/b", JPEG + b"b", None)])


def test_what_is_known_of_an_example_without_an_image(tmp_path):
    fields = {"status": "failed_to_download", "error_message": "HTTP Error 404", "width": None, "aesthetic": 5.5}
    data = tar(("a.json", json.dumps(fields).encode()), ("b.json", b'{"lang": "en"}'), ("c.txt", b"x"))
    (tmp_path / "0.tar").write_bytes(data)
    assert {item.id: item.meta for item in read(tmp_path)} == {
        "0/a": {"status": "failed_to_download", "error_message": "HTTP Error 404", "aesthetic": 5.5},
        "0/b": {"lang": "en"},
        "0/c": {},
    }


@pytest.mark.parametrize("packed", [False, True])
def test_a_disk_that_fails_is_no_damage_of_the_tar(tmp_path, monkeypatch, packed):
    """It is told with the file's name, as what may pass; nothing of the tar is given up for good."""
    whole = tar(*(member for number in range(9) for member in example(f"{number}", note="x" * 5000)))
    (tmp_path / "a.tar").write_bytes(gzip.compress(whole, 0) if packed else whole)
    monkeypatch.setattr(type(paths.at(tmp_path)), "open", lambda path, mode: BadDisk(path, range(20_000, 30_000)))
    got = []
    with pytest.raises(UserError) as caught:
        got.extend(WebdatasetSource(WebdatasetOptions(str(tmp_path))).records(0))
    told = errors.explain(caught.value)
    assert type(told) is errors.TryAgain
    assert str(told).startswith(f"webdataset: cannot read {tmp_path}/a.tar: [Errno 5] Input/output error")


def test_folders_that_cannot_be_read_are_told(tmp_path, monkeypatch):
    """Counted where they may not be read; where the disk fails, that ends it."""
    (tmp_path / "shut").mkdir()
    (tmp_path / "0.tar").write_bytes(tar(*example("a")))
    scandir, code = os.scandir, errno.EACCES

    def refuse(path):
        if os.fspath(path) == str(tmp_path / "shut"):
            raise OSError(code, os.strerror(code), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = WebdatasetSource(WebdatasetOptions(str(tmp_path)))
    assert [item.id for item in everything(source)] == ["0/a"] and source.unread() == {"unreadable folder": 1}
    code = errno.EIO
    with pytest.raises(UserError, match=rf"webdataset: cannot read {tmp_path}/shut: Input/output error") as caught:
        WebdatasetSource(WebdatasetOptions(str(tmp_path)))
    assert type(errors.explain(caught.value)) is errors.TryAgain


def test_what_only_looks_like_a_file_is_named():
    """Its first byte cannot be read."""
    source = WebdatasetSource(WebdatasetOptions("/proc/self/mem"))
    with pytest.raises(UserError, match=r"webdataset: cannot read /proc/self/mem: \[Errno 5\] Input/output error"):
        list(source.records(0))
