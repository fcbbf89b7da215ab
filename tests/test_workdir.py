"""The small files of a workdir: what damages them is named, and what a run goes on with is compared with its checkpoints."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from ec_dit import config as config_lib
from ec_dit import evaluate
from ec_dit.conversion import reading
from ec_dit.core import digests
from ec_dit.core.errors import DamageError, UserError
from ec_dit.data import tokenizer as tokenizers
from ec_dit.data.encoding import Encoding
from ec_dit.evaluators import registry
from ec_dit.preparation import vocabulary
from ec_dit.preparation.drawing.shapes_scene import ShapesOptions
from ec_dit.runs.references import References
from ec_dit.runs.workdir import Workdir
from ec_dit.system.model import make_system
from tests import helpers

DATA = {"path": "/data", "fingerprint": "f1", "report": {"source": "shapes", "options": {}}}
FAULTS = {
    "gone": None,
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "bit": lambda data: bytes([*data[:-9], data[-9] ^ 4, *data[-8:]]),
    "foreign JSON": lambda data: b'{"a": [1, 2]}',
    "list": lambda data: b"[]",
    "deep": lambda data: b"[" * 100_000,
    "wrong type": lambda data: b'{"model": 5, "report": 5, "moe": {"num_experts": "x"}}',
}
READERS = {
    "config.json": Workdir.config,
    "tokenizer.model": Workdir.tokenizer,
    "data.json": Workdir.data_report,
    "conversion.json": Workdir.origin,
    "encoding.safetensors": Workdir.encoding,
}


def tokenizer():
    return tokenizers.Tokenizer(vocabulary.train(["a red circle", "two blue squares", "a pink moon"] * 5, 60))


@pytest.fixture(scope="module")
def made():
    facts = {
        "autoencoder": {"sha256": "a", "factor": 8, "channels": 4, "path": "x"},
        "text": {"sha256": ["b"], "width": 3, "length": 2, "type": "t5", "lower": False, "paths": ["y"]},
        "pictures": {"resolution": 64, "shapes": []},
    }
    arrays = np.ones((2, 3), np.float32), np.ones(2, bool), np.zeros(4, np.float32), np.ones(4, np.float32)
    encoding = Encoding(facts, *arrays)
    return tokenizer(), encoding


@pytest.fixture
def workdir(tmp_path, made):
    found = Workdir(str(tmp_path / "run"))
    found.fill(helpers.tiny_config(), made[0], DATA, {"from": "pixart"}, made[1])
    return found


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [*READERS, "digests.json"])
def test_every_damage_of_a_small_file_is_named(workdir, name, fault):
    path = workdir.path / name
    data = path.read_bytes()
    path.unlink()
    if (change := FAULTS[fault]) is not None:
        path.write_bytes(change(data))
    for reader in READERS.values() if name == "digests.json" else [READERS[name]]:
        if (name, fault) == ("digests.json", "gone"):  # as a workdir of an older version: nothing is compared
            assert reader(workdir)
            continue
        with pytest.raises(DamageError, match="is damaged") as caught:
            reader(workdir)
        assert str(path) in str(caught.value)
        assert "start the run" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "data.json", "tokenizer.model", "encoding.safetensors"])
def test_without_digests_what_does_not_parse_is_named(workdir, name):
    """As in workdirs of older versions."""
    (workdir.path / "digests.json").unlink()
    for fault in ("empty", "zeroed", "cut", "list", "deep", "wrong type"):
        data = (workdir.path / name).read_bytes()
        (workdir.path / name).write_bytes(FAULTS[fault](data))
        with pytest.raises(UserError, match=name):
            READERS[name](workdir)
        (workdir.path / name).write_bytes(data)


def test_a_file_changed_on_purpose(workdir):
    config = json.loads((workdir.path / "config.json").read_text())
    config["sample"]["steps"] = 17
    (workdir.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamageError, match=r"If you changed it yourself, remove .*digests.json"):
        workdir.config()
    (workdir.path / "digests.json").unlink()
    assert workdir.config().sample.steps == 17


def test_writing_again_mends_and_leaves_what_is_there(workdir, made):
    def times():
        return {path.name: Path(path).stat().st_mtime_ns for path in workdir.path.iterdir()}

    before = times()
    arguments = (helpers.tiny_config(), made[0], DATA, {"from": "pixart"}, made[1])
    workdir.fill(*arguments)
    assert times() == before
    (workdir.path / "digests.json").write_bytes(b"?")
    (workdir.path / "data.json").write_bytes(b"?")
    workdir.fill(*arguments)
    assert workdir.data() == DATA
    workdir.fill(helpers.tiny_config(), made[0], DATA)
    assert (workdir.encoding(), workdir.origin()) == (None, {})


def test_a_file_put_there_by_others_is_none_of_the_run(workdir, made):
    workdir.fill(helpers.tiny_config(), None, DATA)
    (workdir.path / "tokenizer.model").write_bytes(made[0].model)
    assert workdir.tokenizer() is None


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({}, "there is no 'options'"),
        ({"options": 5}, "the whole is 5, not an object"),
        ({"options": {"cells": "x"}}, "'cells' is a text, not a whole number"),
        ({"options": {"cels": 4}}, "the whole has a 'cels', which is none of its keys"),
    ],
)
def test_options_of_the_data_that_are_none_are_damage(workdir, report, reason):
    workdir.fill(helpers.tiny_config(), None, {"report": {"source": "shapes"} | report})
    with pytest.raises(DamageError, match=rf"data.json is damaged: {reason}"):
        registry.parse("shapes").make(References(None, workdir))


def test_options_of_the_data_are_those_of_its_source(workdir):
    options = ShapesOptions(cells=3, object_size=(0.5, 0.9), colors=("red", "blue", "green"))
    report = {"source": "shapes", "options": json.loads(json.dumps(dataclasses.asdict(options)))}
    workdir.fill(helpers.tiny_config(), None, {"report": report})
    assert workdir.data_options(ShapesOptions) == options


def test_a_config_that_was_changed_to_what_is_none_is_neither_scored_nor_converted(workdir, capsys):
    config = json.loads((workdir.path / "config.json").read_text())
    config["sample"]["sampler"] = "eular"
    (workdir.path / "config.json").write_text(json.dumps(config))
    (workdir.path / "digests.json").unlink()
    assert evaluate.main(["evaluate", f"--workdir={workdir.path}"]) == 2
    assert "--sampler='eular': choose one of" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"sample.sampler"):
        reading.from_workdir(str(workdir.path), {}, ema=True, step=None)


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


HUGGING_FACE = {"config.json": b'{"model_type": "t5", "data": 1}', "tokenizer.model": b"theirs", "data.json": b"[1]"}


@pytest.mark.parametrize(
    "names", [["config.json"], ["tokenizer.model"], ["data.json"], [*HUGGING_FACE], ["digests.json"]]
)
def test_files_of_other_programs_are_neither_replaced_nor_removed(tmp_path, names):
    """Runs on synthetic data have neither a tokenizer nor data.json: they would be removed."""
    for name in names:
        (tmp_path / name).write_bytes(HUGGING_FACE.get(name, b'{"a": 1}'))
    before = content(tmp_path)
    workdir = Workdir(str(tmp_path))
    with pytest.raises(UserError, match=rf"holds {', '.join(sorted(names))}, which no run wrote"):
        workdir.claim(helpers.tiny_config(), None)
    assert content(tmp_path) == before


def test_a_file_of_others_that_a_run_with_other_settings_would_replace(workdir, made):
    workdir.fill(helpers.tiny_config(), None, DATA)
    (workdir.path / "tokenizer.model").write_bytes(b"theirs")
    workdir.fill(helpers.tiny_config(sample__steps=9), None, {})  # data.json is its own, which goes
    before = content(workdir.path)
    assert before.keys() == {"config.json", "digests.json", "tokenizer.model"}
    with pytest.raises(UserError, match=r"holds tokenizer.model, which no run wrote"):
        workdir.fill(helpers.tiny_config(), made[0], DATA)
    assert content(workdir.path) == before
    (workdir.path / "digests.json").unlink()  # as a workdir of an older version
    workdir.fill(helpers.tiny_config(), made[0], DATA)
    assert workdir.tokenizer().model == made[0].model


@pytest.mark.parametrize("files", range(4))
def test_a_run_goes_on_from_whatever_a_kill_left_of_its_first_files(tmp_path, made, monkeypatch, files):
    workdir, count = Workdir(str(tmp_path)), iter(range(99))
    replace = digests.replace

    def killed(path, data):
        if next(count) == files:
            raise KeyboardInterrupt
        replace(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(digests, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            workdir.fill(helpers.tiny_config(), made[0], DATA)
    assert len(content(tmp_path)) == files
    workdir.fill(helpers.tiny_config(sample__steps=9), made[0], DATA)
    assert (workdir.config().sample.steps, workdir.data()) == (9, DATA)


def test_a_kill_between_two_files_leaves_a_folder_that_is_not_compared(workdir, made, monkeypatch):
    other = helpers.tiny_config(sample__steps=9)
    with monkeypatch.context() as patch:
        patch.setattr("ec_dit.core.digests.json_file.seal", lambda content: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            workdir.fill(other, made[0], DATA)
    assert workdir.config().sample.steps == 9
    workdir.fill(other, made[0], DATA)
    assert (workdir.path / "digests.json").exists()


def test_a_lost_config_does_not_let_another_one_in(workdir, made):
    """What the checkpoint records of its run counts, not the file."""
    right, wrong = helpers.tiny_config(), helpers.tiny_config(optimizer__learning_rate=0.5)
    assert not workdir.has_begun()
    workdir.claim(wrong, None)  # before the first checkpoint anything may be tried
    params = {"params": {"w": jax.numpy.ones(3)}}
    checkpoints = workdir.checkpointer(asynchronous=False)
    checkpoints.save(4, params, {"config": config_lib.to_tree(right), "data": {"fingerprint": "synthetic"}})
    checkpoints.close()
    assert workdir.has_begun()
    for change in (lambda path: path.unlink(), lambda path: path.write_text("{}")):
        change(workdir.path / "config.json")
        left = sorted(path.name for path in workdir.path.iterdir())
        with pytest.raises(UserError, match=r"optimizer.learning_rate: 0.01 -> 0.5"):
            workdir.claim(wrong, None)
        assert sorted(path.name for path in workdir.path.iterdir()) == left
        workdir.claim(right, None)
        assert workdir.config().optimizer.learning_rate == 0.01
    (workdir.path / "checkpoints" / "4" / "meta" / "metadata").write_text("{")
    with pytest.raises(DamageError, match=r"checkpoints/4 is damaged: .*No other checkpoint"):
        workdir.claim(wrong, None)


def test_sampling_takes_the_checkpoint_before_a_damaged_one_and_moves_nothing(tmp_path, made):
    c = helpers.tiny_config("dense")
    workdir = Workdir(str(tmp_path / "run"))
    workdir.fill(c, made[0], DATA)
    system = make_system(c, made[0])
    shapes = system.shapes()
    checkpoints = workdir.checkpointer(asynchronous=False)
    for step in (1, 2):
        params = jax.tree.map(lambda a, step=step: jax.numpy.full(a.shape, step / 3, a.dtype), shapes)
        checkpoints.save(step, {"params": params}, {})
    checkpoints.close()
    said = []
    for dtype in ("float32", "bfloat16"):  # the second is read as what it rounds to
        _, params, step = workdir.load(helpers.change(c, model__dtype=dtype), say=said.append)
        assert (step, said) == (2, [])
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} >= {dtype}
    (workdir.path / "checkpoints" / "2" / "state" / "_METADATA").write_text("{}")
    _, params, step = workdir.load(c, say=said.append)
    assert step == 1 and float(jax.tree.leaves(params)[0].ravel()[0]) == pytest.approx(1 / 3, rel=1e-2)
    assert len(said) == 1 and said[0].endswith("The checkpoint before it is used: 1.")
    with pytest.raises(DamageError, match=r"checkpoints/2 is damaged: .* Leave --step out: .*newest that is whole"):
        workdir.load(c, step=2)
    assert sorted(path.name for path in (workdir.path / "checkpoints").iterdir()) == ["1", "2"]
