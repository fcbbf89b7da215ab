import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ec_dit.core.errors import UserError
from ec_dit.data import dataset
from ec_dit.preparation import ownership, workplace
from ec_dit.preparation.counting import UnitCount
from ec_dit.preparation.source import Skipped
from tests import sets
from tests.sets import Breaking, CountingSource, MixedSource, hashes, write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["pictures", "encoded"])
def test_the_bytes_are_the_same_wherever_it_was_interrupted(tmp_path, kind):
    source = CountingSource if kind == "pictures" else MixedSource
    options = {} if kind == "pictures" else {"encoding": sets.plan()}
    sizes = [shard.size for shard in source().shards()]
    count = len(sizes)
    write(source(), tmp_path / "unbroken", **options)
    for shard, after in [(shard, after) for shard, size in enumerate(sizes) for after in (0, size - 1)]:
        out = tmp_path / f"{shard}-{after}"
        broken = Breaking(source(), shard, after)
        with pytest.raises(OSError, match=r"connection lost"):
            write(broken, out, **options)
        assert broken.read == list(range(shard + 1))
        assert not out.exists() and not dataset.is_there(out)
        write(broken, out, **options)
        assert broken.read[shard + 1 :] == list(range(shard, count))  # what was finished is not read again
        assert hashes(out) == hashes(tmp_path / "unbroken")
    assert not list(tmp_path.glob(".*"))


def test_interrupted_many_times(tmp_path, numbers):
    source = CountingSource()
    for shard in range(3):
        with pytest.raises(OSError, match=r"connection lost"):
            write(Breaking(source, shard, 2), tmp_path / "set")
    write(source, tmp_path / "set")
    assert source.read == [0, 0, 1, 1, 2, 2]
    assert hashes(tmp_path / "set") == hashes(numbers.path)


def test_what_does_not_change_the_records_may_change_in_between(tmp_path, counting):
    for reads in ([0, 1, 2, 3], [3]):  # tried again, units with faults are read again: they may be mended
        source = counting(skipped=2)
        with pytest.raises(UserError, match=r"2 of 32 .* more than max_skipped_share=0.05"):
            write(source, tmp_path / "set", max_skipped_share=0.05)
        assert source.read == reads
    source = counting(skipped=2)
    report = write(source, tmp_path / "set", vocab_size=70, max_skipped_share=0.1)
    assert source.read == []  # a larger share takes them as they are
    assert report.vocab_size == 70 and report.kept == {"train": 23, "validation": 7}


@pytest.mark.parametrize(
    ("source", "changed", "difference"),
    [
        ({"width": 13}, {}, "options.width: 12 -> 13"),
        ({}, {"image_size": 6}, "image_size: null -> 6"),
        ({}, {"chosen": sets.Filters(min_size=2)}, "filters.min_size: 1 -> 2"),
        ({}, {"num_shards": 2}, "units: 3 -> 2"),
    ],
)
def test_what_another_plan_left_is_not_thrown_away(tmp_path, counting, source, changed, difference):
    write(counting(), tmp_path / "unbroken")
    with pytest.raises(OSError, match=r"connection lost"):
        write(Breaking(counting(), 2, 5), tmp_path / "set")
    with pytest.raises(UserError) as refused:
        write(counting(**source), tmp_path / "set", **changed)
    assert difference in str(refused.value) and "remove that folder" in str(refused.value)
    again = counting()
    write(again, tmp_path / "set")
    assert again.read == [2] and hashes(tmp_path / "set") == hashes(tmp_path / "unbroken")


