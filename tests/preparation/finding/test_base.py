import collections
import gc
import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.preparation.finding import access, base, listing
from tests import gcs_server

pytestmark = pytest.mark.slow


class Source(base.FoundSource):
    name = "mine"


def record(fields, id_="a", **options):
    return Source(base.FoundOptions(**options))._record(id_, lambda: b"image", fields)


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
        (None, "no caption: no 'caption'; there is nothing else"),
        (math.nan, "no caption: 'caption' is there and holds none"),
        ([], "no caption: 'caption' is there and holds none"),
        ([None], "no caption: 'caption' is there and holds none"),
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


def test_captions_have_limits():
    many = [f"text {number}" for number in range(64)]
    assert record({"caption": many}).captions == tuple(many)
    assert record({"caption": [*many, None, math.nan]}).captions == tuple(many)
    assert record({"caption": [*many, "", b"\n", " \t"]}).captions == tuple(many)
    assert record({"caption": [*many, "x"]}).reason == "too many captions: 65"
    assert record({"caption": many, "txt": "x"}, captions=("caption", "txt")).reason == "too many captions: 65"
    assert record({"caption": ["x"] * 1_500_000}).reason == "too many captions: 1500000"
    assert record({"caption": " x" * 5000}).captions == (("x " * 5000).strip(),)
    for text in ("x" * 10_001, b"x" * 10_001, ["fine", "x" * 10_001]):
        made = record({"caption": text})
        assert (made.reason, made.asked) == ("endless caption: 10001 characters", False)


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


def test_an_endless_name():
    assert record({"caption": "x"}, "n" * 1001).reason == "name of more than 1000 characters"


def test_braces():
    assert list(listing.braces("a")) == ["a"]
    assert list(listing.braces("{8..11}")) == ["8", "9", "10", "11"]
    assert list(listing.braces("{008..011}.tar")) == ["008.tar", "009.tar", "010.tar", "011.tar"]
    assert list(listing.braces("{a,b}{1..2}-{x,}"))[:5] == ["a1-x", "a1-", "a2-x", "a2-", "b1-x"]


def test_files_within_a_folder(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "x.txt").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "out").symlink_to(tmp_path)
    (root / "in.txt").symlink_to(root / "sub" / "x.txt")
    (root / "loop").symlink_to(root / "loop")

    def read(name, limit=5):
        return access.read_file(paths.at(root), name, limit)

    assert read("sub/x.txt") == read("./sub//x.txt") == read("in.txt") == read(f"{root}/sub/x.txt") == b"12345"
    for name, reason in {
        "../secret": "path leaves the folder",
        "sub/../../secret": "path leaves the folder",
        f"{tmp_path}/secret": "absolute path",
        "C:\\\\secret": "absolute path",
        "gs://bucket/x": "a URL and no picture",
        "out/secret": "link leaves the folder",
        "loop": "unreadable",
        "sub": "not a regular file",
        "sub/x.txt/y": "missing file",
        "n\0l": "missing file",
        "": "not a regular file",
        "x" * 5000: "unreadable",
    }.items():
        with pytest.raises(access.Unusable, match=f"^{reason}"):
            read(name)
    with pytest.raises(access.Unusable, match="too large: 5 bytes, at most 4 are read"):
        read("sub/x.txt", 4)


class Reads:
    """Files 0, 1, ... of given sizes; notes which are read, and how many at once."""

    def __init__(self, *sizes, wait=0.01):
        self.sizes, self.wait = sizes, wait
        self.lock, self.running, self.most = threading.Lock(), 0, 0
        self.calls, self.threads = [], set()

    def __call__(self, number, limit):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.calls.append((number, limit))
            self.threads.add(threading.get_ident())
        time.sleep(self.wait)
        with self.lock:
            self.running -= 1
        access.check_size(self.sizes[number], limit)
        if self.sizes[number] < 0:
            raise access.Unusable(f"{number} is bad")
        return f"content {number}"


def results(pairs):
    for item, result in pairs:
        try:
            yield item, result()
        except access.Unusable as problem:
            yield item, str(problem)


def test_files_of_a_bucket_are_read_ahead_in_order():
    reads = Reads(*[1] * 20, -1, *[1] * 20)
    expected = [(number, f"content {number}" if number != 20 else "20 is bad") for number in range(41)]
    assert list(results(access.read_ahead(reads, range(41), remote=True))) == expected
    assert 8 <= reads.most <= 16
    pairs = results(access.read_ahead(reads := Reads(*[1] * 41), range(41), remote=True))
    assert next(pairs) == (0, "content 0")
    assert len(reads.calls) <= 16
    assert [number for number, _ in pairs] == list(range(1, 41))
    assert list(access.read_ahead(reads, [], remote=True)) == []


