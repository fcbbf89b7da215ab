"""Figures at Weights & Biases (offline) and MLflow (its file store), by the real packages; what fails ends nothing."""

import json
import struct
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.train import trackers
from ec_dit.train.metrics import MetricWriter, read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the trackers import
PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def records_of(data):
    """The records of a .wandb file: LevelDB's log after a header of 7 bytes, in blocks of 32 KiB."""
    at, begun = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left  # a block's end that no header fits into
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        begun, at = begun + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield begun
            begun = b""


def history(files):
    """Steps and losses of .wandb files in order, and the settings."""
    from wandb.proto import wandb_internal_pb2

    losses, settings = [], {}
    for file in files:
        for data in records_of(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "loss" in items:
                losses.append((json.loads(items["step"]), json.loads(items["loss"])))
            for item in record.run.config.update:
                settings[item.key or "/".join(item.nested_key)] = item.value_json
    return losses, settings


def start(names, place, say=print, name="shapes"):
    return trackers.start(
        names, epath.Path(place), name=name, project="study", settings={"train.steps": 8, "eval.suites": []}, say=say
    )


@pytest.mark.slow
@pytest.mark.extra("mlflow")
@pytest.mark.parametrize("store", ["", "files"])
def test_mlflow_has_what_the_workdir_has_and_goes_on_with_one_run(tmp_path, monkeypatch, store):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if store:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/files")
    for first, steps in ((0, (2, 4)), (2, (4, 6))):  # the second as after a kill: step 4 once more
        with MetricWriter(str(tmp_path), first, trackers=start(["mlflow"], tmp_path)) as writer:
            for step in steps:
                writer.scalars(step, {"loss": step / 2 + first, "eval/val_loss/times/t=0.5": 1.0})
            writer.image(steps[-1], "samples", PICTURE)
    client = MlflowClient(f"file:{tmp_path}/files" if store else f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    assert run.info.run_name == "shapes" and run.info.status == "FINISHED"
    assert run.data.params == {"train.steps": "8", "eval.suites": "[]"}
    told = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]
    assert told == [(2, 1.0), (4, 2.0), (4, 4.0), (6, 5.0)]
    assert run.data.metrics["eval/val_loss/times/t:0.5"] == 1.0
    pictures = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
    assert any("samples" in path and "6" in path for path in pictures)
    assert store or (tmp_path / "mlartifacts").is_dir()
    assert [row["loss"] for row in read_metrics(str(tmp_path))] == [1.0, 4.0, 5.0]


@pytest.mark.slow
@pytest.mark.extra("mlflow")
def test_a_run_that_fails_is_told_as_failed(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ZeroDivisionError), MetricWriter(str(tmp_path), trackers=start(["mlflow"], tmp_path)):
        _ = 1 / 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    assert run.info.status == "FAILED"


@pytest.mark.slow
@pytest.mark.extra("wandb")
def test_wandb_offline_has_what_the_workdir_has(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for first, steps in ((0, (2, 4)), (2, (4,))):
        with MetricWriter(str(tmp_path), first, trackers=start(["wandb"], tmp_path)) as writer:
            for step in steps:
                writer.scalars(step, {"loss": step / 2 + first})
            writer.image(steps[-1], "samples", PICTURE)
    ids = json.loads((tmp_path / "trackers.json").read_text())
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and {file.stem for file in files} == {f"run-{ids['wandb']}"}
    end = time.monotonic() + 30  # its own process writes the file
    while len(told := history(files)[0]) < 3 and time.monotonic() < end:
        time.sleep(0.2)
    losses, settings = history(files)
    assert told == losses == [(2, 1.0), (4, 2.0), (4, 4.0)]
    assert json.loads(settings["train.steps"]) == 8
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/samples*.png"))


class Broken:
    id = "7"

    def __init__(self, *arguments):
        pass

    def scalars(self, step, values):
        raise ConnectionError("the service\nis away")

    def image(self, step, name, image):
        raise AssertionError("left out by now")

    def close(self, *, failed):
        raise AssertionError("left out by now")


def test_a_tracker_that_fails_is_told_once_and_left_out(tmp_path):
    said = []
    with MetricWriter(str(tmp_path), trackers=trackers.Trackers({"wandb": Broken()}, said.append)) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.scalars(2, {"loss": 2.0})
        writer.image(2, "samples", PICTURE)
    assert said == ["warning: wandb takes no more of this run (the service); the workdir has everything"]
    assert [row["loss"] for row in read_metrics(str(tmp_path))] == [1.0, 2.0]


def test_what_is_missing_is_told_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ec-dit\[mlflow\]'"):
        start(["mlflow"], tmp_path)
    assert trackers.check_names(("wandb",)) is None
    assert trackers.check_names(("wandbb",)) == "there is no tracker 'wandbb'; choose from wandb, mlflow"

    def away(*arguments):
        raise OSError("no route to host")

    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", away)
    with pytest.raises(UserError, match="wandb cannot begin: no route to host"):
        start(["wandb"], tmp_path)


def test_a_damaged_record_of_ids_begins_another_run(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda *arguments: given.append(arguments[-1]) or Broken())
    for text in (None, "{", '{"wandb": 3}', '{"wandb": "5", "mlflow": "9"}'):
        if text is not None:
            (tmp_path / "trackers.json").write_text(text)
        start(["wandb"], tmp_path)
    assert given == ["", "", "", "5"]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "7", "mlflow": "9"}