def test_encoded_records_of_another_plan_are_not_thrown_away(tmp_path):
    out, encoding = tmp_path / "set", sets.plan()
    write(MixedSource(), tmp_path / "unbroken", encoding=encoding)
    broken = Breaking(MixedSource(), 2, 5)
    with pytest.raises(OSError, match=r"connection lost"):
        write(broken, out, encoding=encoding)
    others = [
        (MixedSource(sets.MixedOptions(seed=1)), encoding, {}, "options.seed: 0 -> 1"),
        (MixedSource(), sets.plan(text_type="int8"), {}, 'encoding.text.type: "bfloat16" -> "int8"'),
        (MixedSource(), encoding, {"chosen": sets.Filters(min_size=3)}, "filters.min_size: 1 -> 3"),
    ]
    for source, plan, options, line in others:
        with pytest.raises(UserError) as caught:
            write(source, out, encoding=plan, **options)
        first, difference, last = str(caught.value).split("\n")
        assert first == f"{tmp_path}/.set.incomplete holds what an interrupted preparation made with other settings:"
        assert difference.strip() == line
        assert last.startswith("Give the same ones to go on with it, or remove that folder")
        assert source.read == []
    write(broken, out, encoding=encoding)
    assert broken.read == [0, 1, 2, 2, 3]
    assert hashes(out) == hashes(tmp_path / "unbroken")


def test_encoding_that_finished_nothing_may_be_started_otherwise(tmp_path):
    with pytest.raises(OSError, match=r"connection lost"):
        write(Breaking(MixedSource(), 0, 5), tmp_path / "set", encoding=sets.plan())
    assert names(tmp_path) == []  # nothing worth keeping
    write(MixedSource(), tmp_path / "set", encoding=sets.plan(text_type="int8"))
    assert dataset.open(tmp_path / "set").encoding.facts["text"]["type"] == "int8"


def test_a_workplace_keeps_what_units_are_told(tmp_path):
    plan = {"a": 1}
    lines = ["one", "", "two \u2028 \x85 \x0c \u00e9"]
    with contextlib.suppress(KeyError), workplace.opened(tmp_path / "set", plan, overwrite=False) as place:
        assert place.units.finished() == set()
        scratch = place.scratch("data")
        scratch.write_text("half")
        place.put(scratch)
        place.put_bytes("small", b"bytes")
        counts = UnitCount()
        counts.leave_out(Skipped("a", "b"))
        place.finish(3, {"files": {"\u00e9": {"records": 1}}}, counts.facts(), lines)
        place.finish(12, {"files": {}}, UnitCount().facts(), [])
        raise KeyError
    assert not (tmp_path / "set").exists()
    with workplace.opened(tmp_path / "set", plan, overwrite=False) as place:
        assert place.units.finished() == {3, 12}
        assert place.units.facts(3) == {"files": {"\u00e9": {"records": 1}}, "counts": counts.facts()}
        assert place.units.facts(12) == {"files": {}, "counts": UnitCount().facts()}
        assert place.units.lines(3) == lines and place.units.lines(12) == []
        place.units.discard(3)
        assert place.units.finished() == {12}
        assert not place.scratch("data").exists()
    assert {path.name: path.read_text() for path in (tmp_path / "set").iterdir()} == {"data": "half", "small": "bytes"}
    assert names(tmp_path) == ["set"]


def test_taken_folders(tmp_path, counting):
    out = tmp_path / "set"
    out.mkdir()
    write(counting(), out)  # An empty folder is as good as none.
    before = hashes(out)
    source = counting(train=3)
    with pytest.raises(UserError, match=r"already holds a data set"):
        write(source, out)
    assert hashes(out) == before and source.read == []
    write(counting(train=3), out, overwrite=True)
    assert len(dataset.open(out)["train"]) == 3

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds other files"):
        write(counting(), tmp_path / "photos", overwrite=True)
    with pytest.raises(UserError, match=r"is a file"):
        write(counting(), tmp_path / "photos" / "mine.txt", overwrite=True)
    assert (tmp_path / "photos" / "mine.txt").read_text() == "precious"
    assert names(tmp_path) == ["photos", "set"]


def test_the_old_set_stays_until_the_new_one_is_whole(tmp_path, counting):
    out = tmp_path / "set"
    write(counting(), out)
    before = hashes(out)
    with pytest.raises(OSError, match=r"connection lost"):
        write(Breaking(counting(train=13), 1, 3), out, overwrite=True)
    assert hashes(out) == before
    source = counting(train=13)
    write(source, out, overwrite=True)
    assert source.read == [1] and len(dataset.open(out)["train"]) == 13


