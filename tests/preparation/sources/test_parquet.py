import os
import subprocess
import sys
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ec_dit.core import errors, paths
from ec_dit.core.errors import UserError
from ec_dit.data.records import Record
from ec_dit.preparation.finding import access
from ec_dit.preparation.source import Shard, Skipped, everything
from ec_dit.preparation.sources.found import parquet
from ec_dit.preparation.sources.found.parquet import ParquetOptions, ParquetSource
from tests import gcs_server
from tests.sets import BadDisk

JPEG = b"\xff\xd8 not decoded here"


def write(path, columns, row_group_size=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size, **options)


def read(path, **options):
    return list(everything(ParquetSource(ParquetOptions(str(path), **options))))


def sorted_out(path, **options):
    items = read(path, **options)
    assert len({item.id for item in items}) == len(items)
    kept = {item.id: item for item in items if isinstance(item, Record)}
    return kept, {item.id: item.reason for item in items if isinstance(item, Skipped)}


def test_bytes_texts_and_facts(tmp_path):
    columns = {
        "image": [JPEG + b"0", JPEG + b"1", None, JPEG + b"3", b"", JPEG],
        "caption": [" A\nred dog", "a sign", "x", None, "x", "\t"],
        "score": [0.5, float("nan"), 1.0, 1.0, 1.0, 1.0],
        "width": pa.array([640, None, 1, 1, 1, 1], pa.int32()),
        "good": [True, False, True, True, True, True],
        "url": ["u", "x" * 1001, "", "", "", ""],
        "when": pa.array([0] * 6, pa.timestamp("s")),
        "embedding": [[0.5] * 4] * 6,
    }
    write(tmp_path / "a.parquet", columns, row_group_size=4)
    kept, skipped = sorted_out(tmp_path)
    assert list(kept) == ["a.parquet#0", "a.parquet#1"]
    one, two = kept.values()
    assert (one.image, one.captions, one.weights, one.flip) == (JPEG + b"0", ("A red dog",), (), True)
    assert one.meta == {"score": 0.5, "width": 640, "good": True, "url": "u"}
    assert two.meta == {"good": False} and not two.flip
    assert skipped == {
        "a.parquet#2": "no image: column 'image' holds nothing",
        "a.parquet#3": "no caption: no 'caption'; there is score, width, good, url",
        "a.parquet#4": "no image: column 'image' holds nothing",
        "a.parquet#5": "empty caption",
    }


