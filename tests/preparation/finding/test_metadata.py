"""What stands beside pictures: lists of them, text files, JSON."""

import json
import os

import pytest

from ec_dit.preparation.finding import access
from tests.preparation.sources.test_folder import captions, picture, put, read, sorted_out, unread


def test_captions_file(tmp_path):
    for name in ("a.png", "b.png", "sub/c.png", "d.png"):
        put(tmp_path, name)
    (tmp_path / "b.txt").write_text("beside")
    (tmp_path.parent / "outside.png").write_bytes(picture())
    lines = [
        json.dumps({"file": "a.png", "caption": "one"}),
        "",
        json.dumps({"file": "a.png", "caption": "another", "score": 1}),
        json.dumps({"file": "./sub/c.png", "caption": "see"}),
        json.dumps({"file": "../outside.png", "caption": "climbs"}),
        json.dumps({"file": "sub/../../outside.png", "caption": "climbs"}),
        json.dumps({"file": str(tmp_path / "a.png"), "caption": "absolute"}),
        json.dumps({"file": "none.png", "caption": "gone"}),
        "{broken",
        json.dumps(["a.png", "list"]),
        json.dumps({"caption": "no file"}),
        json.dumps({"file": 3, "caption": "x"}),
        json.dumps({"file": "a.png"}),
        json.dumps({"file": "a.png", "caption": 3}),
        json.dumps({"file": "b.png", "score": 2}),
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    kept, skipped = sorted_out(tmp_path)
    texts = {"a.png": "one", "a.png#2": "another", "a.png#3": "absolute", "b.png": "beside", "sub/c.png": "see"}
    assert captions(kept) == texts
    assert {name: dict(record.meta) for name, record in kept.items() if record.meta} == {
        "a.png#2": {"score": 1},
        "b.png": {"score": 2},
    }
    short = {name.removeprefix("captions.jsonl:"): reason.split(":")[0] for name, reason in skipped.items()}
    assert short == {
        "d.png": "no caption",
        "a.png#4": "no caption",
        "a.png#5": "caption is not text",
        **dict.fromkeys(["5", "6"], "path leaves the folder"),
        "8": "listed file is missing or no image",
        "9": "line is no JSON",
        "10": "line is no object",
        **dict.fromkeys(["11", "12"], 'line without "file_name"'),
    }


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_line_of_the_captions_file_ends_at_a_line_feed_alone(tmp_path, ending):
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    texts = {"a.png": "one\u2028two\u0085three\u2029four\x0bfive", "b.png": "six"}
    lines = [f'{{"file": "{name}", "caption": {json.dumps(text, ensure_ascii=False)}}}' for name, text in texts.items()]
    (tmp_path / "captions.jsonl").write_bytes("".join(line + ending for line in lines).encode())
    kept, skipped = sorted_out(tmp_path)
    assert captions(kept) == {"a.png": "one two three four five", "b.png": "six"}
    assert skipped == {}


def test_a_line_that_is_not_utf8_costs_itself_alone(tmp_path, monkeypatch):
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    lines = [
        b'\xef\xbb\xbf{"file": "a.png", "caption": "\xc3\xa9t\xc3\xa9"}',
        b'{"file": "b.png", "caption": "caf\xe9"}',
        b'{"file": "b.png", "caption": "two"}',
        b"\xff\xfe\x00",
    ]
    (tmp_path / "captions.jsonl").write_bytes(b"\n".join(lines))
    kept, skipped = sorted_out(tmp_path)
    assert captions(kept) == {"a.png": "été", "b.png": "two"}
    assert skipped == dict.fromkeys(["captions.jsonl:2", "captions.jsonl:4"], "line is not UTF-8 text")
    (tmp_path / "captions.jsonl").write_bytes(b"\xff" + b"\n".join(lines[2:3]))
    assert sorted_out(tmp_path)[1]["captions.jsonl:1"] == "line is not UTF-8 text"
    monkeypatch.setattr(access, "MAX_TEXT", 51)  # The line is cut within a character.
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "caption": "%sé"}' % ("x" * 20), encoding="utf-8")
    reasons = {reason.split(":")[0] for reason in sorted_out(tmp_path)[1].values()}
    assert reasons == {"line is not UTF-8 text", "no caption"}


