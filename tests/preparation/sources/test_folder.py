import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ec_dit.core import errors, paths
from ec_dit.core.errors import UserError
from ec_dit.data.records import Record
from ec_dit.preparation.finding import access
from ec_dit.preparation.source import Skipped, everything, ranges
from ec_dit.preparation.sources.found import folder
from ec_dit.preparation.sources.found.folder import FolderOptions, FolderSource
from tests import gcs_server
from tests.sets import BadDisk


def picture(side=20, form="PNG", width=None):
    buffer = io.BytesIO()
    noise = np.random.default_rng(side).integers(0, 256, (side, width or side, 3), np.uint8)
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


def put(root, name, data=None, caption=None):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture() if data is None else data)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def read(root, **options):
    return list(everything(FolderSource(FolderOptions(str(root), **options))))


def sorted_out(root, **options):
    """{id: record} of those kept, {id: reason} of those skipped."""
    items = read(root, **options)
    kept = {item.id: item for item in items if isinstance(item, Record)}
    return kept, {item.id: item.reason for item in items if isinstance(item, Skipped)}


def captions(kept):
    return {name: record.caption for name, record in kept.items()}


def test_text_files_beside_images(tmp_path):
    put(tmp_path, "b.png", caption="\ufeff a \n red  dog ")
    put(tmp_path, "sub/deep/a.JPG", picture(form="JPEG"), "dog to the left")
    put(tmp_path, "c.webp", picture(form="WEBP"), "été")
    put(tmp_path, ".hidden/x.png", caption="no")
    put(tmp_path, "._b.png", b"macOS leaves these")
    put(tmp_path, "notes.md", b"no image")
    kept, skipped = sorted_out(tmp_path)
    assert captions(kept) == {"b.png": "a red dog", "sub/deep/a.JPG": "dog to the left", "c.webp": "été"}
    assert skipped == {}
    assert kept["b.png"].image == picture()  # As it was.
    assert kept["b.png"].flip and not kept["sub/deep/a.JPG"].flip
    assert not sorted_out(tmp_path, flip=False)[0]["b.png"].flip


def test_several_captions_of_an_image(tmp_path):
    for name in ("a.png", "b.png"):
        put(tmp_path, name, caption="beside")
    line = {"file": "a.png", "recaption": ["a dog", "two dogs"], "url": "u"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(line))
    kept, skipped = sorted_out(tmp_path, captions=("recaption=0.8", "caption=0.2"))
    assert skipped == {}
    assert (kept["a.png"].captions, kept["a.png"].weights) == (("a dog", "two dogs", "beside"), (0.4, 0.4, 0.2))
    assert (kept["b.png"].captions, kept["b.png"].weights) == (("beside",), ())
    assert kept["a.png"].meta == {"url": "u"}


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    for name in ("a.png", "sub/b.png", "sub/shut/c.png"):
        put(tmp_path, name, caption="x")
    scandir, shut = os.scandir, tmp_path / "sub" / "shut"

    def refuse(path):  # As the system does, but to root.
        if os.fspath(path) == str(shut):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    kept, skipped = sorted_out(tmp_path)
    assert list(kept) == ["a.png", "sub/b.png"]
    assert skipped == {"sub/shut": "unreadable folder: Permission denied"}
    shut = tmp_path
    with pytest.raises(UserError, match=r"folder: cannot read .*: Permission denied"):
        read(tmp_path)