def test_row_groups_are_shards(tmp_path):
    for name, count in (("b", 3), ("a", 45), ("sub/c", 1), (".hidden/d", 1)):
        columns = {"image": [JPEG] * count, "caption": [f"{name} {row}" for row in range(count)]}
        write(tmp_path / f"{name}.parquet", columns, row_group_size=20)
    write(tmp_path / "empty.parquet", {"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())})
    source = ParquetSource(ParquetOptions(str(tmp_path)))
    assert source.shards() is source.shards()
    shards = [shard for shard in source.shards() if shard.size]
    assert shards == [
        *(Shard(f"a.parquet:{number}", size) for number, size in enumerate((20, 20, 5))),
        Shard("b.parquet:0", 3),
        Shard("sub/c.parquet:0", 1),
    ]
    assert [(item.id, item.caption) for item in source.records(2)] == [
        (f"a.parquet#{row}", f"a {row}") for row in range(40, 45)
    ]
    (empty,) = [item for item in everything(source) if isinstance(item, Skipped)]
    assert (empty.id, empty.reason, empty.examples) == ("empty.parquet", "empty table", 0)
    assert len(list(everything(source))) == 50
    assert [item.id for item in read(tmp_path / "{b,sub/c}.parquet")][2:] == ["b.parquet#2", "sub/c.parquet#0"]
    assert [item.id for item in read(tmp_path / "sub/c.parquet")] == ["c.parquet#0"]


def test_images_too_large(tmp_path, monkeypatch):
    (tmp_path / "big.jpg").write_bytes(b"x" * 101)
    monkeypatch.setattr(access, "MAX_IMAGE", 100)
    images = [
        {"bytes": b"x" * 100, "path": None},
        {"bytes": b"x" * 101, "path": None},
        {"bytes": None, "path": "big.jpg"},
    ]
    write(tmp_path / "t.parquet", {"image": images, "caption": ["x"] * 3})
    kept, skipped = sorted_out(tmp_path)
    assert list(kept) == ["t.parquet#0"]
    assert [reason.split(":")[0] for reason in skipped.values()] == ["too large"] * 2


def test_damaged_pages_cost_their_rows_alone(tmp_path):
    noise = [JPEG + os.urandom(1000) for _ in range(90)]
    path = tmp_path / "t.parquet"
    write(path, {"image": noise, "caption": ["x"] * 90}, row_group_size=30, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = data.index(noise[30]) - 60  # into the header of the second group's page
    data[start : start + 60] = b"\xff" * 60
    path.write_bytes(data)
    kept, skipped = sorted_out(path)
    assert [record.image for record in kept.values()] == noise[:30] + noise[60:]
    assert list(skipped) == [f"t.parquet#{row}" for row in range(30, 60)]
    assert {reason.split(":")[0] for reason in skipped.values()} == {"damaged file"}


def spoiled(path, kind):
    """A table of one row with something wrong, and the reason it is left out for."""
    columns = {"image": [JPEG], "caption": ["x"]}
    write(path, columns if kind != "column" else {"image": [JPEG], "captoin": ["x"]})
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    if kind == "missing":
        path.unlink()
    elif kind == "twice":
        table = pa.Table.from_arrays(
            [pa.array([JPEG]), pa.array(["x"]), pa.array(["y"])], ["image", "caption", "caption"]
        )
        pq.write_table(table, path)
    elif kind != "column":
        schema = b"\xff" * size + data[-8:]
        cut = {"cut": data[:-10], "empty": b"", "other": b"no table" * 10, "schema": data[: -8 - size] + schema}
        path.write_bytes(cut[kind])
    return {
        "missing": "missing file",
        "empty": "not a parquet table: an empty file",
        "other": "not a parquet table: it begins with b'no tableno table'",
        "column": "missing column: 'caption' (did you mean captoin?); it has image, captoin; choose by",
        "twice": "repeated column: 'caption'",
    }.get(kind, "damaged file: ")


@pytest.mark.parametrize("kind", ["cut", "empty", "other", "schema", "missing", "column", "twice"])
def test_a_file_that_cannot_be_used_costs_itself_alone(tmp_path, kind):
    write(tmp_path / "0.parquet", {"image": [JPEG] * 2, "caption": ["x"] * 2}, row_group_size=1)
    write(tmp_path / "2.parquet", {"image": [JPEG], "caption": ["x"]})
    reason = spoiled(tmp_path / "1.parquet", kind)
    source = ParquetSource(ParquetOptions(str(tmp_path / "{0..2}.parquet")))
    assert source.shards() == [
        Shard("0.parquet:0", 1),
        Shard("0.parquet:1", 1),
        Shard("1.parquet", 1 if kind in ("column", "twice") else None),
        Shard("2.parquet:0", 1),
    ]
    (skipped,) = source.records(2)
    assert isinstance(skipped, Skipped) and not skipped.asked
    assert skipped.id == "1.parquet" and skipped.reason.startswith(reason)
    assert skipped.examples == (
        1 if kind in ("column", "twice") else None
    )  # as its footer says, where that can be read
    kept, left_out = sorted_out(tmp_path / "{0..2}.parquet")
    assert list(kept) == ["0.parquet#0", "0.parquet#1", "2.parquet#0"] and list(left_out) == ["1.parquet"]


def test_no_file_that_can_be_used(tmp_path):
    for name, kind in (("0", "cut"), ("1", "column"), ("2", "column")):
        spoiled(tmp_path / f"{name}.parquet", kind)
    with pytest.raises(
        UserError, match=r"cannot use .*1.parquet: missing column: 'caption' .*; it has image, captoin; choose by"
    ):
        read(tmp_path)
    with pytest.raises(UserError, match=r"cannot use .*0.parquet: damaged file: "):
        read(tmp_path / "0.parquet")


def test_a_fault_of_the_disk_is_no_damage(tmp_path):
    write(tmp_path / "0.parquet", {"image": [JPEG], "caption": ["x"]})
    (tmp_path / "1.parquet").symlink_to("/proc/self/mem")  # whose first page cannot be read
    with pytest.raises(UserError, match=r"cannot read .*1.parquet: .*Input/output error"):
        read(tmp_path / "{0..1}.parquet")


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"parquet: .*none is not there"):
        read(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no .parquet files"):
        read(tmp_path)
    write(tmp_path / "t.parquet", {"image": [JPEG], "text": ["x"]})
    with pytest.raises(UserError, match=r"t.parquet: missing column: 'txt' .*; it has image, text"):
        read(tmp_path, captions=("txt",))
    with pytest.raises(UserError, match=r"missing column: 'img'"):
        read(tmp_path, captions=("text",), image="img")
    with pytest.raises(UserError, match=r"missing column: 'key'"):
        read(tmp_path, captions=("text",), id_column="key")
    with pytest.raises(UserError, match=r"1.parquet: missing file"):
        read(tmp_path / "{1,2}.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    for damaged, kind in ((data[:-10], "damaged file"), (b"", "not a parquet table: an empty file")):
        (tmp_path / "t.parquet").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"cannot use .*t.parquet: {kind}"):
            read(tmp_path, captions=("text",))


def test_without_pyarrow(tmp_path, monkeypatch):
    write(tmp_path / "t.parquet", {"image": [JPEG], "caption": ["x"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        read(tmp_path)


READ = """
import sys
from ec_dit.preparation.source import everything
from ec_dit.preparation.sources.found.parquet import ParquetOptions, ParquetSource
items = everything(ParquetSource(ParquetOptions(sys.argv[1])))
print([(item.id, getattr(item, "image", None), getattr(item, "reason", None)) for item in items])
"""


def test_tables_in_a_bucket(tmp_path):
    columns = {
        "image": [{"bytes": JPEG, "path": None}, {"bytes": None, "path": "p/x.jpg"}, {"bytes": None, "path": "y.jpg"}]
    }
    write(tmp_path / "t.parquet", columns | {"caption": ["x"] * 3}, row_group_size=2)
    with gcs_server.Server() as server:
        server.put("bucket", "set/deep/t.parquet", (tmp_path / "t.parquet").read_bytes(), {})
        server.put("bucket", "set/deep/p/x.jpg", b"of its own", {})
        command = [sys.executable, "-c", READ, "gs://bucket/set"]
        printed = subprocess.check_output(command, env=os.environ | server.environment(), text=True)
    name = "deep/t.parquet"
    assert printed.strip() == str(
        [(f"{name}#0", JPEG, None), (f"{name}#1", b"of its own", None), (f"{name}#2", None, "missing file: 'y.jpg'")]
    )


def test_rows_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    columns = {"image": [os.urandom(1 << 20) for _ in range(64)], "caption": ["x"] * 64}
    write(tmp_path / "t.parquet", columns, use_dictionary=False, write_batch_size=2, data_page_size=1 << 20)
    del columns
    source = ParquetSource(ParquetOptions(str(tmp_path)))
    tracemalloc.start()  # sees what pyarrow reads through Python's file, its own memory is counted below
    held = [pa.total_allocated_bytes() for _ in source.records(0)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(held) == 64 and max(held) < 3 * parquet._ROWS << 20
    assert peak < 24 << 20  # of 64; read ahead, the group is there as a whole


def test_what_is_known_of_a_row_without_an_image_or_a_caption(tmp_path):
    columns = {"image": [None, JPEG], "caption": ["x", None], "status": ["failed", "success"], "size": [1.5, 2.0]}
    write(tmp_path / "t.parquet", columns)
    assert [item.meta for item in read(tmp_path)] == [
        {"status": "failed", "size": 1.5},
        {"status": "success", "size": 2.0},
    ]


def test_a_disk_that_fails_is_no_damage_of_the_table(tmp_path, monkeypatch):
    noise = [JPEG + os.urandom(2000) for _ in range(30)]
    path = tmp_path / "t.parquet"
    write(path, {"image": noise, "caption": ["x"] * 30}, row_group_size=10, compression="none", use_dictionary=False)
    source, bad = ParquetSource(ParquetOptions(str(path))), path.read_bytes().index(noise[15])
    for bad_bytes in (range(bad, bad + 100), range(path.stat().st_size)):  # while looking, too
        monkeypatch.setattr(type(paths.at(path)), "open", lambda path, mode, bad=bad_bytes: BadDisk(path, bad))
        with pytest.raises(UserError) as caught:
            list(source.records(1)) if bad_bytes.start else ParquetSource(ParquetOptions(str(path)))
        told = errors.explain(caught.value)
        assert type(told) is errors.TryAgain
        assert str(told).startswith(f"parquet: cannot read {path}: [Errno 5] Input/output error")