def test_metadata_as_hugging_face_writes_it(tmp_path):
    for name in ("a.png", "sub/b.png", "sub/deep/c.png", "sub/d.png", "csv/e.png", "csv/f.png"):
        put(tmp_path, name)
    lines = [{"file_name": "a.png", "text": "top", "n": 1}, {"file_name": "sub/deep/c.png", "text": "from above"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lines = [
        {"file_name": "b.png", "text": "within", "scores": {"x": 2}},
        {"file_name": "d.png", "text": "t", "caption": "c"},
    ]
    (tmp_path / "sub/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "csv/metadata.csv").write_bytes(
        b'\xef\xbb\xbffile_name,text,score\ne.png,"two\nlines, with a comma",0.5\n"f.png",caf\xe9,1\ng.png,gone,\n,none,2\n'
    )
    kept, skipped = sorted_out(tmp_path)
    assert captions(kept) == {
        "a.png": "top",
        "sub/b.png": "within",
        "sub/deep/c.png": "from above",
        "sub/d.png": "c",
        "csv/e.png": "two lines, with a comma",
    }
    assert {name: record.meta for name, record in kept.items()} == {
        "a.png": {"n": 1},
        "sub/b.png": {"scores.x": 2},
        "sub/deep/c.png": {},
        "sub/d.png": {"text": "t"},
        "csv/e.png": {"score": "0.5"},
    }
    assert skipped == {
        "csv/f.png": "no caption: no 'caption'; there is nothing else",
        "csv/metadata.csv:4": "line is not UTF-8 text",
        "csv/metadata.csv:5": "listed file is missing or no image: 'csv/g.png'",
        "csv/metadata.csv:6": 'line without "file_name": it has text, score',
    }
    assert unread(tmp_path) == {}
    both = sorted_out(tmp_path, captions=("caption", "text=2"))[0]["sub/d.png"]
    assert (both.captions, both.weights) == (("c", "t"), (1.0, 2.0))


def test_captions_within_others(tmp_path):
    """In lists, of whatever name, and in the json beside a picture; the facts beside them stay."""
    for name in ("a.png", "b.png", "sub/c.png", "d.png"):
        put(tmp_path, name)
    one = {"captions": {"short": "a dog", "long": ["a red dog", "a red dog sits"]}, "scores": {"aesthetic": 5.5}}
    lines = [{"file_name": "a.png"} | one, {"file_name": "b.png", "captions": {"shrot": "x"}, "text": "y"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "sub/captions.jsonl").write_text(json.dumps({"file": "c.png"} | one))
    (tmp_path / "d.json").write_text(json.dumps(one))
    kept, skipped = sorted_out(tmp_path, captions=("captions.short=2", "captions.long"))
    assert list(kept) == ["a.png", "d.png", "sub/c.png"]
    for record in kept.values():
        assert record.captions == ("a dog", "a red dog", "a red dog sits") and record.weights == (2.0, 0.5, 0.5)
        assert record.meta == {"scores.aesthetic": 5.5}
    assert skipped == {
        "b.png": "no caption: no 'captions.short' or 'captions.long' (did you mean captions.shrot?); there is "
        "captions.shrot, text"
    }


def test_text_files_of_other_kinds(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "a.caption").write_text("from .caption")
    put(tmp_path, "b.png", caption="from .txt")
    (tmp_path / "b.caption").write_text("not this")
    put(tmp_path, "c.jpg")
    (tmp_path / "c.jpg.txt").write_text("after the whole name")
    put(tmp_path, "d.png", caption="one\n\n two\nthree\n")
    kept, _ = sorted_out(tmp_path, caption_lines=True)
    assert {name: record.captions for name, record in kept.items()} == {
        "a.png": ("from .caption",),
        "b.png": ("from .txt",),
        "c.jpg": ("after the whole name",),
        "d.png": ("one", "two", "three"),
    }
    assert captions(sorted_out(tmp_path)[0])["d.png"] == "one two three"
    assert unread(tmp_path) == {".caption": 1}


def test_json_beside_pictures(tmp_path):
    put(tmp_path, "a.png", caption="beside")
    (tmp_path / "a.json").write_text('{"score": 5, "tags": {"rating": "g"}, "tag": ["x"]}')
    put(tmp_path, "b.png")
    (tmp_path / "b.png.json").write_text('{"caption": "its own", "score": 1}')
    put(tmp_path, "c.png")
    (tmp_path / "c.json").write_text('{"score": 2, "status": "failed"}')
    put(tmp_path, "d.png", caption="x")
    (tmp_path / "d.json").write_text("[1, 2]")
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "score": 6}')
    items = {item.id: item for item in read(tmp_path)}
    assert {name: item.meta for name, item in items.items()} == {
        "a.png": {"score": 6, "tags.rating": "g"},
        "b.png": {"score": 1},
        "c.png": {"score": 2, "status": "failed"},
        "d.png": {},
    }
    assert items["b.png"].caption == "its own" and items["a.png"].caption == "beside"
    assert items["c.png"].reason == "no caption: no 'caption'; there is score, status"


def test_a_pipe_in_the_place_of_a_list_is_not_opened(tmp_path):
    put(tmp_path, "a.png", caption="x")
    os.mkfifo(tmp_path / "captions.jsonl")
    kept, skipped = sorted_out(tmp_path)
    assert list(kept) == ["a.png"] and skipped == {"captions.jsonl": "not a regular file"}


def test_texts_and_lists_that_are_something_else(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n"
    for name, data in {"a.txt": pointer, "b.txt": bytes(99), "c.txt": b"<html><body>404", "d.txt": b'{"a": 1}'}.items():
        put(tmp_path, f"{name[0]}.png")
        (tmp_path / name).write_bytes(data)
    (tmp_path / "metadata.jsonl").write_bytes(pointer)
    kept, skipped = sorted_out(tmp_path)
    assert captions(kept) == {"d.png": '{"a": 1}'}
    assert skipped == {
        "a.png": "not a caption: a git-lfs pointer; run git lfs pull where it comes from",
        "b.png": "not a caption: nothing but zeros",
        "c.png": "not a caption: an HTML page",
        "metadata.jsonl": "not a list of pictures: a git-lfs pointer; run git lfs pull where it comes from",
    }