def test_a_disk_that_fails_is_no_fault_of_a_picture(tmp_path, monkeypatch):
    """Nor of a text, a list, what may be a picture, or a folder. That one file may not be read is."""
    for name in ("a.png", "b", "sub/c.png"):
        put(tmp_path, name, caption="x")
    (tmp_path / "d.png").write_bytes(picture())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "d.png", "text": "x"}')
    opens, scandir, bad = type(paths.at(tmp_path)).open, os.scandir, "none"

    def opened(path, mode):
        return BadDisk(path, range(5)) if path.name == bad else opens(path, mode)

    def scanned(path):
        if str(path).endswith(f"/{bad}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return scandir(path)

    monkeypatch.setattr(type(paths.at(tmp_path)), "open", opened)
    monkeypatch.setattr(os, "scandir", scanned)
    assert len(sorted_out(tmp_path)[0]) == 4
    for bad in ("a.png", "a.txt", "b", "metadata.jsonl", "sub"):
        with pytest.raises(UserError) as caught:
            read(tmp_path)
        told = errors.explain(caught.value)
        assert type(told) is errors.TryAgain
        assert re.match(rf"(folder: )?cannot read {tmp_path}/{bad}: .*Input/output error", str(told))

    def refused(path, mode):
        if path.name == "a.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opens(path, mode)

    monkeypatch.setattr(type(paths.at(tmp_path)), "open", refused)
    bad = "none"
    assert sorted_out(tmp_path)[1] == {"a.png": "unreadable: Permission denied"}


def test_text_files_of_any_case(tmp_path):
    put(tmp_path, "05.PNG")
    (tmp_path / "05.TXT").write_text("loud")
    put(tmp_path, "06.png")
    (tmp_path / "06.Txt").write_text("mixed")
    put(tmp_path, "07.png", caption="plain")
    (tmp_path / "07.TXT").write_text("loud")
    if len(list(tmp_path.iterdir())) < 7:
        pytest.skip("this file system does not tell cases apart")
    kept, skipped = sorted_out(tmp_path)
    assert captions(kept) == {"05.PNG": "loud", "06.png": "mixed", "07.png": "plain"}
    assert skipped == {}


def test_links_that_lead_elsewhere_are_reported(tmp_path):
    put(tmp_path, "root/a.png", caption="x")
    put(tmp_path, "elsewhere/b.png", caption="x")
    root = tmp_path / "root"
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "c.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (root / "c.txt").write_text("a linked file")
    (root / "d.png").symlink_to(root / "a.png")
    (root / "d.txt").write_text("a link within")
    put(root, "e.png")
    (root / "e.txt").symlink_to(tmp_path / "elsewhere" / "b.txt")
    (root / "f.png").symlink_to(root / "nothing.png")
    (root / "f.txt").write_text("a link to nothing")
    kept, skipped = sorted_out(root)
    assert captions(kept) == {"a.png": "x", "d.png": "a link within"}
    assert skipped == {
        **dict.fromkeys(["linked", "loop"], "link to a folder, which is not followed"),
        "c.png": "link leaves the folder: 'c.png'",
        "e.png": "link leaves the folder: 'e.txt'",
        "f.png": "missing file: 'f.png'",
    }


def test_unusable_files_are_skipped_with_the_reason(tmp_path, monkeypatch):
    put(tmp_path, "page.jpg", b"\n<!DOCTYPE html><html>403 Forbidden</html>", "x")
    put(tmp_path, "blank.png", caption=" \n")
    put(tmp_path, "alone.png")
    put(tmp_path, "latin.png")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    put(tmp_path, "vast.png", b"\0" * 2000, "x")
    put(tmp_path, "novel.png", caption="word " * 30)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "pipe.txt").write_text("x")
    put(tmp_path, "damaged.png", picture()[:300], "for a later step to refuse")
    monkeypatch.setattr(access, "MAX_IMAGE", 1999)
    monkeypatch.setattr(access, "MAX_TEXT", 149)
    kept, skipped = sorted_out(tmp_path)
    assert list(kept) == ["damaged.png"]
    assert {name: reason.split(":")[0] for name, reason in skipped.items()} == {
        "page.jpg": "not a readable picture",
        "blank.png": "empty caption",
        "alone.png": "no caption",
        "latin.png": "caption is not UTF-8 text",
        "vast.png": "too large",
        "novel.png": "too large",
        "pipe.png": "not a regular file",
    }


def test_splits_are_stable(tmp_path):
    for number in range(60):
        put(tmp_path, f"{number:02}.png", caption="x")
    before = {item.id: item.split for item in read(tmp_path, validation_share=0.3)}
    assert list(before) == sorted(before)
    expected = {name for name in before if int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) / 65536 < 0.3}
    assert {name for name, split in before.items() if split == "validation"} == expected
    assert 8 <= len(expected) <= 28
    put(tmp_path, "new.png", caption="x")
    after = {item.id: item.split for item in read(tmp_path, validation_share=0.3)}
    assert after == before | {"new.png": after["new.png"]}
    assert {item.split for item in read(tmp_path, validation_share=0.0)} == {"train"}


