import io
import json

import numpy as np
import pytest
from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.data.records import Record, Skipped
from ec_dit.data.sources.folder import FolderOptions, FolderSource


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
    source = FolderSource(FolderOptions(str(root), **options))
    return {split: list(source.records(split)) for split in source.splits()}


def everything(root, **options):
    found = [item for items in read(root, **options).values() for item in items]
    kept = {item.id: item for item in found if isinstance(item, Record)}
    return kept, {item.id: item.reason for item in found if isinstance(item, Skipped)}


def test_text_files_beside_images(tmp_path):
    put(tmp_path, "b.png", caption="\ufeff a \n red  dog ")
    put(tmp_path, "sub/deep/a.JPG", picture(form="JPEG"), "dog to the left")
    put(tmp_path, "c.webp", picture(form="WEBP"), "été")
    put(tmp_path, ".hidden/x.png", caption="no")
    put(tmp_path, "._b.png", b"macOS leaves these")
    put(tmp_path, "notes.md", b"no image")
    kept, skipped = everything(tmp_path)
    assert {name: record.caption for name, record in kept.items()} == {
        "b.png": "a red dog",
        "sub/deep/a.JPG": "dog to the left",
        "c.webp": "été",
    }
    assert skipped == {}
    assert kept["b.png"].image == picture()  # As it was.
    assert kept["b.png"].flip and not kept["sub/deep/a.JPG"].flip
    assert not everything(tmp_path, flip=False)[0]["b.png"].flip


