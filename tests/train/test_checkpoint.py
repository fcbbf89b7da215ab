"""Checkpoints: what is kept, what is refused."""

import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ec_dit.core import processes
from ec_dit.core.errors import DamageError, TryAgain, UserError
from ec_dit.core.tree import is_key
from ec_dit.train import checkpoint_files, checkpoint_folder
from ec_dit.train.checkpoint import AbsentError, Checkpointer
from ec_dit.train.state import TrainState


def state(value, width=2, **more):
    params = {"w": jnp.full((4, width), value, jnp.float32), **more}
    ema = {name: leaf + 100 for name, leaf in params.items()}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))  # its state has empty parts, and parts with names
    return TrainState(jnp.int32(value), jax.random.key(int(value)), params, ema, tx.init(params))


def shapes(tree):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), tree)


def test_round_trip_keeps_the_newest(tmp_path):
    checkpoints = Checkpointer(str(tmp_path / "c"), keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"name": f"x{step}"})
    checkpoints.close()
    again = Checkpointer(str(tmp_path / "c"), read_only=True)
    assert again.latest() == 3
    restored = again.restore(2, shapes(state(0)))
    for got, saved in zip(jax.tree.leaves(restored), jax.tree.leaves(state(2)), strict=True):
        assert got.dtype == saved.dtype
        got, saved = (
            jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a for a in (got, saved)
        )
        np.testing.assert_array_equal(got, saved)
    assert again.meta(2)["name"] == "x2"
    with pytest.raises(UserError, match=r"no checkpoint .*; there are \[2, 3\]"):
        again.restore(1, shapes(state(0)))
    again.close()


def test_another_model_is_refused(tmp_path):
    checkpoints = Checkpointer(str(tmp_path / "c"))
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    with pytest.raises(UserError, match=r"4 arrays differ, first ema/w: \(4, 2\) saved, \(4, 3\) wanted"):
        checkpoints.restore(1, shapes(state(0, width=3)))
    with pytest.raises(UserError, match=r"first ema/extra: missing saved, \(4, 3\) wanted"):
        checkpoints.restore(1, shapes(state(0, extra=jnp.zeros((4, 3)))))
    checkpoints.close()


def test_no_folder_to_read_from(tmp_path):
    with pytest.raises(UserError, match="train there first"):
        Checkpointer(str(tmp_path / "nothing"), read_only=True)


def test_a_part_of_the_state_is_read_alone(tmp_path):
    """Sampling needs no optimizer: its arrays are not even looked for."""
    checkpoints = Checkpointer(str(tmp_path / "c"))
    checkpoints.save(1, state(1), {})
    checkpoints.close()
    again = Checkpointer(str(tmp_path / "c"), read_only=True)
    restored = again.restore(1, shapes(state(0)), only=("ema",))
    np.testing.assert_array_equal(restored.ema["w"], np.full((4, 2), 101))
    assert restored._replace(ema=None) == (None,) * 5
    again.close()


FILES = {  # of a checkpoint; Orbax draws the names in d/
    "record": "meta/metadata",
    "list of arrays": "state/_METADATA",
    "shardings": "state/_sharding",
    "manifest": "state/manifest.ocdbt",
    "array metadata": "state/array_metadatas/process_0",
    "data": "state/d/*",
    "first data": "state/ocdbt.process_0/d/*",
    "first manifest": "state/ocdbt.process_0/manifest.ocdbt",
    "step metadata": "_CHECKPOINT_METADATA",
    "commit mark": "commit_success.txt",
    "list of files": "digests.json",
}
FAULTS = {
    "gone": None,
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "low bit": lambda data: _flipped(data, 0),
    "middle bit": lambda data: _flipped(data, 4 * len(data)),
    "last bit": lambda data: _flipped(data, 8 * len(data) - 1),
    "foreign JSON": lambda data: b'{"a": [1, 2]}',
    "list": lambda data: b"[]",
    "deep": lambda data: b"[" * 100_000,
    "wrong types": lambda data: data.replace(b"{", b"[", 1).replace(b"1", b'"1"'),
}
HARMLESS = {("list of files", "gone")}  # checkpoints of older versions have none


def _flipped(data, bit):
    data = bytearray(data)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def words(tree):
    return [np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in jax.tree.leaves(tree)]