def test_a_failed_replacement_keeps_the_old_set(tmp_path, counting, monkeypatch):
    out = tmp_path / "set"
    write(counting(), out)
    before, rename = hashes(out), Path.rename

    def failing(path, target):
        if path.name == "set" and Path(target) == out:
            raise OSError("disk gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match=r"disk gone"):
        write(counting(train=3), out, overwrite=True)
    assert hashes(out) == before
    monkeypatch.undo()
    source = counting(train=3)
    write(source, out, overwrite=True)
    assert source.read == [] and len(dataset.open(out)["train"]) == 3 and names(tmp_path) == ["set"]


@pytest.mark.parametrize("empty_folder", [False, True])
def test_killed_between_the_renames_the_old_set_comes_back(tmp_path, counting, empty_folder):
    out, left = tmp_path / "set", tmp_path / ".set.incomplete"
    write(counting(), out)
    before = hashes(out)

    def interrupt():
        left.mkdir()
        out.rename(left / "replaced")
        (left / "set").mkdir()
        (left / "set" / "report.json").write_text("{}")
        (left / "plan.json").write_text("{}")
        if empty_folder:
            out.mkdir()

    interrupt()
    with pytest.raises(UserError, match=r"already holds a data set"):
        write(counting(train=3), out)
    assert hashes(out) == before and names(tmp_path) == ["set"]
    interrupt()
    write(counting(train=3), out, overwrite=True)
    assert len(dataset.open(out)["train"]) == 3 and names(tmp_path) == ["set"]


@pytest.mark.parametrize("kind", ["pictures", "encoded"])
def test_killed_after_the_renames_the_new_set_stays(tmp_path, monkeypatch, kind):
    source, options = CountingSource, {}
    if kind == "encoded":
        source, options = MixedSource, {"encoding": sets.plan()}
    out = tmp_path / "set"
    write(CountingSource(), out)

    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(workplace, "_remove", killed)
    monkeypatch.setattr(
        workplace.shutil, "rmtree", lambda *_, **__: None
    )  # nor does a killed process clean up after itself
    with pytest.raises(KeyboardInterrupt):
        write(source(), out, overwrite=True, **options)
    monkeypatch.undo()
    assert names(tmp_path) == [".set.incomplete", "set"]
    after, again = hashes(out), source()
    write(again, out, **options)
    assert again.read == []  # it is there
    assert hashes(out) == after and names(tmp_path) == ["set"]  # what was left is cleared

    again = source()
    write(again, out, overwrite=True, **options)
    assert again.read == list(range(len(again.shards())))
    assert hashes(out) == after and names(tmp_path) == ["set"]


def test_of_two_preparations_the_second_waits_and_finds_the_set_made(tmp_path):
    out, said, reading, go_on = tmp_path / "set", [], threading.Event(), threading.Event()

    class Slow(CountingSource):
        def records(self, shard):
            reading.set()
            assert go_on.wait(60)
            yield from super().records(shard)

    first, second = Slow(), CountingSource()

    def say(line):
        said.append(line)
        go_on.set()

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(write, first, out)
        assert reading.wait(60)
        found = write(second, out, say=say)
        assert found == made.result()
    assert second.read == [] and first.read == [0, 1, 2] and names(tmp_path) == ["set"]
    (line,) = said
    assert line.startswith(f"the data set {out} is in use by process {os.getpid()} on ") and "waiting" in line


def test_a_second_preparation_of_something_else_is_refused_when_the_first_is_done(tmp_path, counting):
    out, reading, go_on = tmp_path / "set", threading.Event(), threading.Event()

    class Slow(CountingSource):
        def records(self, shard):
            reading.set()
            assert go_on.wait(60)
            yield from super().records(shard)

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(write, Slow(), out)
        assert reading.wait(60)
        with pytest.raises(UserError, match=r"already holds a data set"):
            write(counting(train=3), out, say=lambda line: go_on.set())
        assert made.result().kept["train"] == 23


def test_a_set_that_was_finished_just_before_is_found_made(tmp_path, counting):
    """As where another run ends between the look of this one and its turn."""
    first, second, third = CountingSource(), CountingSource(), CountingSource()
    report = write(first, tmp_path / "set")
    before = hashes(tmp_path / "set")
    assert write(second, tmp_path / "set") == report
    assert second.read == [] and hashes(tmp_path / "set") == before and names(tmp_path) == ["set"]
    with pytest.raises(ownership.TakenError, match=r"already holds a data set"):
        write(counting(train=3), tmp_path / "set")
    write(third, tmp_path / "set", overwrite=True)  # which asks for just that
    assert third.read == [0, 1, 2] and hashes(tmp_path / "set") == before


def test_whether_there_is_nothing_to_do_the_first_process_says(tmp_path, monkeypatch):
    """The others may see the folder as it was before, or as it is already."""
    asked = []
    monkeypatch.setattr(workplace.processes, "is_first", lambda: False)
    monkeypatch.setattr(workplace.processes, "everywhere", lambda holds: asked.append(holds) or True)
    with workplace.opened(tmp_path / "set", {"a": 1}, overwrite=False, mark="m") as place:
        assert place is None
    assert asked == [True] and names(tmp_path) == []


@pytest.mark.parametrize("target", ["a set", "an empty folder", "nothing"])
def test_a_link_to_the_place_is_followed(tmp_path, counting, target):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.parent.mkdir()
    if target == "a set":
        write(counting(), real)
        (real / "notes.txt").write_text("mine")
    elif target == "an empty folder":
        real.mkdir()
    link.symlink_to(real)
    with pytest.raises(OSError, match=r"connection lost"):
        write(Breaking(counting(train=13), 1, 3), link, overwrite=True)
    source = counting(train=13)
    write(source, link, overwrite=True)
    assert source.read == [1] and len(dataset.open(link)["train"]) == 13
    assert link.is_symlink() and not real.is_symlink() and names(tmp_path) == ["disk", "link"]
    assert names(real.parent) == ["real"]
    if target == "a set":
        assert (real / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match=r"disk/real already holds a data set"):
        write(counting(train=3), link)


def test_a_mount_point_is_refused_before_anything_is_made(tmp_path, counting):
    (tmp_path / "link").symlink_to("/proc")  # mounted on every Linux
    source = counting()
    with pytest.raises(UserError, match=r"^/proc is where a disk is mounted.*name a folder in it, such as /proc/data"):
        ownership.check_free(tmp_path / "link", overwrite=True)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"is where a disk is mounted"):
            write(source, "/proc", overwrite=overwrite)
    assert source.read == []


