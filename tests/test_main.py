"""The entry points from outside: a short run, its files, sampling, evaluation, and a user's mistakes."""

import json
import os
import re
import signal

import numpy as np
import pytest
from PIL import Image

from ec_dit import convert, evaluate, main, prepare, sample
from ec_dit.core import lock, paths, processes
from ec_dit.runs.evaluation import Scorer
from ec_dit.train.metrics import read_metrics

pytestmark = pytest.mark.xdist_group("main")  # they share a run that takes its time

SMOKE = "--config=configs/shapes.py:smoke"
EIGHT = ("--config.mesh.data=8", "--config.moe.group_size=64")  # a batch that splits over the emulated devices


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image, int)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run of four steps."""
    folder = tmp_path_factory.mktemp("main")
    assert main.main(four_steps(folder)) == 0
    return folder / "run"


def four_steps(folder):
    """The command of that run."""
    arguments = ["main", SMOKE, f"--workdir={folder / 'run'}", f"--config.data.path={folder / 'data'}"]
    arguments += ["--config.train.steps=4", "--config.model.num_blocks=2", *EIGHT]
    return [*arguments, "--config.log.sample_every=4", "--config.log.validate_every=4", "--config.log.maps=1"]


def validation(workdir):
    """Its figures, of each step that has them."""
    rows = ({k: v for k, v in row.items() if "validation" in k} for row in read_metrics(str(workdir)))
    return [row for row in rows if row]


@pytest.mark.slow
def test_a_run_leaves_everything_it_promises(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line}
    assert {"loss", "grad_norm", "param_norm", "learning_rate", "images_per_second", "mfu"} <= names
    assert {"router/untaken/0", "router/max_experts/0", "router/gate_entropy/0"} <= names
    assert {"validation_loss/train", "validation_loss/validation", "validation_loss/novel"} <= names
    assert any(name.startswith("loss_t/") for name in names)
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert pixels(workdir / "images" / "samples_0000004.png").shape[1] > 500
    assert pixels(workdir / "images" / "routes_0000004.png").shape[1] > 500
    assert list((workdir / "tensorboard").iterdir())
    assert (workdir / "checkpoints" / "4").is_dir()


@pytest.mark.slow
def test_what_was_cut_short_at_the_last_step_is_left_to_the_next_start(workdir, capsys, monkeypatch):
    """Its evaluation by SIGTERM, and validation and pictures by SIGKILL."""
    evaluated = []

    def score_until_told(self, scored):
        for batch in scored._run.between(range(2)):
            evaluated.append((self.suite.label, scored._at["step"], batch))
            if len(evaluated) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return {"score": 0.5}

    monkeypatch.setattr(Scorer, "__call__", score_until_told)
    arguments = [*four_steps(workdir.parent), "--config.eval.suites=('shapes',)"]
    assert main.main(arguments) == processes.STOPPED
    output = capsys.readouterr().out
    assert "stopped by SIGTERM after step 4 of 4, which is saved" in output
    assert "validation loss" not in output  # all of it is there

    picture, metrics = workdir / "images" / "samples_0000004.png", workdir / "metrics.jsonl"
    (values,), drawn = validation(workdir), pixels(picture)
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(True) if "validation" not in line))
    picture.unlink()
    assert main.main(arguments) == 0
    output = capsys.readouterr().out
    assert "resuming at step 4" in output and "step 4/4" not in output
    assert values.keys() == {f"validation_loss/{split}" for split in ("train", "validation", "novel")}
    assert validation(workdir) == [values]
    np.testing.assert_array_equal(pixels(picture), drawn)
    assert main.main(arguments) == 0  # to which nothing is left
    assert evaluated == [("shapes", 4, 0), ("shapes", 4, 0), ("shapes", 4, 1)]


@pytest.mark.slow
def test_a_workdir_in_use_is_left_alone(workdir, capsys):
    arguments = four_steps(workdir.parent)
    with lock.held(paths.at(workdir / ".lock"), "it", print):
        assert main.main(arguments) == 2
        error = capsys.readouterr().err
        assert f"the workdir {workdir} is in use by process {os.getpid()} on " in error
    assert not (workdir / ".lock").exists()


@pytest.mark.slow
def test_sampling_writes_pictures_and_settings_and_repeats_itself(workdir, tmp_path, capsys):
    common = ["sample", f"--workdir={workdir}", "--steps=3", "--sampler=heun", "--guidance=2"]
    alone = [*common, "--prompt=a red circle", "--num=2", f"--out={tmp_path / 'a'}"]
    long = "a red circle " * 40
    (tmp_path / "prompts.txt").write_text(f"two squares\n\na red circle\n{long}\ntwo squares\n{long}\n")
    together = [*common, f"--prompts_file={tmp_path / 'prompts.txt'}", "--num=2", f"--out={tmp_path / 'b'}"]
    assert sample.main(alone) == 0
    assert "warning" not in capsys.readouterr().out
    assert sample.main(together) == 0
    assert "warning: cut, as the model reads 24 tokens at most: 2 prompts, 3, 5\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "settings.json").read_text())["cut"] == []
    facts = json.loads((tmp_path / "b" / "settings.json").read_text())
    assert facts["nfe"] == 2 * (2 * 3 - 1)
    assert facts["cut"] == [3, 5]
    assert (facts["sampler"], facts["step"], facts["prompts"][:3]) == ("heun", 4, ["two squares", "", "a red circle"])
    assert facts["shape"] == "32x32"
    for index in range(2):
        a = pixels(tmp_path / "a" / f"00000_{index:04d}.png")
        b = pixels(tmp_path / "b" / f"00002_{index:04d}.png")
        assert np.abs(a - b).max() <= 1
    assert (tmp_path / "b" / "sheet.png").exists()


@pytest.mark.slow
def test_sampling_another_shape(workdir, tmp_path, capsys):
    common = ["sample", f"--workdir={workdir}", "--steps=2", "--prompt=a red circle", "--num=2", f"--out={tmp_path}"]
    assert sample.main([*common, "--shape=20x28"]) == 0  # 35 tokens: capacities are rounded up
    assert pixels(tmp_path / "00000_0001.png").shape == (20, 28, 3)
    facts = json.loads((tmp_path / "settings.json").read_text())
    assert (facts["shape"], facts["group_size"], facts["paired_group_size"]) == ("20x28", 35, 70)
    assert sample.main([*common, "--shape=20x30"]) == 2
    assert "must be multiples of 4 pixels (autoencoder 1 x patch 4); the nearest is 20x32" in capsys.readouterr().err
    assert sample.main([*common, "--spacing=leading"]) == 2
    assert "spacing='leading' has no effect with flow.path='rectified'" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluation_writes_its_figures(workdir, capsys):
    assert evaluate.main(["evaluate", f"--workdir={workdir}", "--suite=shapes:images_per_task=2"]) == 0
    figures = json.loads((workdir / "eval_shapes.json").read_text())
    assert set(figures["parts"]["tasks"]) == {
        "single_object",
        "two_object",
        "counting",
        "colors",
        "position",
        "color_attr",
    }
    assert figures["n"] == 12
    assert figures["score"] == pytest.approx(np.mean(list(figures["parts"]["tasks"].values())))
    assert re.search(r"mean +12 ", capsys.readouterr().out)
    assert (workdir / "eval_shapes.png").exists()


@pytest.mark.parametrize(
    ("entry", "arguments", "message"),
    [
        (main, [], "--config=FILE is needed"),
        (main, ["--config=configs/shape.py"], "did you mean configs/shapes.py"),
        (main, ["--config=configs/shapes.py"], "--workdir=DIR is needed"),
        (main, [SMOKE, "--workdir=a\udcff"], "main: a\\xff is no UTF-8 text, which the path of a run must be"),
        (evaluate, ["--workdir=a\udcff"], "a\\xff is no UTF-8 text, which the path of a run must be"),
        (main, [SMOKE, "--config.optimizer.lr=1"], "learning_rate, momentum, name"),
        (main, [SMOKE, "--config.train.steps=many", "--workdir=x"], "--config.train.steps=many"),
        (main, [SMOKE, "--config.train.steps=0", "--workdir=x"], "must be at least 1"),
        (main, [SMOKE, "--config.moe.group_size=100", "--workdir=x"], "groups of 100 tokens do not divide"),
        (main, [SMOKE, "--config.moe.capacity_factor=0.001", "--workdir=x"], "capacity C = group size"),
        (main, [SMOKE, "--config.mesh.data=3", "--workdir=x"], "covers 3 devices, but 8 are here"),
        (main, [SMOKE, "--config.optimizer.name=moun", "--workdir=x"], "did you mean muon?"),
        (main, [SMOKE, "--config.optimizer.eps=nan", "--workdir=x"], "must be a finite number"),
        (
            main,
            [SMOKE, "--config.eval.suites=('shape',)", "--workdir=x"],
            "there is no suite 'shape' (did you mean shapes?)",
        ),
        (main, [SMOKE, "--config.text.encoder=cached", "--workdir=x"], "needs 'tower'"),
        (main, ["--config", "configs/shape.py"], "did you mean configs/shapes.py"),
        (main, ["--config=configs"], "configs is a folder"),
        (main, ["--config="], "--config=FILE is needed"),
        (main, ["--config=README.md"], "it is not a Python file"),
        (main, ["--config=configs/m_64e.py", "--workdir=x"], "so that their product is 8"),
        (
            main,
            ["--config=configs/m_64e.py", "--workdir=x", "--config.mesh.expert=8"],
            "trains on cached latents and text embeddings",
        ),
        (
            main,
            [SMOKE, *EIGHT, "--config.data.source=folder", "--config.data.path=no", "--workdir=x"],
            "no data set at",
        ),
        (sample, ["--workdir=nowhere", "--out=x", "--prompt=a"], "nowhere is no workdir of a run"),
        (sample, ["--workdir=nowhere", "--out=x"], "nothing to draw"),
        (sample, ["--workdir=nowhere", "--out=x", "--prompt= "], "nothing to draw"),
        (sample, ["--workdir=nowhere", "--out=x", "--prompt=a\udcff"], "no valid Unicode"),
        (sample, ["--workdir=nowhere", "--out=x", "--prompt=a", "--shape=384"], "--shape=384: give height x width"),
        (sample, ["--workdir=nowhere", "--out=x", "--prompt=a", "--shape=0x64"], "give height x width in pixels"),
        (sample, ["--workdir=nowhere", "--out=x", "--prompt=a", "--seed=-1"], "[0, 4294967295]"),
        (evaluate, ["--workdir=nowhere", "--seed=4294967296"], "[0, 4294967295]"),
        (convert, ["--upcycle", "--seed=4294967296"], "[0, 4294967295]"),
        (prepare, ["--source=shapes", "--out=x", "--seed=4294967296"], "[0, 4294967295]"),
        (evaluate, ["--workdir=nowhere"], "nowhere is no workdir of a run"),
    ],
)
def test_a_mistake_ends_with_one_message(entry, arguments, message, capsys):
    assert entry.main(["program", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_sampling_leaves_no_picture_of_an_earlier_call(workdir, tmp_path):
    common = ["sample", f"--workdir={workdir}", "--steps=1", "--sampler=euler", f"--out={tmp_path / 'out'}"]
    assert sample.main([*common, "--prompt=a red circle", "--num=3"]) == 0
    assert sample.main([*common, "--prompt= a blue star ", "--num=1", "--mesh=1,2,4,1"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["00000_0000.png", "sheet.png"]
    facts = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert facts["prompts"] == ["a blue star"] and facts["mesh"] == {"data": 1, "fsdp": 2, "expert": 4, "tensor": 1}
    assert {"dtype", "prediction", "versions", "devices", "config"} <= set(facts)
    assert sample.main([*common, "--prompt=a", "--mesh=8"]) == 2


@pytest.mark.slow
def test_before_the_first_checkpoint_settings_may_change(workdir, tmp_path, capsys):
    """A run whose first loss was not finite goes on in its workdir once the cause is mended."""
    common = ["main", SMOKE, f"--workdir={tmp_path / 'run'}", f"--config.data.path={workdir.parent / 'data'}"]
    common += ["--config.mesh.data=8", "--config.model.num_blocks=2", "--config.train.steps=2"]
    common += ["--config.optimizer.schedule=constant"]
    # What compiles soon.
    common += ["--config.moe.routing=dense", "--config.moe.num_experts=0", "--config.optimizer.name=adamw"]
    assert main.main([*common, "--config.optimizer.learning_rate=1e30"]) == 2
    assert "There is no checkpoint yet" in capsys.readouterr().err
    assert main.main([*common, "--config.optimizer.learning_rate=1e-3"]) == 0
    capsys.readouterr()
    shorter = [a.replace("train.steps=2", "train.steps=1") for a in common]
    assert main.main([*shorter, "--config.optimizer.learning_rate=1e-3"]) == 0
    assert "nothing to train: step 2 is past --config.train.steps=1" in capsys.readouterr().out
    assert main.main([*common, "--config.optimizer.learning_rate=1e-2"]) == 2
    assert "optimizer.learning_rate: 0.001 -> 0.01" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_cached_latents_and_embeddings_train_on_random_ones(tmp_path, capsys):
    arguments = ["main", "--config=configs/m_64e.py:smoke", f"--workdir={tmp_path / 'run'}", *EIGHT]
    arguments += ["--config.data.source=synthetic", "--config.data.space=latents", "--config.data.channels=4"]
    arguments += ["--config.text.encoder=cached", "--config.text.width=48", "--config.train.steps=2"]
    assert main.main(arguments) == 0
    assert "step 2/2  loss" in capsys.readouterr().out
    assert sample.main(["sample", f"--workdir={tmp_path / 'run'}", "--prompt=a", f"--out={tmp_path / 'o'}"]) == 2
    assert "pictures need their autoencoder" in capsys.readouterr().err


@pytest.mark.slow
def test_data_prepared_otherwise_are_refused(workdir, tmp_path, capsys):
    data = f"--config.data.path={workdir.parent / 'data'}"
    arguments = ["main", SMOKE, data, f"--workdir={tmp_path / 'run'}", *EIGHT, "--config.data.options.train=300"]
    assert main.main(arguments) == 2
    assert "has train 256 instead of 300" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_suite_that_does_not_exist(workdir, capsys):
    assert evaluate.main(["evaluate", f"--workdir={workdir}", "--suite=shape"]) == 2
    assert "(did you mean shapes?); choose one of check, " in capsys.readouterr().err
