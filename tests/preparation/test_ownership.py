"""What a preparation removes: what its own record lists, and nothing else."""

import json
import shutil

import pytest
from etils.epath import backend

from ec_dit.core import paths
from ec_dit.core.errors import DamageError, UserError
from ec_dit.data import dataset
from tests import gcs_server, sets
from tests.sets import Breaking, hashes, write

pytestmark = pytest.mark.slow


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


MINE = {"notes.txt": b"mine", "photos/a.jpg": b"precious", ".hidden": b"too", "report.json.bak": b"{}"}


def put(folder, files=MINE):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_what_lies_beside_a_set_stays_when_it_is_replaced(tmp_path, counting):
    out = tmp_path / "set"
    write(counting(), out)
    put(out)
    write(counting(train=3), tmp_path / "fresh")
    write(counting(train=3), out, overwrite=True)
    assert tree(out) == tree(tmp_path / "fresh") | MINE
    assert len(dataset.open(out)["train"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "set"]


def report(**changes):
    files = {"features.json": [3, ["0"]]}
    return json.dumps({"format": 2, "source": "counting", "kept": {"train": 3}, "files": files} | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"tests": 12, "passed": true}', "a report.json that is none of a data set"),
        ("<html>", "a report.json that is none of a data set"),
        ("", "a report.json that is none of a data set"),
        ("[" * 100_000, "a report.json that is none of a data set"),
        ('["notes.txt"]', "a report.json that is none of a data set"),
        (report(files=["notes.txt"]), "a report.json that is none of a data set"),
        (report(files={"../other": [3, []]}), "a report.json that is none of a data set"),
        (report(files={"/etc/passwd": [3, []]}), "a report.json that is none of a data set"),
        (report(files={"photos/a.jpg": [3, []]}), "a report.json that is none of a data set"),
        (report(format="2"), "a report.json that is none of a data set"),
        (None, "holds other files"),
    ],
    ids=map(str, range(11)),
)
def test_a_folder_that_is_not_ours_is_left_alone(tmp_path, counting, text, message):
    put(tmp_path / "set")
    if text is not None:
        put(tmp_path / "set", {"report.json": text.encode()})
    before = tree(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=message):
            write(counting(), tmp_path / "set", overwrite=overwrite)
        assert tree(tmp_path) == before


def test_files_under_names_that_the_new_set_takes_are_to_be_moved_first(tmp_path, counting):
    out = tmp_path / "set"
    write(counting(), out)
    put(out, {"encoding.safetensors": b"mine"})
    before, source = tree(out), counting(train=3)
    with pytest.raises(UserError, match=r"set holds encoding.safetensors, which its report.json does not list, under"):
        write(source, out, overwrite=True)
    assert tree(out) == before and source.read == []


def test_a_set_of_an_older_layout_is_replaced(tmp_path, counting):
    out = tmp_path / "set"
    put(out, MINE | {"report.json": report(format=1, files={"features.json": 3}).encode(), "features.json": b"abc"})
    write(counting(), out, overwrite=True)
    assert tree(out).items() >= MINE.items() and len(dataset.open(out)["train"]) == 23


def test_files_put_beside_a_set_while_it_is_replaced_stay(tmp_path, counting):
    out = tmp_path / "set"
    write(counting(), out)
    with pytest.raises(OSError, match=r"connection lost"):
        write(Breaking(counting(train=13), 1, 3), out, overwrite=True)
    put(out)
    write(counting(train=13), out, overwrite=True)
    assert tree(out).items() >= MINE.items() and len(dataset.open(out)["train"]) == 13