def newest(checkpoints, say=print):
    return checkpoints.newest(lambda step: checkpoints.restore(step, shapes(state(0))), say)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with checkpoints 1 and 2, as it was left."""
    folder = tmp_path_factory.mktemp("two") / "c"
    checkpoints = Checkpointer(str(folder), asynchronous=False)
    for step in (1, 2):
        checkpoints.save(step, state(step), {"name": f"x{step}"})
    checkpoints.close()
    return folder


@pytest.mark.parametrize("file", FILES)
def test_every_damage_of_every_file_is_found_or_harmless(two, tmp_path, capfd, file):
    """... and the step before serves: to read alone, and to go on."""
    for fault, change in FAULTS.items():
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(two, tmp_path / "c")
        paths = list((tmp_path / "c" / "2").glob(FILES[file]))
        assert paths
        as_it_was = change is not None  # binary files may hold nothing that has a type
        for path in paths:
            data = path.read_bytes()
            path.unlink()
            if change is not None:
                path.write_bytes(change(data))
                as_it_was &= change(data) == data
        for read_only in (True, False) if fault == "gone" else (True,):
            checkpoints = Checkpointer(str(tmp_path / "c"), read_only=read_only)
            said = []
            restored, step = newest(checkpoints, said.append)
            checkpoints.close()
            assert all((a == b).all() for a, b in zip(words(restored), words(state(step)), strict=True)), (fault, step)
            if step == 2:
                assert (file, fault) in HARMLESS or (fault == "wrong types" and as_it_was)
                assert not said
                break
            (line,) = said
            assert line.startswith(f"checkpoint {tmp_path / 'c' / '2'} is damaged: "), line
            assert line.endswith("The checkpoint before it is used: 1."), line
            assert (tmp_path / "c" / "2").exists() == read_only
        if fault == "gone" and step == 1:
            assert "It is kept as 2.damaged." in line
            assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "2.damaged"]
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_flipped_bit_of_any_file_is_found(two, tmp_path):
    """Of those that nothing reads, too."""
    shutil.copytree(two / "2", tmp_path / "c" / "2")
    checkpoints = Checkpointer(str(tmp_path / "c"), read_only=True)
    rng = np.random.default_rng(0)
    files = sorted(path for path in (tmp_path / "c" / "2").rglob("*") if path.is_file())
    assert len(files) > 12
    for path in files:
        data = path.read_bytes()
        for bit in rng.integers(8 * len(data), size=8):
            path.write_bytes(_flipped(data, int(bit)))
            with pytest.raises(DamageError, match=rf"checkpoint {tmp_path / 'c' / '2'}.* is damaged: "):
                checkpoints.restore(2, shapes(state(0)))
        path.write_bytes(data)
    checkpoints.restore(2, shapes(state(0)))


def test_flipped_bits_of_arrays_are_found_without_digests(tmp_path, monkeypatch):
    """In files too large to be read once more, and in checkpoints that have no list of their files."""
    monkeypatch.setattr(checkpoint_files, "_SMALL", 10_000)
    rng = np.random.default_rng(0)
    large = state(2, big=jnp.asarray(rng.normal(size=(300, 200)), jnp.float32))
    checkpoints = Checkpointer(str(tmp_path / "c"), asynchronous=False)
    checkpoints.save(2, large, {})
    checkpoints.close()
    files = [path for path in (tmp_path / "c" / "2").rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    for listed in (True, False):
        for path in files:
            data = path.read_bytes()
            for bit in rng.integers(8 * len(data), size=10):
                path.write_bytes(_flipped(data, int(bit)))
                with pytest.raises(DamageError):
                    checkpoints.restore(2, shapes(large))
            if listed:
                path.write_bytes(data[:-1])
                with pytest.raises(DamageError, match=f"{path.name} is not as it was written"):
                    checkpoints.restore(2, shapes(large))
            path.write_bytes(data)
        checkpoints.restore(2, shapes(large))
        if listed:
            (tmp_path / "c" / "2" / "digests.json").unlink()


def test_arrays_that_decode_to_other_numbers_are_damaged(two, tmp_path, monkeypatch):
    """Whatever Orbax hands over: one bit of one array, read whole, in part, or as bfloat16."""
    checkpoints = Checkpointer(str(two), read_only=True)
    whole = checkpoints._arrays.restore

    def flipped(folder, args):
        found = whole(folder, args=args)
        low = jax.lax.bitcast_convert_type(
            found["ema"]["w"], jnp.uint16 if args.item["ema"]["w"].dtype == jnp.bfloat16 else jnp.uint32
        )
        found["ema"]["w"] = jax.lax.bitcast_convert_type(low.at[3, 1].set(low[3, 1] ^ 1), found["ema"]["w"].dtype)
        return found

    monkeypatch.setattr(checkpoints._arrays, "restore", flipped)
    half = shapes(state(0))
    half = half._replace(
        ema=jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16, sharding=a.sharding), half.ema)
    )
    for abstract, only in ((shapes(state(0)), TrainState._fields), (shapes(state(0)), ("ema",)), (half, ("ema",))):
        with pytest.raises(DamageError, match=r"1 of \d+ arrays are not those saved, first ema/w"):
            checkpoints.restore(2, abstract, only)
        monkeypatch.setattr(checkpoints._arrays, "restore", whole)
        assert checkpoints.restore(2, abstract, only).ema["w"].dtype == abstract.ema["w"].dtype
        monkeypatch.setattr(checkpoints._arrays, "restore", flipped)


def test_a_damaged_step_that_was_asked_for_is_an_error(two, tmp_path):
    shutil.copytree(two, tmp_path / "c")
    (tmp_path / "c" / "2" / "state" / "_METADATA").unlink()
    checkpoints = Checkpointer(str(tmp_path / "c"), read_only=True)
    with pytest.raises(DamageError, match=r"checkpoint .*/c/2 is damaged"):
        checkpoints.restore(2, shapes(state(0)))


def test_where_all_are_damaged_nothing_is_moved(two, tmp_path):
    shutil.copytree(two, tmp_path / "c")
    for step in "12":
        (tmp_path / "c" / step / "state" / "_METADATA").write_bytes(b"{}")
    checkpoints = Checkpointer(str(tmp_path / "c"))
    with pytest.raises(DamageError, match=r"c/2 is damaged(.|\n)*c/1 is damaged(.|\n)*No other checkpoint is in"):
        newest(checkpoints)
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "2"]


def test_checkpoints_of_older_versions_load(two, tmp_path):
    shutil.copytree(two, tmp_path / "c")
    (tmp_path / "c" / "2" / "meta" / "metadata").write_text('{"config": {}}')
    (tmp_path / "c" / "2" / "digests.json").unlink()
    checkpoints = Checkpointer(str(tmp_path / "c"), read_only=True)
    restored, step = newest(checkpoints)
    assert (step, checkpoints.meta(2), checkpoints.fields(2)) == (2, {"config": {}}, set(TrainState._fields))
    np.testing.assert_array_equal(restored.params["w"], state(2).params["w"])


def test_folders_of_others_are_no_checkpoints_and_stay(two, tmp_path):
    """An empty one, a copy under another name, a number written otherwise: none blocks a save, none takes a place of `keep`."""
    shutil.copytree(two, tmp_path / "c")
    foreign = {"999", "3", "02", "4", "notes"}
    for name in foreign - {"4"}:
        (tmp_path / "c" / name).mkdir()
    (tmp_path / "c" / "3" / "mine.txt").write_text("x")
    shutil.copytree(tmp_path / "c" / "2", tmp_path / "c" / "4")
    said = []
    checkpoints = Checkpointer(str(tmp_path / "c"), keep=2)
    assert checkpoints.latest() == 2
    assert checkpoints._folder.numbered() == [999, 4, 3, 2, 1]
    _, step = newest(checkpoints, said.append)
    assert step == 2
    assert [line.partition(" is no checkpoint of step ")[2] for line in said] == [
        f"{n}: left alone" for n in (999, 4, 3)
    ]
    for step in (3, 5):
        checkpoints.save(step, state(step), {})
    checkpoints.close()
    assert {path.name for path in (tmp_path / "c").iterdir()} == foreign | {"5", "3.aside"}
    assert checkpoints.latest() == 5
    assert (tmp_path / "c" / "3.aside" / "mine.txt").read_text() == "x"


def test_a_kill_in_a_deletion_or_a_save_leaves_nothing(tmp_path, monkeypatch):
    checkpoints = Checkpointer(str(tmp_path / "c"), keep=2, asynchronous=False)
    for step in (1, 2):
        checkpoints.save(step, state(step), {})

    def killed(folder):
        (folder / "meta" / "metadata").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path_of(checkpoints)), "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(3, state(3), {})
    (tmp_path / "c" / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert checkpoints._folder.steps() == [3, 2]
    Checkpointer(str(tmp_path / "c"), keep=2).close()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "3"]
    again = Checkpointer(str(tmp_path / "c"), keep=1)  # killed before the deletion began
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "3"]  # until the newest has been read
    assert newest(again, print)[1] == 3
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["3"]


def test_nothing_is_deleted_before_the_newest_is_known_to_be_whole(two, tmp_path):
    shutil.copytree(two, tmp_path / "c")
    for path in (tmp_path / "c" / "2").glob(FILES["data"]):
        path.write_bytes(FAULTS["middle bit"](path.read_bytes()))
    run = Checkpointer(str(tmp_path / "c"), keep=1)
    said = []
    assert newest(run, said.append)[1] == 1
    assert "/2 is damaged" in said[0]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "2.damaged"]


def test_a_process_that_sees_the_newest_late_waits_for_it(two, monkeypatch):
    """As on a network disk, whose other hosts remember an old list; process 0 tells which are there."""
    lists, waited = iter([[1], [3, 1], [2, 1], [2, 1]]), []
    monkeypatch.setattr(checkpoint_folder.CheckpointFolder, "numbered", lambda self: next(lists))
    monkeypatch.setattr(processes, "of_first", lambda text: {"True": "True"}.get(text, "2, 1"))
    monkeypatch.setattr(processes, "everywhere", bool)
    monkeypatch.setattr(checkpoint_folder.time, "sleep", waited.append)
    checkpoints = Checkpointer(str(two), read_only=True)
    assert len(waited) == 2
    assert newest(checkpoints, print)[1] == 2


def test_a_record_that_only_some_processes_see_is_no_damage(two, monkeypatch):
    checkpoints = Checkpointer(str(two), read_only=True)
    monkeypatch.setattr(checkpoints, "_agreed", lambda step, work: work())
    monkeypatch.setattr(processes, "everywhere", lambda holds: False)
    for step in (2, 3):
        with pytest.raises(AbsentError, match=rf"{step} is not there for every process"):
            checkpoints.meta(step)


def test_a_process_that_never_sees_it_says_so(two, monkeypatch):
    checkpoints = Checkpointer(str(two), read_only=True)
    monkeypatch.setattr(processes, "VISIBLE_SECONDS", 0)
    monkeypatch.setattr(processes, "of_first", lambda text: "3, 2, 1")
    with pytest.raises(UserError, match=r"process 0 sees the checkpoints 3, 2, 1 in .*\(here: \[2, 1\]\)"):
        newest(checkpoints, print)


def tmp_path_of(checkpoints):
    return checkpoints._folder.path


def test_a_reader_takes_the_newest_again_when_a_run_deletes_its_step(two, tmp_path):
    shutil.copytree(two, tmp_path / "c")
    checkpoints = Checkpointer(str(tmp_path / "c"), read_only=True)
    run = Checkpointer(str(tmp_path / "c"), keep=1, asynchronous=False)

    def read(step):
        if step == 2:  # the run saves and deletes while its first arrays are read
            run.save(3, state(3), {})
        return checkpoints.restore(step, shapes(state(0)))

    said = []
    restored, step = checkpoints.newest(read, said.append)
    assert (step, int(restored.step), said) == (3, 3, [])
    with pytest.raises(UserError, match=r"there is no checkpoint .*/2; there are \[3\]"):
        checkpoints.restore(2, shapes(state(0)))
    run.close()


def test_a_failed_save_is_told_at_once_and_at_the_next(tmp_path, monkeypatch):
    checkpoints = Checkpointer(str(tmp_path / "c"))
    checkpoints.check()

    def full(keep):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(checkpoints._folder, "prune", full)
    checkpoints.save(1, state(1), {})
    checkpoints._end.join()
    with pytest.raises(OSError, match="no space"):
        checkpoints.check()
    checkpoints.check()
    checkpoints.save(2, state(2), {})
    with pytest.raises(OSError, match="no space"):
        checkpoints.wait()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("PERMISSION_DENIED: Error reading x: HTTP 403"), UserError, "PERMISSION_DENIED"),
        (ValueError("UNAUTHENTICATED: no token"), UserError, "UNAUTHENTICATED"),
        (ValueError("UNAVAILABLE: HTTP 503"), TryAgain, "UNAVAILABLE"),
        (ValueError("DEADLINE_EXCEEDED: slow"), TryAgain, "DEADLINE_EXCEEDED"),
        (ValueError("UNKNOWN: CURL error [35] SSL connect error"), TryAgain, "CURL error"),
        (ValueError("INTERNAL: HTTP 500"), TryAgain, "HTTP 500"),
        (ValueError("RESOURCE_EXHAUSTED: HTTP 429"), TryAgain, "HTTP 429"),
        (ValueError("ABORTED: HTTP 409"), TryAgain, "HTTP 409"),
        (PermissionError(errno.EACCES, "denied"), UserError, "denied"),
        (OSError(errno.EIO, "disk error"), TryAgain, "disk error"),
        (ConnectionResetError("reset"), TryAgain, "reset"),
    ],
)
def test_what_cannot_be_read_is_not_called_damaged(two, monkeypatch, error, kind, message):
    checkpoints = Checkpointer(str(two), read_only=True)

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints._arrays, "restore", broken)
    with pytest.raises(kind, match=message) as caught:
        newest(checkpoints)
    assert type(caught.value) is kind
    assert "damaged" not in str(caught.value) and "Remove" not in str(caught.value)