def test_captions_file(tmp_path):
    for name in ("a.png", "b.png", "sub/c.png", "d.png"):
        put(tmp_path, name)
    (tmp_path / "b.txt").write_text("beside")
    (tmp_path.parent / "outside.png").write_bytes(picture())
    lines = [
        json.dumps({"file": "a.png", "caption": "one"}),
        "",
        json.dumps({"file": "a.png", "caption": "another", "extra": 1}),
        json.dumps({"file": "./sub/c.png", "caption": "see"}),
        json.dumps({"file": "../outside.png", "caption": "climbs"}),
        json.dumps({"file": "sub/../../outside.png", "caption": "climbs"}),
        json.dumps({"file": str(tmp_path / "a.png"), "caption": "absolute"}),
        json.dumps({"file": "none.png", "caption": "gone"}),
        "{broken",
        json.dumps(["a.png", "list"]),
        json.dumps({"file": "a.png"}),
        json.dumps({"file": "a.png", "caption": 3}),
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    kept, skipped = everything(tmp_path)
    assert {name: record.caption for name, record in kept.items()} == {
        "a.png": "one",
        "a.png#2": "another",
        "b.png": "beside",
        "sub/c.png": "see",
    }
    short = {name.removeprefix("captions.jsonl:"): reason.split(":")[0] for name, reason in skipped.items()}
    broken = 'line is no object with the texts "file" and "caption"'
    assert short == {
        "d.png": "no caption",
        **dict.fromkeys(["5", "6", "7"], "path leaves the folder"),
        "8": "listed file is missing or no image",
        **dict.fromkeys(["9", "10", "11", "12"], broken),
    }


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_line_of_the_captions_file_ends_at_a_line_feed_alone(tmp_path, ending):
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    captions = {"a.png": "one\u2028two\u0085three\u2029four\x0bfive", "b.png": "six"}
    lines = [
        f'{{"file": "{name}", "caption": {json.dumps(text, ensure_ascii=False)}}}' for name, text in captions.items()
    ]
    (tmp_path / "captions.jsonl").write_bytes("".join(line + ending for line in lines).encode())
    kept, skipped = everything(tmp_path)
    assert {name: record.caption for name, record in kept.items()} == {
        "a.png": "one two three four five",
        "b.png": "six",
    }
    assert skipped == {}


def test_text_files_of_any_case(tmp_path):
    put(tmp_path, "05.PNG")
    (tmp_path / "05.TXT").write_text("loud")
    put(tmp_path, "06.png")
    (tmp_path / "06.Txt").write_text("mixed")
    put(tmp_path, "07.png", caption="plain")
    (tmp_path / "07.TXT").write_text("loud")
    if len(list(tmp_path.iterdir())) < 7:
        pytest.skip("this file system does not tell cases apart")
    kept, skipped = everything(tmp_path)
    assert {name: record.caption for name, record in kept.items()} == {
        "05.PNG": "loud",
        "06.png": "mixed",
        "07.png": "plain",
    }
    assert skipped == {}


def test_links_to_folders_are_reported(tmp_path):
    put(tmp_path, "root/a.png", caption="x")
    put(tmp_path, "elsewhere/b.png", caption="x")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "c.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "root" / "c.txt").write_text("a linked file")
    kept, skipped = everything(tmp_path / "root")
    assert list(kept) == ["a.png", "c.png"]
    assert skipped == dict.fromkeys(["linked", "loop"], "link to a folder, which is not followed")


def test_unusable_files_are_skipped_with_the_reason(tmp_path):
    put(tmp_path, "damaged.png", picture()[:300], "x")
    put(tmp_path, "empty.jpg", b"", "x")
    put(tmp_path, "anim.gif", picture(form="GIF"), "x")
    put(tmp_path, "tiny.png", picture(7, width=40), "x")
    put(tmp_path, "huge.png", picture(33), "x")
    put(tmp_path, "blank.png", caption=" \n")
    put(tmp_path, "alone.png")
    put(tmp_path, "latin.png")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    kept, skipped = everything(tmp_path, min_size=8, max_pixels=1024)
    assert kept == {}
    assert {name: reason.split(":")[0] for name, reason in skipped.items()} == {
        "damaged.png": "damaged image",
        "empty.jpg": "not a PNG, JPEG or WebP image",
        "anim.gif": "not a PNG, JPEG or WebP image",
        "tiny.png": "tiny",
        "huge.png": "huge",
        "blank.png": "empty caption",
        "alone.png": "no caption",
        "latin.png": "caption is not UTF-8 text",
    }


def test_large_images_are_shrunk(tmp_path):
    put(tmp_path, "wide.png", picture(40, width=60), "x")
    put(tmp_path, "photo.jpg", picture(64, "JPEG", width=64), "x")
    put(tmp_path, "small.png", picture(16), "x")
    kept, _ = everything(tmp_path, image_size=20)
    sizes = {name: images.decode(record.image).size for name, record in kept.items()}
    assert sizes == {"wide.png": (30, 20), "photo.jpg": (20, 20), "small.png": (16, 16)}
    assert kept["small.png"].image == picture(16)
    assert kept["photo.jpg"].image.startswith(b"\xff\xd8") and kept["wide.png"].image.startswith(b"\x89PNG")


def test_splits_are_stable(tmp_path):
    for number in range(60):
        put(tmp_path, f"{number:02}.png", caption="x")
    before = {split: [item.id for item in items] for split, items in read(tmp_path, validation_share=0.3).items()}
    assert before == {split: sorted(ids) for split, ids in before.items()}
    assert 8 <= len(before["validation"]) <= 28 and sum(map(len, before.values())) == 60
    put(tmp_path, "new.png", caption="x")
    after = {split: [item.id for item in items] for split, items in read(tmp_path, validation_share=0.3).items()}
    assert {split: [name for name in ids if name != "new.png"] for split, ids in after.items()} == before
    assert read(tmp_path, validation_share=0.0)["validation"] == []


def test_names_that_are_not_text(tmp_path):
    name = tmp_path / "caf\udce9.png"  # A Latin-1 byte, as Python reads it from the file system.
    try:
        name.write_bytes(picture())
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    name.with_suffix(".txt").write_text("coffee")
    kept, _ = everything(tmp_path)
    assert list(kept) == ["caf\\xe9.png"]


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist; pass --path=DIR"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no images in .*looked for .png, .jpg"):
        read(tmp_path)
    put(tmp_path, "a.png", caption="x")
    with pytest.raises(UserError, match=r"a.png is not a folder"):
        read(tmp_path / "a.png")
    for options in ({"validation_share": 1.0}, {"validation_share": float("nan")}, {"image_size": 0}, {"min_size": -1}):
        with pytest.raises(UserError, match=rf"folder: {next(iter(options))} is"):
            read(tmp_path, **options)
    (tmp_path / "captions.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot read .*captions.jsonl"):
        read(tmp_path)
