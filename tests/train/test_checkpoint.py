"""Checkpoints: what is kept, what is refused."""

import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.core import processes
from ec_dit.core.errors import UserError
from ec_dit.train import checkpoint, checkpoint_folder
from ec_dit.train.checkpoint import AbsentError, Checkpointer
from ec_dit.train.state import TrainState
from tests.train.checkpoints import newest, shapes, state


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


@pytest.mark.parametrize(("part", "cut"), [(2**20, False), (64, True)])
def test_holders_of_the_same_array_write_parts_of_it_where_these_are_large(tmp_path, monkeypatch, part, cut):
    """Cutting compiles a program for every part: for small ones that takes longer than writing them."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    array = np.random.default_rng(0).standard_normal((8, 16), np.float32)
    laid = {"w": jax.device_put(array, jax.NamedSharding(mesh, jax.P()))}
    monkeypatch.setattr(checkpoint, "_PART", part)
    checkpoints, compiled = Checkpointer(str(tmp_path), asynchronous=False), []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        checkpoints.save(1, {"params": laid}, {})
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        checkpoints.close()
    assert len(compiled) == (8 if cut else 0)
    again = Checkpointer(str(tmp_path), read_only=True)
    restored = again.restore(1, TrainState(None, None, shapes(laid), None, None), only=("params",))
    again.close()
    np.testing.assert_array_equal(restored.params["w"], array)
