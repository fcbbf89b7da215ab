"""Data, checkpoints, metrics and pictures on gs:// paths, against a server that plays Google Cloud Storage."""

import itertools
import json
import os
import socket
import time

import jax
import numpy as np
import pytest

from ec_dit.core import buckets, paths
from ec_dit.core.errors import DamageError, TryAgain, UserError, explain
from ec_dit.core.processes import STOPPED
from ec_dit.data import dataset
from ec_dit.data.loader import Loader
from ec_dit.data.rows import EncodedRows
from ec_dit.preparation import workplace
from ec_dit.train.checkpoint import Checkpointer
from tests import gcs_server, runs, sets
from tests.train.checkpoints import newest
from tests.train.checkpoints import state as checkpoint_state

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("buckets")]  # they share a run that takes its time

RUN, DATA = "gs://bucket/runs/one", "gs://bucket/data/shapes"
STEPS = ("--config.train.steps=6", "--config.log.validate_every=6", "--config.log.sample_every=6")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """(the server, a folder to work in); processes started from here find the server."""
    place = runs.folder(tmp_path_factory, "buckets")
    with pytest.MonkeyPatch.context() as patch, gcs_server.Server() as server:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server, place


def names(server, prefix):
    return {name.removeprefix(prefix) for _, name in server.objects if name.startswith(prefix)}


def text(server, name):
    return server.objects["bucket", name][1].decode()


@pytest.fixture(scope="module")
def local(bucket):
    """The fingerprint of the same run on the local disk."""
    _, place = bucket
    return runs.finish(runs.start(place, place / "local", *STEPS))[0]


@pytest.fixture(scope="module")
def remote(bucket):
    """The fingerprint of a run in the bucket, which also prepared its data there."""
    _, place = bucket
    return runs.finish(runs.start(place, RUN, f"--config.data.path={DATA}", *STEPS))[0]