@pytest.mark.parametrize("step", ["removing", "moving"])
def test_killed_while_the_old_set_is_removed(tmp_path, counting, monkeypatch, step):
    """Whatever was moved or removed by then: the new set is whole, and what is not ours comes to it."""
    from ec_dit.preparation import ownership

    out = tmp_path / "set"
    write(counting(), out)
    put(out)

    def killed(*_):
        raise KeyboardInterrupt

    remove = ownership.remove
    monkeypatch.setattr(ownership, "remove", killed)
    if step == "moving":
        foreign = ownership.foreign
        monkeypatch.setattr(
            ownership, "foreign", lambda folder, own: (killed if folder.name == "replaced" else foreign)(folder, own)
        )
    with pytest.raises(KeyboardInterrupt):
        write(counting(train=3), out, overwrite=True)
    assert dataset.open(out).report.kept["train"] == 3
    monkeypatch.undo()
    assert ownership.remove is remove
    with pytest.raises(UserError, match=r"already holds a data set"):
        write(counting(train=5), out)
    assert tree(out).items() >= MINE.items() and dataset.open(out).report.kept["train"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_an_interrupted_preparation_left_is_cleared_without_what_others_put_there(tmp_path, counting):
    left = tmp_path / ".set.incomplete"
    with pytest.raises(OSError, match=r"connection lost"):
        write(Breaking(counting(), 2, 3), tmp_path / "set")
    put(left)
    write(counting(), tmp_path / "set")
    assert tree(left) == MINE
    write(counting(), tmp_path / "unbroken")
    assert hashes(tmp_path / "set") == hashes(tmp_path / "unbroken")


@pytest.mark.parametrize("name", ["plan.json", "refused.json", "units/000000.json", "pieces.json"])
@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"[]", b'{"a": 1}', b"[" * 100_000], ids=range(5))
def test_a_damaged_workplace_says_which_file_and_what_to_do(tmp_path, counting, name, data):
    shards = [*[sets.record("train", i) for i in range(4)]], [sets.Skipped("bad", "damaged image")]
    with pytest.raises(UserError, match=r"1 of 5"):
        write(sets.Listed(*shards), tmp_path / "set")
    (tmp_path / ".set.incomplete" / name).write_bytes(data)
    again = sets.Listed(*shards, *([] if name != "pieces.json" else [[]]))
    what = rf"{name} is damaged: " + ("|made with other settings" if name == "plan.json" else "")
    with pytest.raises(UserError, match=what) as caught:
        write(again, tmp_path / "set", max_skipped_share=0.5)
    assert "emove" in str(caught.value) or "The same command makes that part again" in str(caught.value)


@pytest.mark.parametrize(("name", "readings"), [("000000.json", [0]), ("000000.lines", [0]), ("000001.lines", [1])])
def test_every_bit_noted_of_a_finished_unit_counts(tmp_path, name, readings):
    """Captions among them, which a tokenizer would be trained on. What is damaged is made again."""
    shards = (
        [*(sets.record("train", i) for i in range(4)), sets.Skipped("bad", "damaged image")],
        [sets.record("train", 5), sets.Skipped("worse", "damaged image: caf\u00e9")],
    )
    write(sets.Listed(*shards), tmp_path / "unbroken", max_skipped_share=0.5)
    with pytest.raises(UserError, match=r"2 of 7"):
        write(sets.Listed(*shards), tmp_path / "made")
    (tmp_path / "made").mkdir()
    noted = (tmp_path / ".made.incomplete" / "units" / name).read_bytes()
    seal = noted.rfind(b'"sha256": ')  # a seal of another name is none, and harms nothing
    places = {*range(0, len(noted), 101), noted.find(b"number 3"), noted.find(b"caf")} - {-1, *range(seal, seal + 10)}
    for place in sorted(places):
        shutil.copytree(tmp_path / ".made.incomplete", tmp_path / ".set.incomplete")
        flipped = noted[:place] + bytes([noted[place] ^ 1]) + noted[place + 1 :]
        (tmp_path / ".set.incomplete" / "units" / name).write_bytes(flipped)
        again = sets.Listed(*shards)
        with pytest.raises(DamageError) as caught:
            write(again, tmp_path / "set", max_skipped_share=0.5)
        assert f"{name} is damaged: " in str(caught.value)
        assert str(caught.value).endswith("The same command makes that part again.") and again.read == []
        write(again, tmp_path / "set", max_skipped_share=0.5)
        assert again.read == readings and hashes(tmp_path / "set") == hashes(tmp_path / "unbroken")
        shutil.rmtree(tmp_path / "set")


