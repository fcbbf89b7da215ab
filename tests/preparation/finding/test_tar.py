"""Tars by their content: compressed, appended, torn, or no tars at all."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
import types
import zipfile

import pyarrow as pa
import pytest

from ec_dit.core.errors import UserError
from ec_dit.data.records import Record
from ec_dit.preparation.source import Skipped
from tests.preparation.sources.test_webdataset import example, of, read, tar


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
    from ec_dit.preparation.sources.found.webdataset import WebdatasetOptions, WebdatasetSource

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


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_damage_ends_a_tar_but_not_the_preparation(tmp_path, form):
    good = tar(*example("a"), *example("b"), *example("c"), format=form)
    with tarfile.open(fileobj=io.BytesIO(good)) as archive:
        starts = {member.name: (member.offset, member.offset_data) for member in archive}
    other = tar(*example("z"))
    header, data = starts["c.jpg"]
    overwritten = good[: header + 20] + b"\xff\xfe" + good[header + 22 :]
    for cut, kept_of_it, *reason in (
        (overwritten, ["a", "b"]),
        (good[: header + 100], ["a", "b"]),
        (good[: data + 5], ["a", "b"]),
        (good[: starts["b.txt"][1] + 2], ["a"]),  # b has lost a part: nothing of it stays
        (good[: starts["c.txt"][1] + 512], ["a", "b", "c"]),  # only the end mark is missing
        (b"", [], "not a tar"),
        (b"no tar at all" * 100, [], "not a tar"),
    ):
        kept, skipped = of(tmp_path, cut, other)
        assert list(kept) == [*(f"00000/{key}" for key in kept_of_it), "00001/z"]
        assert {name: told.split(":")[0] for name, told in skipped.items()} == {
            "00000.tar": reason[0] if reason else "damaged archive"
        }


def hostile(name, size, kind=tarfile.REGTYPE):
    """A header alone, for a member of that many bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse(name):
    """An old GNU sparse file that claims a terabyte, with two blocks of places behind its header."""
    header = bytearray(hostile(name, 512, tarfile.GNUTYPE_SPARSE))
    header[482], header[483:495] = 1, b"%011o\0" % 2**32
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"\0" * 504 + b"\1" + b"\0" * 7 + b"\0" * 512 + b"data".ljust(512, b"\0")


def pax(fields, size=None):
    line = b"".join(fields)
    return hostile("pax", len(line) if size is None else size, tarfile.XHDTYPE) + line.ljust(
        -(-len(line) // 512) * 512, b"\0"
    )


def test_headers_that_lie_exhaust_nothing(tmp_path):
    before, after = tar(*example("a"))[: 6 * 512], tar(*example("b"))
    cases = {
        "sizes that lie": hostile("x.jpg", 1 << 27),
        "a huge member": hostile("x.jpg", 1 << 60),
        "a negative size": hostile("x.jpg", 0)[:124] + b"\xff" * 12 + hostile("x.jpg", 0)[136:],
        "a long name without end": hostile("x", 1 << 40, tarfile.GNUTYPE_LONGNAME),
        "an extended header without end": pax([], 1 << 40) + b"9" * (2 << 20),
        "an extended header of one endless number": pax([b"9" * 100_000]),
        "lengths that point back": pax([b"0 path=x\n"] * 10),
        "no size": pax([b"12 size=-1\n\n"]) + hostile("x.jpg", 0),
    }
    for case, data in cases.items():
        tracemalloc.start()
        kept, skipped = of(tmp_path, before + data + after)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert list(kept) == ["00000/a"], case
        assert [reason.split(":")[0] for name, reason in skipped.items() if name == "00000.tar"] == [
            "damaged archive"
        ], case
        assert peak < 300 << 20, case
    small = tmp_path / "small"
    small.mkdir()
    data = before + sparse("s.jpg") + pax([b"23 GNU.sparse.size=999\n"]) + hostile("t.jpg", 0) + after
    kept, skipped = of(small, data)
    assert list(kept) == ["00000/a", "00000/b"]
    assert skipped == {f"00000/{key}": f"not a regular file: '{key}.jpg'" for key in "st"}


def test_compressed_tars(tmp_path):
    data = gzip.compress(tar(*example("a"), *example("b")))
    (tmp_path / "x.tar.gz").write_bytes(data)
    (tmp_path / "y.tar.gz").write_bytes(data[:-30])
    items = read(tmp_path / "*.tar.gz")
    assert [item.id for item in items if isinstance(item, Record)][:2] == ["x.tar.gz/a", "x.tar.gz/b"]
    assert isinstance(items[-1], Skipped) and items[-1].id == "y.tar.gz"
