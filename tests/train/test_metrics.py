"""Every number stands once in what is read back, in metrics.jsonl and in TensorBoard's files, whatever ended a run."""

import errno
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ec_dit.train.metrics import MetricWriter, read_metrics


def events(workdir):
    """The events of a folder, in the order in which TensorBoard reads its files; one that is cut short ends a file."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while len(data) >= 12 and len(data) >= 16 + (length := struct.unpack("<Q", data[:8])[0]):
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def shown(workdir, name="loss"):
    """[(step, value)] as TensorBoard shows them: what stands at or after the step of a START is purged when it comes."""
    points = []
    for event in events(workdir):
        if event.session_log.status == SessionLog.START:
            points = [point for point in points if point[0] < event.step]
        points += [(event.step, value.simple_value) for value in event.summary.value if value.tag == name]
    return points


def test_each_step_stands_once_after_a_kill(tmp_path):
    """Steps 1 to 5 and a line cut short; then on from the checkpoint of step 3."""
    killed = MetricWriter(str(tmp_path))
    for step in range(1, 6):
        killed.scalars(step, {"loss": 10.0 + step})
    killed._lines.write(b'{"step": 6, "lo')
    with killed, MetricWriter(str(tmp_path), 3) as writer:  # the first is not closed yet, as by SIGKILL
        for step in range(4, 8):
            writer.scalars(step, {"loss": 20.0 + step})
        writer.scalars(7, {"validation_loss/train": 0.5})
    wanted = [(1, 11), (2, 12), (3, 13), (4, 24), (5, 25), (6, 26), (7, 27)]
    read = list(read_metrics(str(tmp_path)))
    assert [(values["step"], values["loss"]) for values in read] == wanted
    assert read[-1]["validation_loss/train"] == 0.5
    assert shown(tmp_path) == wanted
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[5] == '{"step": 6, "lo'
    assert [json.loads(line)["step"] for line in lines[:5] + lines[6:]] == [1, 2, 3, 4, 5, 4, 5, 6, 7, 7]


def test_what_a_kill_left_missing_of_the_first_step_is_told_and_the_rest_is_shown_again(tmp_path):
    """Killed twice: with validation and a picture of step 4 after a checkpoint of 2, then after one of 4, before either."""
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    with MetricWriter(str(tmp_path)) as writer:
        for step in range(1, 5):
            writer.scalars(step, {"loss": float(step)})
        writer.scalars(4, {"validation_loss/train": 9.0})
        writer.image(4, "samples", picture)
    assert not writer.recorded("loss")
    with MetricWriter(str(tmp_path), 2) as writer:
        assert writer.recorded("loss")
        assert not writer.recorded("validation_loss/train")
        for step in (3, 4):
            writer.scalars(step, {"loss": float(step)})
    with MetricWriter(str(tmp_path), 4) as writer:
        assert [writer.recorded(n) for n in ("loss", "validation_loss/train", "samples")] == [True, False, True]
        writer.scalars(4, {"validation_loss/train": 8.0})
    with MetricWriter(str(tmp_path), 4) as writer:
        assert writer.recorded("validation_loss/train")
    assert shown(tmp_path) == [(step, float(step)) for step in range(1, 5)]
    assert shown(tmp_path, "validation_loss/train") == [(4, 8.0)]
    after = list(events(tmp_path))[-1]
    assert (after.step, after.summary.value[0].tag) == (4, "samples")


def test_a_step_of_which_tensorboard_was_not_told_before_a_kill_is_shown(tmp_path):
    with MetricWriter(str(tmp_path)) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer._lines.write(b'{"step": 2, "time": 5.5, "loss": 2.0}\n')
    with MetricWriter(str(tmp_path), 2):
        pass
    assert shown(tmp_path) == [(1, 1.0), (2, 2.0)]
    assert list(events(tmp_path))[-1].wall_time == 5.5


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"step": "x"}', b'{"step": 1, "loss": "x"}', b"\xff" * 9])
def test_damaged_metrics_and_pictures_count_as_missing(tmp_path, damage):
    (tmp_path / "metrics.jsonl").write_bytes(damage + b"\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "samples_0000001.png").write_bytes(damage)
    with MetricWriter(str(tmp_path), 1) as writer:
        assert not writer.recorded("loss")
        assert not writer.recorded("samples")


def test_a_run_from_the_start_purges_what_a_killed_one_left(tmp_path):
    for loss in (1.0, 2.0):
        with MetricWriter(str(tmp_path)) as writer:
            writer.scalars(1, {"loss": loss})
    assert shown(tmp_path) == [(1, 2.0)]


def test_pictures(tmp_path):
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    with MetricWriter(str(tmp_path)) as writer:
        writer.image(5, "samples", picture)
    (value,) = [value for event in events(tmp_path) for value in event.summary.value]
    assert (value.tag, value.image.height, value.image.width) == ("samples", 4, 4)
    (tmp_path / "again.png").write_bytes(value.image.encoded_image_string)
    for path in (tmp_path / "again.png", tmp_path / "images" / "samples_0000005.png"):
        with Image.open(path) as found:
            assert (np.asarray(found) == np.asarray(picture)).all()


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_is_told_by_the_call_that_meets_it_again_and_again(tmp_path, name):
    with MetricWriter(str(tmp_path)) as writer:
        writer.scalars(1, {"loss": 1.0})
        file = writer._lines if name == "metrics.jsonl" else writer._board
        file._file.close()
        file._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115 - closed as the other would be
        for step in range(2, 40):  # more than any queue holds
            with pytest.raises(OSError, match="No space left") as told:
                writer.scalars(step, {"loss": 1.0})
            assert told.value.errno == errno.ENOSPC


def test_writing_figures_imports_neither_torch_nor_clients_of_clouds():
    check = (
        "import sys; import ec_dit.train.metrics as metrics; "
        "assert not {'torch', 'boto3', 'google.cloud.storage'} & sys.modules.keys(), 'imported'; "
        "assert metrics.summary.scalar('a', 1.0)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