def test_lines_of_a_finished_unit_that_are_gone_are_made_again(tmp_path):
    shards = [*[sets.record("train", i) for i in range(4)]], [sets.Skipped("bad", "damaged image")]
    with pytest.raises(UserError, match=r"1 of 5"):
        write(sets.Listed(*shards), tmp_path / "set")
    (tmp_path / ".set.incomplete" / "units" / "000001.lines").unlink()
    with pytest.raises(
        UserError, match=r"000001.lines is damaged: it is missing. The same command makes that part again."
    ):
        write(sets.Listed(*shards), tmp_path / "set", max_skipped_share=0.5)
    again = sets.Listed(*shards)
    write(again, tmp_path / "set", max_skipped_share=0.5)
    assert again.read == [1]


@pytest.mark.parametrize("name", ["plan.json", "refused.json", "pieces.json"])
def test_damage_in_what_a_preparation_notes_of_itself(tmp_path, name):
    """It is damage, and not the settings of another one."""
    shards = [*[sets.record("train", i) for i in range(4)]], [sets.Skipped("bad", "damaged image")]
    with pytest.raises(UserError, match=r"1 of 5"):
        write(sets.Listed(*shards), tmp_path / "set")
    path = tmp_path / ".set.incomplete" / name
    changes = {"plan.json": ("listed", "lisued"), "pieces.json": ("list 0", "list 1"), "refused.json": ("0.1", "0.3")}
    path.write_text(path.read_text().replace(*changes[name]))
    again = sets.Listed(*shards, *([] if name != "pieces.json" else [[]]))
    with pytest.raises(DamageError, match=rf"{name} is damaged: its content is not what its sha256 says. Remove "):
        write(again, tmp_path / "set", max_skipped_share=0.5)
    assert again.read == []


@pytest.fixture
def bucket(monkeypatch):
    """A folder in a bucket that a local server keeps."""
    with gcs_server.Server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        backend.fsspec_backend._get_filesystem.cache_clear()
        yield paths.at("gs://bucket/sets/one")
        backend.fsspec_backend._get_filesystem.cache_clear()


def names(folder):
    paths.look_again(folder)
    prefix = str(folder).removeprefix("gs://") + "/"
    return {name.removeprefix(prefix) for name in backend.fsspec_backend.fs(folder).find(str(folder))}


def test_in_a_bucket_only_what_is_ours_is_removed(bucket, counting):
    out, mine = bucket, {"notes.txt", "photos/a.jpg"}
    write(counting(), out)
    made = names(out)

    def put_mine():
        for name in mine:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text("mine")

    put_mine()
    with pytest.raises(OSError, match=r"connection lost"):
        write(Breaking(counting(train=3, validation=10), 1, 1), out, overwrite=True)
    left = {name for name in names(out) if not name.startswith(".incomplete/")}
    assert left - mine == {f"counting-{split}.array_record-00000-of-00002" for split in ("train", "validation")}
    other = out / "other-train.array_record-00000-of-00002"
    other.write_text("mine")
    with pytest.raises(UserError, match=r"one holds other-train.array_record-00000-of-00002, which are not of this"):
        write(counting(train=3, validation=10), out, overwrite=True)
    assert other.read_text() == "mine"
    other.unlink()
    write(counting(train=3, validation=10), out, overwrite=True)
    left = names(out)
    assert left - mine == {*dataset.open(out).report.files, "report.json"} and left > mine
    assert made - left == {f"counting-train.array_record-0000{unit}-of-00003" for unit in range(3)} | {
        "counting-validation.array_record-00002-of-00003"
    }
    assert names(out.parent) == {f"one/{name}" for name in left}  # no lock either