def test_shards_are_stretches_of_the_whole(tmp_path):
    for number in range(7):
        put(tmp_path, f"{number}.png", caption="x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "ranges", lambda size, entries: ranges(size, 3, entries=entries))
        source = FolderSource(FolderOptions(str(tmp_path)))
    assert [shard[:2] for shard in source.shards()] == [("0-3", 3), ("3-6", 3), ("6-7", 1)]
    assert source.shards() is source.shards()
    assert [item.id for item in source.records(2)] == ["6.png"]
    assert list(everything(source)) == read(tmp_path)


def test_names_that_are_not_text(tmp_path):
    name = tmp_path / "caf\udce9.png"  # A Latin-1 byte, as Python reads it from the file system.
    try:
        name.write_bytes(picture())
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    name.with_suffix(".txt").write_text("coffee")
    kept, _ = sorted_out(tmp_path)
    assert list(kept) == ["caf\\xe9.png"]


READ = """
from ec_dit.preparation.source import everything
from ec_dit.preparation.sources.found.folder import FolderOptions, FolderSource
print([(item.id, item.image, item.caption) for item in everything(FolderSource(FolderOptions("gs://bucket/set")))])
"""


def test_a_folder_in_a_bucket():
    with gcs_server.Server() as server:
        for name in ("a.jpg", "sub/b.jpg", ".hidden/c.jpg"):
            server.put("bucket", f"set/{name}", name.encode(), {})
            server.put("bucket", f"set/{name}".replace("jpg", "txt"), b"beside", {})
        server.put("bucket", "set/captions.jsonl", b'{"file": "a.jpg", "caption": "listed"}\n', {})
        command = [sys.executable, "-c", READ]
        printed = subprocess.check_output(command, env=os.environ | server.environment(), text=True)
    assert printed.strip() == str([("a.jpg", b"a.jpg", "listed"), ("sub/b.jpg", b"sub/b.jpg", "beside")])


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist; pass --path=DIR"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no images in .* or its subfolders$"):
        read(tmp_path)
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"no images in .* or its subfolders; there is 1 x .zip"):
        read(tmp_path)
    put(tmp_path, "a.png", caption="x")
    with pytest.raises(UserError, match=r"a.png is not a folder"):
        read(tmp_path / "a.png")
    for share in (1.0, float("nan"), -0.1):
        with pytest.raises(UserError, match=r"folder: validation_share is"):
            read(tmp_path, validation_share=share)
    with pytest.raises(UserError, match=r"folder: captions has 'caption=x'"):
        read(tmp_path, captions=("caption=x",))
    (tmp_path / "captions.jsonl").symlink_to(tmp_path / "captions.jsonl")
    with pytest.raises(UserError, match=r"cannot read .*captions.jsonl"):
        read(tmp_path)


def unread(root):
    return FolderSource(FolderOptions(str(root))).unread()


def test_pictures_of_any_ending(tmp_path):
    names = {
        "a.jfif": "JPEG",
        "b.BMP": "BMP",
        "c.gif": "GIF",
        "d.tiff": "TIFF",
        "e.avif": "AVIF",
        "f": "PNG",
        "g.xyz": "WEBP",
    }
    for name, form in names.items():
        put(tmp_path, name, picture(form=form), f"a {form}")
    for number in range(6):
        put(tmp_path, f"sub/{number}.xyz", b"no picture")
    put(tmp_path, "sub/x.npy", b"\x93NUMPY")
    put(tmp_path, "alone.txt", b"of no picture")
    os.mkfifo(tmp_path / "pipe")
    kept, skipped = sorted_out(tmp_path)
    assert captions(kept) == {name: f"a {form}" for name, form in names.items()}
    assert all(record.image == picture(form=names[name]) for name, record in kept.items())
    assert skipped == {}
    assert unread(tmp_path) == {".xyz": 6, ".npy": 1, ".txt": 1, "file without an ending": 1}


def test_files_that_are_no_pictures_are_named(tmp_path):
    put(tmp_path, "a.jpg", b"", "x")
    put(tmp_path, "b.png", b"version https://git-lfs.github.com/spec/v1\n", "x")
    put(tmp_path, "c.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "x")
    put(tmp_path, "d.jpg", caption="x")
    (tmp_path / "d.json").write_bytes(b"<html>")
    kept, skipped = sorted_out(tmp_path)
    assert kept == {}
    assert skipped == {
        "a.jpg": "not a readable picture: an empty file",
        "b.png": "not a readable picture: a git-lfs pointer; run git lfs pull where it comes from",
        "c.heic": "not a readable picture: a HEIC picture; convert it to JPEG",
        "d.jpg": "damaged json: an HTML page",
    }


def test_links_that_lead_back_lose_nothing(tmp_path):
    put(tmp_path, "root/sub/a.png", caption="x")
    put(tmp_path, "elsewhere/b.png", caption="x")
    (tmp_path / "root/loop").symlink_to(tmp_path / "root")
    (tmp_path / "root/out").symlink_to(tmp_path / "elsewhere")
    items = {item.id: item for item in read(tmp_path / "root")}
    assert {name: item.examples for name, item in items.items() if isinstance(item, Skipped)} == {"loop": 0, "out": 1}