def test_large_files_wait_for_their_turn():
    share, whole = 16 << 20, 256 << 20
    sizes = [1, share + 1, share, whole + 1, 1]
    reads = Reads(*sizes)
    pairs = list(results(access.read_ahead(reads, range(5), remote=True)))
    assert [text for _, text in pairs] == [
        *(f"content {number}" for number in range(3)),
        "too large: 268,435,457 bytes, at most 268,435,456 are read",
        "content 4",
    ]
    calls = collections.Counter(reads.calls)
    assert calls == {**{(number, share): 1 for number in range(5)}, (1, whole): 1, (3, whole): 1}
    assert list(reads.calls)[-2:] == [(1, whole), (3, whole)]  # One at a time.


def test_files_of_a_disk_are_read_when_they_are_asked_for():
    reads = Reads(*[1] * 5)
    pairs = results(access.read_ahead(reads, iter(range(5)), remote=False))
    for number in range(5):
        assert next(pairs) == (number, f"content {number}")
        assert reads.calls == [(each, access.MAX_IMAGE) for each in range(number + 1)]
    assert reads.threads == {threading.get_ident()}


def test_reading_ahead_ends_with_its_reader():
    before = threading.active_count()
    pairs = access.read_ahead(reads := Reads(*[1] * 500), range(500), remote=True)
    next(pairs)
    pairs.close()
    assert len(reads.calls) <= 17 and threading.active_count() == before

    def network(number, limit):
        if number == 3:
            raise ConnectionError("gone")
        return number

    with pytest.raises(ConnectionError, match="gone"):
        list(results(access.read_ahead(network, range(40), remote=True)))
    gc.collect()
    assert threading.active_count() == before


READ = """
from ec_dit.preparation.source import everything
from ec_dit.preparation.sources.found import coco, folder, parquet
for source in (
    folder.FolderSource(folder.FolderOptions("gs://bucket/folder")),
    coco.CocoSource(coco.CocoOptions("gs://bucket/coco", annotations="gs://bucket/coco.json")),
    parquet.ParquetSource(parquet.ParquetOptions("gs://bucket/table.parquet", images="gs://bucket/table")),
):
    print([(item.image.decode(), item.caption) for item in everything(source)])
"""


def test_every_source_reads_ahead_in_a_bucket(tmp_path):
    names = [f"{number:02}.jpg" for number in range(40)]
    texts = [f"text {number}" for number in range(40)]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"id": number, "image_id": number, "caption": text} for number, text in enumerate(texts)]
    pq.write_table(pa.table({"image": names, "caption": texts}), tmp_path / "t.parquet")
    changed, running, most = threading.Condition(), collections.Counter(), collections.Counter()

    def busy(method, path):
        """Answers for pictures that wait for others to be asked for; counts those under way at once."""
        source = next((each for each in ("folder", "coco", "table") if f"{each}%2F" in path and ".jpg" in path), None)
        if source:
            with changed:
                running[source] += 1
                most[source] = max(most[source], running[source])
                changed.notify_all()
                changed.wait_for(lambda: most[source] >= 8, timeout=2)
                running[source] -= 1

    with gcs_server.Server() as server:
        for name, text in zip(names, texts, strict=True):
            for source in ("folder", "coco", "table"):
                server.put("bucket", f"{source}/{name}", f"{source} {name}".encode(), {})
            server.put("bucket", f"folder/{name}".replace("jpg", "txt"), text.encode(), {})
        server.put("bucket", "coco.json", json.dumps({"images": images, "annotations": annotations}).encode(), {})
        server.put("bucket", "table.parquet", (tmp_path / "t.parquet").read_bytes(), {})
        server.broken = busy
        command = [sys.executable, "-c", READ]
        printed = subprocess.check_output(command, env=os.environ | server.environment(), text=True)
    for source, line in zip(("folder", "coco", "table"), printed.splitlines(), strict=True):
        assert line == str([(f"{source} {name}", text) for name, text in zip(names, texts, strict=True)])
        assert most[source] >= 8


WALK = """
import sys
from ec_dit.core import paths
from ec_dit.preparation.finding import access, base, listing
try:
    print(sorted(listing.walk(paths.at("gs://bucket/set"))))
except OSError as error:
    print(type(error).__name__)
"""


def test_a_folder_of_a_bucket_that_cannot_be_listed_is_no_empty_one():
    def walked(server):
        return subprocess.check_output(
            [sys.executable, "-c", WALK], env=os.environ | server.environment(), text=True
        ).strip()

    with gcs_server.Server() as server:
        for name in ("a", "sub/b", "sub/deep/c", ".hidden/x", "sub/.hidden/x"):
            server.put("bucket", f"set/{name}", b"x", {})
        server.put("bucket", "set/empty/", b"", {})
        assert walked(server) == str(
            [("", ["empty", "sub"], ["a"]), ("empty", [], [""]), ("sub", ["deep"], ["b"]), ("sub/deep", [], ["c"])]
        )
        server.broken = lambda method, path: 403 if "deep" in path else None
        assert walked(server) == "OSError"