def test_folders_of_the_same_disk_that_are_mounted_are_seen(tmp_path, monkeypatch):
    line = "42 27 254:0 /srv/a {} rw,relatime shared:1 - ext4 /dev/vda rw\n"
    place = tmp_path / "my data\\1"
    place.mkdir()
    read = Path.read_text
    for mounted, refused in ((place, True), (tmp_path, False)):
        escaped = str(mounted).replace("\\", "\\134").replace(" ", "\\040")

        def mounts(path, *args, escaped=escaped, **options):
            return line.format(escaped) if str(path) == "/proc/self/mountinfo" else read(path, *args, **options)

        monkeypatch.setattr(Path, "read_text", mounts)
        with pytest.raises(UserError, match="mounted") if refused else contextlib.nullcontext():
            ownership.check_free(place, overwrite=False)


def test_leftovers_are_cleared_and_what_is_not_ours_stays(tmp_path, counting):
    stale = tmp_path / ".set.incomplete" / "build"
    stale.mkdir(parents=True)
    (stale / "half").write_text("written")
    with pytest.raises(UserError, match=r".set.incomplete holds build, which no preparation left there; move that"):
        write(counting(), tmp_path / "set")
    assert (stale / "half").read_text() == "written"
    (tmp_path / ".set.incomplete" / "plan.json").write_text("{}")  # as if it had been put beside what we left
    write(counting(), tmp_path / "set")
    assert (stale / "half").read_text() == "written" and names(tmp_path / ".set.incomplete") == ["build"]


def test_a_folder_that_cannot_be_written_beside(tmp_path, counting):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write beside .*file/set: "):
        write(counting(), tmp_path / "file" / "set")