@pytest.mark.exhaustive
def test_a_run_in_a_bucket_ends_as_one_on_a_disk(bucket, local, remote):
    server, place = bucket
    assert remote == local
    assert not (place / "gs:").exists()  # nothing was taken for a local folder
    found = names(server, "runs/one/")
    assert {"config.json", "data.json", "tokenizer.model", "metrics.jsonl", "images/samples_0000006.png"} <= found
    assert any(name.startswith("tensorboard/events") for name in found)
    assert {"checkpoints/4/commit_success.txt", "checkpoints/6/commit_success.txt"} <= found
    assert "report.json" in names(server, "data/shapes/")
    losses = [json.loads(line) for line in text(server, "runs/one/metrics.jsonl").splitlines()]
    assert [line["step"] for line in losses if "loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.exhaustive
def test_killed_it_goes_on_and_keeps_its_metrics(bucket, local):
    server, place = bucket
    arguments = ("gs://bucket/runs/two", f"--config.data.path={DATA}")
    runs.finish(runs.start(place, *arguments, "--config.train.steps=3"))
    process = runs.start(place, *arguments, *STEPS)
    runs.read_until(process, 5)
    process.kill()
    process.communicate()
    # What a save leaves that was killed before its last object.
    folder = "runs/two/checkpoints/5/"
    server.put("bucket", f"{folder}state/half", b"written", {})
    server.objects.pop(("bucket", f"{folder}commit_success.txt"), None)
    assert runs.finish(runs.start(place, *arguments, *STEPS))[0] == local
    steps = [json.loads(line)["step"] for line in text(server, "runs/two/metrics.jsonl").splitlines()]
    assert set(steps) == {1, 2, 3, 4, 5, 6}


@pytest.mark.exhaustive
def test_two_processes_evaluate_and_draw_from_a_bucket_into_it(bucket, remote):
    server, place = bucket
    several = {"devices": 2}
    ends = runs.end(
        runs.call_several(place, "evaluate", 2, f"--workdir={RUN}", "--suite=shapes:images_per_task=1", **several)
    )
    assert [code for code, _ in ends] == [0, 0], ends
    out = f"--out={RUN}/samples"
    draw = (f"--workdir={RUN}", "--prompt=a red circle", "--num=2", "--steps=2", out)
    ends = runs.end(runs.call_several(place, "sample", 2, *draw, **several))
    assert [code for code, _ in ends] == [0, 0], ends
    found = names(server, "runs/one/")
    assert {"eval_shapes.json", "eval_shapes.png", "samples/00000_0001.png", "samples/sheet.png"} <= found


@pytest.mark.exhaustive
def test_two_processes_prepare_into_a_bucket(bucket):
    server, place = bucket
    small = ("--source=shapes", "--num_train=40", "--num_validation=10", "--option=novel=5", "--image_size=64")
    (one,) = runs.end([runs.call(place, "prepare", *small, "--out=here")])
    assert one[0] == 0, one
    for overwrite in ((), ("--overwrite",)):
        ends = runs.end(
            runs.call_several(place, "prepare", 2, *small, "--out=gs://bucket/data/two", *overwrite, devices=2)
        )
        assert [code for code, _ in ends] == [0, 0], ends
        there = {name: server.objects["bucket", f"data/two/{name}"][1] for name in names(server, "data/two/")}
        assert there == {path.name: path.read_bytes() for path in (place / "here").iterdir()}
    assert not names(server, "data/.two.parts/")


def test_encoded_data_in_a_bucket(bucket):
    server, place = bucket
    out, here, encoding = "gs://bucket/data/mixed", place / "mixed", sets.plan()
    sets.write(sets.MixedSource(), here, encoding=encoding)
    whole = {path.name: path.read_bytes() for path in here.iterdir()}

    def there():
        return {name: server.objects["bucket", f"data/mixed/{name}"][1] for name in names(server, "data/mixed/")}

    broken = sets.Breaking(sets.MixedSource(), 1, 5)
    with pytest.raises(OSError, match=r"connection lost"):
        sets.write(broken, out, encoding=encoding)
    with pytest.raises(UserError, match=r"not a finished data set"):
        dataset.open(out)
    assert not dataset.is_there(out)
    with pytest.MonkeyPatch.context() as patch:  # killed when the set is whole, while the rest is cleared
        patch.setattr(workplace, "_remove", lambda base: (base / "plan.json").unlink())
        sets.write(sets.MixedSource(), out, encoding=encoding)
    assert {name: data for name, data in there().items() if not name.startswith(".incomplete")} == whole
    again = sets.MixedSource()
    sets.write(again, out, encoding=encoding)
    assert again.read == [] and there() == whole
    with pytest.raises(UserError, match=r"already holds a data set"):
        sets.write(sets.MixedSource(sets.MixedOptions(seed=1)), out, encoding=encoding)
    assert there() == whole

    streams = [Loader(EncodedRows(dataset.open(path)["train"]), batch_size=4, seed=1) for path in (here, out)]
    for mine, theirs in itertools.islice(zip(*(stream.batches(3) for stream in streams), strict=False), 6):
        assert mine.record_B.size == 4
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    (paths.at(out) / "skipped.jsonl").write_text("x")
    with pytest.raises(UserError, match=r"skipped.jsonl is 1 bytes long"):
        dataset.open(out)

    def killed(old):
        next(old).unlink()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:  # killed while the old set is cleared
        patch.setattr(workplace.paths, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            sets.write(sets.MixedSource(), out, encoding=encoding, overwrite=True)
    sets.write(sets.MixedSource(), out, encoding=encoding, overwrite=True)
    assert there() == whole


def test_checkpoints_in_a_bucket(bucket, monkeypatch):
    """Torn, foreign, damaged and forbidden ones; folders there cannot be renamed."""
    server, _ = bucket
    place, here = "gs://bucket/own/checkpoints", "own/checkpoints/"

    def there():
        return {name.partition("/")[0] for name in names(server, here)}

    run = Checkpointer(place, keep=2, asynchronous=False)
    for step in (1, 2, 3):
        run.save(step, checkpoint_state(step), {})
    run.close()
    assert there() == {"2", "3"}
    server.put("bucket", f"{here}7/state/half", b"x", {})  # a save that was killed
    mark = text(server, f"{here}2/commit_success.txt")
    server.objects.pop(("bucket", f"{here}2/commit_success.txt"))  # a deletion that was killed
    server.put("bucket", f"{here}9/mine.txt", b"x", {})
    server.put(
        "bucket", f"{here}3/meta/metadata", text(server, f"{here}3/meta/metadata").replace(": 3", ": 1").encode(), {}
    )
    reader = Checkpointer(place, read_only=True)
    with pytest.raises(DamageError, match=r"checkpoint gs://.*/3 is damaged: .*\n?.*No other checkpoint is in"):
        newest(reader)
    assert there() == {"2", "3", "7", "9"}
    server.put("bucket", f"{here}2/commit_success.txt", mark.encode(), {})
    run, said = Checkpointer(place, keep=2, asynchronous=False), []
    assert newest(run, said.append)[1] == 2
    assert said[0] == f"{place}/9 is no checkpoint of step 9: left alone"
    assert said[1].endswith("It is kept as 3.damaged. The checkpoint before it is used: 2.")
    run.save(9, checkpoint_state(9), {})
    run.close()
    assert there() == {"2", "3.damaged", "9", "9.aside"}
    assert len(names(server, f"{here}3.damaged/")) > 10

    for status in (401, 403):
        with monkeypatch.context() as patch:
            patch.setattr(server, "broken", lambda method, path, status=status: status if "state" in path else None)
            with pytest.raises(UserError, match=r"checkpoint gs://.*/9 cannot be read: ") as caught:
                newest(reader)
            assert type(caught.value) is UserError and "damaged" not in str(caught.value)
            patch.setattr(server, "broken", lambda method, path, status=status: status)
            with pytest.raises(Exception) as refused:  # noqa: PT011 - of gcsfs; entry points explain it
                newest(reader)
            assert type(explain(refused.value)) is UserError
    assert newest(reader)[1] == 9
    server.put(
        "bucket", f"{here}9/_CHECKPOINT_METADATA", text(server, f"{here}9/_CHECKPOINT_METADATA").encode() + b" ", {}
    )
    assert newest(reader, said.append)[1] == 2
    assert f"checkpoint {place}/9 is damaged: _CHECKPOINT_METADATA is not as it was written." in said[-1]


def test_paths(monkeypatch, tmp_path, bucket):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert os.fspath(paths.at("here")) == str(tmp_path / "here")
    assert os.fspath(paths.at("~/here")) == str(tmp_path / "home" / "here")
    assert str(paths.at("gs://bucket/a") / "b") == "gs://bucket/a/b"
    for wrong, message in {
        "s3://b/a": r"s3://b/a: only gs:// buckets",
        "gs:/bucket/a": r"neither a folder nor a bucket; buckets are written gs://BUCKET/FOLDER",
        "gs://": r"names no bucket",
        "a\0b": r"NUL character",
    }.items():
        with pytest.raises(UserError, match=message):
            paths.at(wrong)
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ec-dit\[gcs\]'"):
        paths.at("gs://bucket/a")


def test_without_a_network_an_entry_point_ends_soon_with_one_message(tmp_path):
    """Whether nobody answers, or the name of the host is not known."""
    (tmp_path / "tiny.py").write_text(runs.SETTINGS)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = {
            f"http://127.0.0.1:{silent.getsockname()[1]}": "does not answer: ",
            "http://a.invalid": "cannot be reached (",
        }
        where = [{"STORAGE_EMULATOR_HOST": host} for host in hosts]
        since = time.monotonic()
        ends = runs.end([runs.start(tmp_path, "gs://b/run", variables=variables) for variables in where])
        assert time.monotonic() - since < 30
    for (code, output), told in zip(ends, hosts.values(), strict=True):
        assert code == STOPPED, output
        assert output.startswith("main: gs://b") and told in output and output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.py"]


def test_a_firewall_that_swallows_all_costs_no_minutes(monkeypatch):
    """Though a name has many addresses, of both families."""
    waited, addresses = [], [f"10.0.0.{i}" for i in range(16)]
    kinds = {socket.AF_INET6: [f"::{i}" for i in range(1, 17)], socket.AF_INET: addresses}
    known = {name: kind for kind, names in kinds.items() for name in names}

    class Swallowed(socket.socket):
        def connect(self, address):
            waited.append((self.family, self.gettimeout()))
            raise TimeoutError("timed out")

    def look_up(host, port, *_, **__):
        return [(known[name], socket.SOCK_STREAM, 6, "", (name, port)) for name in ([host] if host in known else known)]

    monkeypatch.setattr(socket, "socket", Swallowed)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://there.test")
    with pytest.raises(TryAgain, match=r"^gs://b4: there.test cannot be reached \(timed out\)"):
        buckets.reach("b4")
    assert {family for family, _ in waited} == set(kinds)
    assert sum(seconds for _, seconds in waited) < 30


def test_a_bucket_that_does_not_answer_or_refuses(bucket, monkeypatch):
    server, _ = bucket
    buckets.reach.cache_clear()
    for status, message in (
        (404, "there is no bucket gs://b1"),
        (403, "gs://b1 wants credentials, and none are found"),
    ):
        monkeypatch.setattr(server, "broken", lambda method, path, status=status: status)
        with pytest.raises(UserError, match=message) as caught:
            paths.at("gs://b1/x")
        assert not isinstance(caught.value, TryAgain)
    monkeypatch.setattr(server, "broken", None)
    assert str(paths.at("gs://b1/x")) == "gs://b1/x"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # which nobody listens to
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(TryAgain, match=r"gs://b2: 127.0.0.1 cannot be reached \(.*refused"):
            paths.at("gs://b2/x")
