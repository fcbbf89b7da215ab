"""Which files of a tar are one example."""

import json
import tracemalloc

from ec_dit.data.records import Record
from ec_dit.preparation.source import Skipped
from tests.preparation.sources.test_webdataset import JPEG, of, read, tar

HTML = b"<!doctype html><title>404</title>"


def parts(*names):
    """A tar of files, with bytes that go with their endings."""
    content = {"jpg": JPEG, "png": JPEG, "json": b'{"score": 1}'}
    return tar(*((name, content.get(name.rpartition(".")[2], name.encode())) for name in names))


def short(skipped):
    return {name.removeprefix("00000/"): reason for name, reason in skipped.items()}


def test_keys_that_hold_dots(tmp_path):
    names = [f"2024.{month:02}.{end}" for month in range(1, 4) for end in ("jpg", "json", "txt")]
    kept, skipped = of(tmp_path, parts(*names, "a/v1.0/x.y.z.txt", "a/v1.0/x.y.z.jpg"))
    assert list(kept) == ["00000/2024.01", "00000/2024.02", "00000/2024.03", "00000/a/v1.0/x.y.z"]
    assert skipped == {}
    assert kept["00000/2024.02"].caption == "2024.02.txt" and kept["00000/2024.02"].meta == {"score": 1}


def test_keys_with_and_without_dots_side_by_side(tmp_path):
    names = ("0001.jpg", "0001.txt", "2024.05.jpg", "2024.05.txt", "2024.jpg", "2024.txt", "3.jpg", "3.txt")
    kept, skipped = of(tmp_path, parts(*names))
    assert set(kept) == {"00000/0001", "00000/2024.05", "00000/2024", "00000/3"} and skipped == {}
    assert kept["00000/2024"].caption == "2024.txt"


def test_parts_of_an_example_are_no_examples(tmp_path):
    names = (
        "0001.depth.png",
        "0001.jpg",
        "0001.meta.json",
        "0001.seg.png",
        "0001.txt",
        "0002.jpg",
        "0002.seg.png",
        "0002.txt",
    )
    kept, skipped = of(tmp_path, parts(*names))
    assert {name: record.captions for name, record in kept.items()} == {
        "00000/0001": ("0001.txt",),
        "00000/0002": ("0002.txt",),
    }
    assert skipped == {"00000.tar (parts)": "parts passed over: 2 x .seg.png, 1 x .depth.png, 1 x .meta.json"}
    (remark,) = [item for item in read(tmp_path) if not isinstance(item, Record)]
    assert remark.examples == 0


def test_parts_that_the_user_names(tmp_path):
    data = parts(
        "0001.image.png", "0001.long.txt", "0001.short.txt", "0002.image.png", "0002.long.txt", "0002.short.txt"
    )
    kept, skipped = of(tmp_path, data, image="image.png", captions=("long.txt=3", "short.txt"))
    assert {name: (record.captions, record.weights) for name, record in kept.items()} == {
        f"00000/{key}": ((f"{key}.long.txt", f"{key}.short.txt"), (3.0, 1.0)) for key in ("0001", "0002")
    }
    assert skipped == {}
    kept, skipped = of(tmp_path, data)
    assert kept == {}
    assert short(skipped)["0001.image"] == (
        "no caption: the example has png; if its key is '0001', name its parts: --captions=... and --option=image=image.png"
    )
    assert short(skipped)["0001.long"] == "no image: the example has txt"


def test_captions_with_an_ending_of_their_own(tmp_path):
    kept, skipped = of(tmp_path, parts("a.jpg", "a.caption", "b.c.jpg", "b.c.CAPTION"), captions=("caption",))
    assert {name: record.caption for name, record in kept.items()} == {
        "00000/a": "a.caption",
        "00000/b.c": "b.c.CAPTION",
    }
    assert skipped == {}
    kept, skipped = of(tmp_path, parts("a.jpg", "a.caption"))
    assert kept == {} and skipped["00000/a"].startswith("no caption: no 'txt'")
    assert skipped["00000.tar (parts)"] == "parts passed over: 1 x .caption"


def test_captions_by_line(tmp_path):
    data = tar(("a.jpg", JPEG), ("a.txt", "one\n\n two \r\nthré\u2028e\n".encode()))
    assert of(tmp_path, data, caption_lines=True)[0]["00000/a"].captions == ("one", "two", "thré e")
    assert of(tmp_path, data)[0]["00000/a"].captions == ("one two thré e",)


def test_pictures_are_known_by_their_content(tmp_path):
    data = tar(
        *(("a.img", JPEG), ("a.txt", b"x"), ("2024.05.img", JPEG * 100), ("2024.05.txt", b"y")),
        *(("plain", JPEG), ("b.npy", b"\x93NUMPY"), ("b.txt", b"z"), ("c.jfif", JPEG), ("c.txt", b"w")),
    )
    kept, skipped = of(tmp_path, data)
    assert {name: (len(record.image), record.caption) for name, record in kept.items()} == {
        "00000/a": (len(JPEG), "x"),
        "00000/2024.05": (100 * len(JPEG), "y"),
        "00000/c": (len(JPEG), "w"),
    }
    assert short(skipped) == {
        "plain": "no caption: no 'txt'; there is nothing else",
        "b": "no image: the example has txt, .npy",
        "00000.tar (parts)": "parts passed over: 1 x .npy",
    }


