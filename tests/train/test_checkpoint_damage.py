"""Checkpoints whose files are damaged: found, told and passed over, or rightly no harm."""

import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.core.errors import DamageError, TryAgain, UserError
from ec_dit.train import checkpoint_files
from ec_dit.train.checkpoint import Checkpointer
from ec_dit.train.state import TrainState
from tests.train.checkpoints import FAULTS, FILES, HARMLESS, flipped, newest, shapes, state, words

pytestmark = pytest.mark.slow


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
            path.write_bytes(flipped(data, int(bit)))
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
                path.write_bytes(flipped(data, int(bit)))
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


def test_nothing_is_deleted_before_the_newest_is_known_to_be_whole(two, tmp_path):
    shutil.copytree(two, tmp_path / "c")
    for path in (tmp_path / "c" / "2").glob(FILES["data"]):
        path.write_bytes(FAULTS["middle bit"](path.read_bytes()))
    run = Checkpointer(str(tmp_path / "c"), keep=1)
    said = []
    assert newest(run, said.append)[1] == 1
    assert "/2 is damaged" in said[0]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "2.damaged"]


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
