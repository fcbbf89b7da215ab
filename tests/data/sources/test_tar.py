"""Tars by their content: compressed, appended, torn, or no tars at all."""

import bz2
import gzip
import io
import lzma
import types
import zipfile

import pyarrow as pa
import pytest

from ec_dit.core.errors import UserError
from ec_dit.data.records import Record, Skipped
from tests.data.sources.test_webdataset import example, of, read, tar


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"x")
    return buffer.getvalue()


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


def test_every_tar_of_a_folder_is_read_whatever_its_name(tmp_path):
    for name, pack in {
        "0.tar": gzip.compress,
        "1.tar.gz": gzip.compress,
        "2.tgz": bytes,
        "3.tar.zst": zstd,
        "4.tar": zstd,
    }.items():
        (tmp_path / name).write_bytes(pack(tar(*example("a"), *example("b"))))
    items = read(tmp_path)
    assert [item.id for item in items if isinstance(item, Record)] == [
        f"{name}/{key}" for name in ("0", "1.tar.gz", "2.tgz", "3.tar.zst", "4") for key in "ab"
    ]
    assert len(items) == 10


def test_what_is_no_tar_is_named(tmp_path):
    cases = {
        b"": "an empty file",
        b"\n<!DOCTYPE html><html>": "an HTML page",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n": "a git-lfs pointer; run git lfs pull",
        zipped(): "a zip archive",
        lzma.compress(tar()): "an xz file",
        bz2.compress(tar()): "a bzip2 file",
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': "an XML text",
        b'{"error": "no access"}': "a JSON text",
        b"anything else " * 99: "it begins with b'anything else an'",
        gzip.compress(b"<html>"): "an HTML page",
        b"\xff" * 600: "it begins with",
    }
    for number, data in enumerate(cases):
        (tmp_path / f"{number:02}.tar").write_bytes(data)
    items = read(tmp_path)
    for item, kind in zip(items, cases.values(), strict=True):
        assert item.reason.startswith(f"not a tar: {kind}") and item.examples is None, item


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_appended_tars_are_read_on(tmp_path, pack):
    one, two, three = (tar(*example(key)) for key in "abc")
    kept, skipped = of(tmp_path, pack(one + two + three))
    assert list(kept) == ["00000/a", "00000/b", "00000/c"] and skipped == {}
    assert list(of(tmp_path, pack(one) + pack(two))[0]) == ["00000/a", "00000/b"]
    kept, skipped = of(tmp_path, pack(one + two[:515]))
    assert list(kept) == ["00000/a"] and skipped == {"00000.tar": "damaged archive: it ends early"}


def test_bytes_after_the_end_are_remarked(tmp_path):
    data = tar(*example("a")) + b"signature" * 100
    kept, skipped = of(tmp_path, data)
    assert list(kept) == ["00000/a"]
    assert skipped == {"00000.tar": "bytes after the end of the archive: 900, which are no members"}
    assert [item.examples for item in read(tmp_path) if isinstance(item, Skipped)] == [0]
    kept, skipped = of(tmp_path, gzip.compress(tar(*example("a"))) + b"signature")
    assert list(kept) == ["00000/a"]
    assert skipped["00000.tar"].startswith("damaged after the end of the archive: ")


def test_zeros_in_the_middle_are_no_end(tmp_path):
    data = bytearray(tar(*example("a"), *example("b"), *example("c")))
    start = data.index(b"b.jpg")
    data[start : start + 512] = bytes(512)
    kept, skipped = of(tmp_path, bytes(data))
    assert list(kept) == ["00000/a"]
    assert skipped == {"00000.tar": "damaged archive: members behind bytes that are none"}
    assert [item.examples for item in read(tmp_path) if isinstance(item, Skipped)] == [None]


def test_archives_of_nothing(tmp_path):
    assert of(tmp_path, tar())[1] == {"00000.tar": "empty archive"}
    assert [item.examples for item in read(tmp_path)] == [0]
    assert of(tmp_path, bytes(2 << 20))[1] == {"00000.tar": "damaged archive: nothing but zeros"}
    assert [item.examples for item in read(tmp_path)] == [None]


def test_damage_of_compressed_tars(tmp_path):
    noise = [(f"{number}.jpg", bytes(range(256)) * 999) for number in range(9)]
    for pack in (gzip.compress, zstd):
        data = pack(tar(*noise))
        for spoiled in (data[: len(data) // 2], data[:10], data[:20] + b"\xff" * 50 + data[70:]):
            reason = of(tmp_path, spoiled)[1]["00000.tar"]
            assert reason.startswith(("damaged archive: ", "not a tar: ")), reason


def test_zstd_that_pyarrow_lacks(tmp_path, monkeypatch):
    (tmp_path / "0.tar").write_bytes(zstd(tar(*example("a"))))
    monkeypatch.setattr(pa, "Codec", types.SimpleNamespace(is_available=lambda name: False))
    with pytest.raises(UserError, match=r"zstd need a pyarrow with that codec; run: pip install -U pyarrow"):
        read(tmp_path)


def test_what_lies_beside_tars_is_counted(tmp_path):
    from ec_dit.data.sources.webdataset import WebdatasetOptions, WebdatasetSource

    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("0.tar", "0_stats.json", "1_stats.json", "0.parquet", "README", ".hidden"):
        (folder / name).write_bytes(tar(*example("a")))
    source = WebdatasetSource(WebdatasetOptions(str(folder)))
    assert source.unread() == {".json": 2, "link to a folder": 1, ".parquet": 1, "file without an ending": 1}
    (folder / "0.tar").unlink()
    with pytest.raises(UserError, match=r"has no .tar files \(there is 2 x .json, 1 x link to a folder"):
        read(folder)