def test_pictures_that_are_something_else(tmp_path):
    kept, skipped = of(tmp_path, tar(("a.jpg", HTML), ("a.txt", b"x"), ("b.jpg", b""), ("b.txt", b"x")))
    assert kept == {}
    assert short(skipped) == {
        "a": "not a readable picture: an HTML page",
        "b": "not a readable picture: an empty file",
    }


def test_nested_fields_of_json(tmp_path):
    fields = {"captions": {"short": "a", "long": ["b", "c"]}, "scores": {"aesthetic": 5.5, "deep": {"er": "x"}}}
    data = tar(("a.jpg", JPEG), ("a.json", json.dumps(fields).encode()))
    (record,) = of(tmp_path, data, captions=("captions.short=2", "captions.long"))[0].values()
    assert (record.captions, record.weights) == (("a", "b", "c"), (2.0, 0.5, 0.5))
    assert record.meta == {"scores.aesthetic": 5.5, "scores.deep.er": "x"}
    reason = of(tmp_path, data, captions=("caption.short",))[1]["00000/a"]
    assert reason == (
        "no caption: no 'caption.short' (did you mean captions.short?); there is captions.short, captions.long, "
        "scores.aesthetic, scores.deep.er"
    )


def test_many_keys_that_begin_alike_are_not_held(tmp_path):
    data = tar(*((f"2024.{number}.{end}", bytes(1 << 18)) for number in range(200) for end in ("jpg", "cls")))
    (tmp_path / "0.tar").write_bytes(data)
    tracemalloc.start()
    items = read(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(items) == 201 and all(item.reason.startswith("no caption: the example has jpg") for item in items[:-1])
    assert items[-1].reason == "parts passed over: 200 x .cls"
    assert peak < 8 << 20


def test_keys_of_which_nothing_is_known_are_lost_examples(tmp_path):
    """Once per key, dots and folders in it or not, and whatever the order of its files."""
    names = ("0001.cls", "0001.npy", "a/0002.npy", "a/0002.cls", "2024.05.npy", "2024.05.cls", "2024.06.cls")
    kept, skipped = of(tmp_path, parts(*names, "2024.06.npy", "good.cls", "good.jpg", "good.txt"))
    assert list(kept) == ["00000/good"]
    assert skipped == {
        "00000/0001": "not recognised: the example has .cls, .npy",
        "00000/a/0002": "not recognised: the example has .npy, .cls",
        "00000/2024.05": "not recognised: the example has .npy, .cls",
        "00000/2024.06": "not recognised: the example has .cls, .npy",
        "00000.tar (parts)": "parts passed over: 1 x .cls",
    }
    assert [item.examples for item in read(tmp_path) if isinstance(item, Skipped)] == [1, 1, 1, 1, 0]


def test_unknown_parts_of_an_example_are_lost_with_no_other(tmp_path):
    """They come before it, as names are sorted, and after it; some of their names hold dots."""
    names = "1.a.npy 1.cls 1.jpg 1.txt 1.u.npy 2024.05.A.cls 2024.05.A.npy 2024.05.cls 2024.05.jpg 2024.05.txt 2024.05.z.npy"
    names += " 2024.V.cls 2024.V.jpg 2024.V.npy 2024.V.txt 2024.W.cls 2024.W.jpg 2024.W.txt 3.npy 3.seg.npy"
    kept, skipped = of(tmp_path, parts(*names.split()))
    assert list(kept) == ["00000/1", "00000/2024.05", "00000/2024.V", "00000/2024.W"]
    assert skipped == {
        "00000/3": "not recognised: the example has .npy, .npy",
        "00000.tar (parts)": "parts passed over: 5 x .cls, 5 x .npy",
    }


def test_a_file_of_its_own_kind_is_no_example(tmp_path):
    """What belongs to the tar as a whole: it is told of, and nothing is lost with it. Several of a kind are examples."""
    good = ("a.jpg", "a.txt", ".DS_Store", ".hidden.npy", "b.jpg", "b.txt")
    around = ("LICENSE", "README", "README.md", "SHA256SUMS", "meta/index.tsv", "x.tar.sha256")
    kept, skipped = of(tmp_path, parts(*around, *good))
    assert list(kept) == ["00000/a", "00000/b"]
    told = "parts passed over: 3 x file without an ending, 1 x .md, 1 x .tsv, 1 x .sha256"
    assert skipped == {"00000.tar (parts)": told}
    kept, skipped = of(tmp_path, parts("README.md", *good, "1.npy", "2.npy", "3.npy"))
    assert list(kept) == ["00000/a", "00000/b"]
    assert skipped == {
        **{f"00000/{number}": "not recognised: the example has .npy" for number in (1, 2, 3)},
        "00000.tar (parts)": "parts passed over: 1 x .md",
    }


def test_many_unknown_keys_that_begin_alike(tmp_path):
    names = [f"2024.{number}.{end}" for number in range(300) for end in ("cls", "npy")]
    kept, skipped = of(tmp_path, parts(*names, "2024.x.jpg", "2024.x.txt"))
    assert list(kept) == ["00000/2024.x"]
    assert skipped == {f"00000/2024.{number}": "not recognised: the example has .cls, .npy" for number in range(300)}
