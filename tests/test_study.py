"""The study harness: its statistics against formulas and loops, its files, and a whole study of tiny models."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from tests import xla

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from studying import figures, plan, runs, worker  # noqa: E402

STUDY = """
title = "Tiny"
question = "Does it run?"
config = "configs/shapes.py:smoke"
reference = "dense"
steps = 4
score_every = 2
seeds = [1, 2]
match = "none"
[common]
"train.batch_size" = 32
[variants.dense]
"moe.routing" = "dense"
"moe.num_experts" = 0
[variants.ec]
label = "expert choice"
also = ["fixed"]
"moe.record" = true
"sample.capacity" = "matched"
"""


def written(folder, text=STUDY):
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def line(study, step, loss):
    """Of metrics.jsonl: the same loss at every time, and so as the headline."""
    names = ("eval/val_loss/score", "eval/val_loss_in_groups/score")
    keys = [*names, *(f"eval/val_loss/times/{t}" for t in study.weights)]
    return json.dumps({"step": step, **dict.fromkeys(keys, loss)}) + "\n"


def test_the_headline_weighs_noise_levels_as_training_draws_them(tmp_path):
    study = plan.read(written(tmp_path))
    assert list(study.weights) == [f"t={(2 * i + 1) / 16:g}" for i in range(8)]
    flow = study.config_of(study.variants["dense"]).flow
    drawn = 1 / (1 + np.exp(-np.random.default_rng(0).normal(flow.time_mean, flow.time_std, 400_000)))
    shares = np.histogram(drawn, 8, (0, 1))[0] / len(drawn)
    np.testing.assert_allclose(list(study.weights.values()), shares, atol=2e-3)
    run = runs.main_runs(study, tmp_path, {"dense": 1.0}, (1,))[0]
    run.folder.mkdir(parents=True)
    losses = {f"eval/val_loss/times/t={(2 * i + 1) / 16:g}": float(i) for i in range(8)}
    (run.folder / "metrics.jsonl").write_text(json.dumps({"step": 4, **losses}) + "\n")
    assert run.curve() == {4: pytest.approx(float(shares @ np.arange(8)), abs=0.01)}


def test_means_have_students_intervals():
    found = figures.mean([1.0, 2.0, 4.0])
    assert found.value == pytest.approx(7 / 3)
    deviation = math.sqrt(sum((x - 7 / 3) ** 2 for x in (1, 2, 4)) / 2)
    assert found.half == pytest.approx(4.302653 * deviation / math.sqrt(3), rel=1e-6)  # the table's t of two degrees
    assert figures.mean([3.0]) == figures.Mean(3.0, pytest.approx(math.nan, nan_ok=True), 1)
    assert str(figures.mean([])) == ""


def test_differences_are_of_the_same_seeds():
    found = figures.difference({1: 1.1, 2: 2.4, 3: 9.0}, {1: 1.0, 2: 2.0, 4: 1.0})
    assert found.mean.value == pytest.approx(0.15) and found.mean.count == 2
    # t = mean / (deviation / sqrt 2) = 0.15 / 0.05 = 3; of one degree p = 1 - 2 atan(3) / pi.
    assert found.p == pytest.approx(1 - 2 * math.atan(3) / math.pi)
    assert "+15.0" in str(found)


def test_where_a_curve_reaches_a_loss():
    curve = {100: 3.0, 200: 2.0, 300: 1.0}
    assert figures.first_below(curve, 1.5) == 250
    assert figures.first_below(curve, 3.5) == 100
    assert figures.first_below(curve, 0.5) == math.inf


def test_p_values_of_a_table_by_hand():
    # In order .01, .03, .04: times 3, 2, 1, none less than the one before.
    assert figures.holm([0.04, math.nan, 0.01, 0.03]) == [
        pytest.approx(0.06),
        pytest.approx(math.nan, nan_ok=True),
        pytest.approx(0.03),
        pytest.approx(0.06),
    ]
    assert figures.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('reference = "dense"', 'reference = "dnse"', "none of dense, ec"),
        ("score_every = 2", "score_every = 3", "does not divide steps=4"),
        ("seeds = [1, 2]", "seds = [1, 2]", "'seds'"),
        ("seeds = [1, 2]", "seeds = 3", "seeds.* is 3, not"),
        ("seeds = [1, 2]", "seeds = [1, 1]", "give each once"),
        ("steps = 4", 'steps = "4"', "'steps' is a text, not a"),
        ("score_every = 2", "score_every = 0", "score_every must be at least 1"),
        ('match = "none"', 'match = "flop"', "match='flop': give one of flops"),
        ('match = "none"', 'suites = ["val_los"]', "val_los"),
        ('match = "none"', 'suites = ["val_loss:routed=training"]', "one of them must be val_loss"),
        ('match = "none"', 'suites = ["val_loss:every=2"]', "every=2 of val_loss:every=2: losses follow score_every"),
        ('match = "none"', 'suites = ["val_loss", "shapes:every=3"]', "every=3 of shapes.*must divide steps=4"),
        ('match = "none"', "sweep.rates = 0.5", "rates.* is 0.5, not"),
        ('match = "none"', "sweep.rates = [1.0, 1.0000001]", "each once"),
        ('match = "none"', "sweep.rates = [1.0, 2.0]", "steps=0 must be from 1"),
        ('also = ["fixed"]', 'also = "fixed"', "'also' is a text, not a list"),
        ('also = ["fixed"]', 'also = ["fixd"]', "also='fixd': give fixed or matched"),
        ('also = ["fixed"]', '"train.batch_size" = 8', "train.batch_size must be the same for all"),
        ("seeds = [1, 2]", "seeds = [1000]", "sweep's seed 1000"),
        ("steps = 4\n", "", "steps"),
        ('"moe.record" = true', '"moe.recrod" = true', "variant ec: there is no config key 'moe.recrod'"),
        ('"moe.record" = true', "", "variant ec: .*sample.capacity"),
        ('"moe.num_experts" = 0', '"moe.num_experts" = 8', "variant dense: .*moe.num_experts"),
        ('"moe.num_experts" = 0', '"moe.num_experts" = 0\n"moe.top_k" = 3', "variant dense: .*has no effect"),
        ("[common]", "[common", "tiny.toml: "),
    ],
)
def test_what_is_wrong_with_a_study_is_named(tmp_path, old, new, words):
    assert old in STUDY
    with pytest.raises(UserError, match=f"--study=.*{words}"):
        plan.read(written(tmp_path, STUDY.replace(old, new)))


def test_sizes_and_what_does_not_match(tmp_path):
    study = plan.read(written(tmp_path, STUDY.replace('match = "none"', 'match = "flops"\nwithin = 0.01')))
    dense, sparse = (plan.size_of(study, variant) for variant in study.variants.values())
    assert sparse.total > sparse.activated > dense.activated == dense.total
    assert plan.mismatches(study) == {"ec": pytest.approx(sparse.flops / dense.flops - 1)}


def test_the_least_loss_chooses_the_rate(tmp_path):
    text = STUDY + "[sweep]\nrates = [0.5, 1.0, 2.0]\nsteps = 2\n"
    study = plan.read(written(tmp_path, text))
    losses = {"dense_0.5": 3.0, "dense_1": 1.0, "dense_2": math.nan, "ec_0.5": 1.0, "ec_1": 2.0}
    for name, loss in losses.items():
        folder = tmp_path / "sweep" / name
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(line(study, 2, loss))
    assert runs.rates_of(study, tmp_path) == {"dense": 1.0}  # of the other, a run is missing
    (missing,) = (run for run in runs.sweep_of(study, tmp_path) if run.folder.name == "ec_2")
    missing.put_note(diverged=True)
    assert runs.rates_of(study, tmp_path) == {"dense": 1.0, "ec": 0.5}
    order = [(run.seed, run.variant.name) for run in runs.main_runs(study, tmp_path, {"dense": 1.0, "ec": 0.5}, (1, 2))]
    assert order == [(1, "dense"), (1, "ec"), (2, "dense"), (2, "ec")]


@pytest.mark.extra("notebook")
def test_a_run_is_done_with_all_scores_at_its_last_step(tmp_path):
    study = plan.read(written(tmp_path))
    run = runs.main_runs(study, tmp_path, {"dense": 1.0}, (1,))[0]
    run.folder.mkdir(parents=True)
    for text, done in (
        (json.dumps({"step": 4, "eval/val_loss/score": 1.0}) + "\n", False),
        (line(study, 4, 1.0), True),
    ):
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write(text)
        assert run.is_done == done
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(line(study, 6, 1.0))
    assert not run.is_done  # of a study with fewer steps than the run had


@pytest.mark.parametrize(("optimizer", "rates"), [("muon", ["0.02", "0.002"]), ("adamw", ["0.02"])])
def test_a_rate_of_the_sweep_times_all_that_are_used(tmp_path, optimizer, rates):
    text = STUDY.replace("[common]", f'[common]\n"optimizer.name" = "{optimizer}"')
    if optimizer == "adamw":
        text = text.replace(
            "[variants.dense]", '"optimizer.momentum" = 0.9\n"optimizer.decay" = 0.99\n[variants.dense]'
        )
    run = runs.main_runs(plan.read(written(tmp_path, text)), tmp_path, {"ec": 2.0}, (1,))[0]
    found = [each.partition("=")[2] for each in runs.training(run) if "learning_rate=" in each]
    assert found == rates  # the config's are 0.01, and 0.001 of Muon's Adam
    assert run.suites == run.study.suites and runs.training(run)[0] == "--config=configs/shapes.py:smoke"


def test_runs_of_other_settings_are_refused(tmp_path):
    study = plan.read(written(tmp_path))
    run = runs.main_runs(study, tmp_path, {"dense": 1.0}, (1,))[0]
    run.put_note(arguments=runs.training(run))
    runs.check([run])
    changed = plan.read(written(tmp_path, STUDY.replace('"train.batch_size" = 32', '"train.batch_size" = 64')))
    with pytest.raises(UserError, match=r"dense_seed1 was begun with other settings.*train\.batch_size=64"):
        runs.check(runs.main_runs(changed, tmp_path, {"dense": 1.0}, (1,)))


def four_runs(tmp_path):
    return runs.main_runs(plan.read(written(tmp_path)), tmp_path, {"dense": 1.0, "ec": 1.0}, (1, 2))


def test_so_many_runs_go_side_by_side(tmp_path, monkeypatch):
    both, at_once, most = threading.Barrier(2, timeout=60), set(), []

    def start(self, module, arguments, label=""):
        at_once.add(label)
        most.append(len(at_once))
        both.wait()  # for the other one: broken where it never comes
        at_once.discard(label)
        both.wait()
        return True

    monkeypatch.setattr(worker, "_asked", lambda: "a machine")
    monkeypatch.setattr(worker.Worker, "_start", start)
    monkeypatch.setattr(runs.Run, "missing", [])
    assert worker.Worker(math.inf, print, tmp_path / "programs", 2).do(four_runs(tmp_path))
    assert len(most) == 4 and max(most) == 2
    cores = worker.shares(2)
    if len(os.sched_getaffinity(0)) > 1:
        assert all(cores) and not cores[0] & cores[1]
    assert worker.shares(1) == [set()]


def test_when_the_time_is_up_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(worker.Worker, "_start", lambda *_: pytest.fail("begun"))
    assert not worker.Worker(time.monotonic(), print, tmp_path / "programs").do(four_runs(tmp_path))


def test_an_error_of_one_run_ends_those_beside_it(tmp_path, monkeypatch):
    begun = []

    def start(self, module, arguments, label=""):
        begun.append(label)
        if label.startswith("ec"):
            raise UserError("no room")
        end = time.monotonic() + 60
        while not self._is_over() and time.monotonic() < end:
            time.sleep(0.01)
        return False

    monkeypatch.setattr(worker, "_asked", lambda: "a machine")
    monkeypatch.setattr(worker.Worker, "_start", start)
    before = time.monotonic()
    with pytest.raises(UserError, match="no room"):
        worker.Worker(math.inf, print, tmp_path / "programs", 2).do(four_runs(tmp_path))
    assert time.monotonic() - before < 30 and len(begun) == 2


@pytest.mark.extra("notebook")
def test_convergence_is_of_the_seeds_that_reach_the_least_loss(tmp_path):
    from studying import page

    study = plan.read(written(tmp_path))
    curves = {
        "dense": {1: {2: 1.0, 4: 0.8}, 2: {2: 0.7, 4: 0.9}},
        "ec": {1: {2: 0.8, 4: 0.5}, 2: {2: 0.9, 4: 0.8}, 3: {4: 0.1}},
    }
    for name, seeds in curves.items():
        for seed, curve in seeds.items():
            (run,) = (each for each in runs.main_runs(study, tmp_path, {name: 1.0}, (seed,)))
            run.folder.mkdir(parents=True)
            (run.folder / "metrics.jsonl").write_text("".join(line(study, *each) for each in curve.items()))
    found = [run for run in runs.main_runs(study, tmp_path, dict.fromkeys(curves, 1.0), (1, 2, 3)) if run.is_done]
    outcome = page.Outcome(study, found, [], {})
    assert outcome.convergence("ec") == "50 % (1 of 2)"


@pytest.mark.extra("notebook")
def test_a_sweep_is_shown_rate_by_rate_beside_the_reference(tmp_path):
    from studying import page

    text = STUDY.replace("[common]", "[sweep]\nrates = [0.5, 2.0]\nsteps = 2\n[common]")
    study = plan.read(written(tmp_path, text))
    losses = {("dense", 0.5): 2.0, ("dense", 2.0): 1.0, ("ec", 0.5): 1.5}
    swept = runs.sweep_of(study, tmp_path)
    for run in swept:
        if loss := losses.get((run.variant.name, run.rate)):
            run.folder.mkdir(parents=True)
            (run.folder / "metrics.jsonl").write_text(line(study, 2, loss))
    outcome = page.Outcome(study, [], swept, {})
    text = page.section(outcome, runs.rates_of(study, tmp_path), tmp_path, tmp_path / "study.md", "how")
    rows = [each for each in text.splitlines() if each.startswith("| ")]
    assert "| dense | 2.0000 | 1.0000 |" in rows
    assert "| expert choice | 1.5000 (-25.0 %) |  |" in rows
    assert not list(tmp_path.glob("*.png"))  # nothing but the sweep is there


def test_a_rise_is_over_the_least_loss_before(tmp_path):
    run = runs.main_runs(plan.read(written(tmp_path)), tmp_path, {"dense": 1.0}, (1,))[0]
    assert run.rise == 0
    run.folder.mkdir(parents=True)
    found = [{"step": step, "loss": loss} for step, loss in enumerate([3.0, 2.0, 2.5, 1.0, 1.1, 0.9], 1)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [*found, {"step": 7}]))
    assert run.rise == pytest.approx(0.25)


@pytest.mark.extra("notebook")
def test_a_section_is_replaced_and_the_rest_of_the_page_stays(tmp_path):
    from studying import page

    path = tmp_path / "study.md"
    path.write_text("# Studies\n\nwhat we found\n")
    page.put(path, "one", "first \\1")
    page.put(path, "two", "second")
    page.put(path, "one", "third")
    text = path.read_text()
    assert "what we found" in text and "first" not in text
    assert text.index("third") < text.index("second")


@pytest.mark.slow
@pytest.mark.extra("notebook")
def test_a_whole_study_and_its_second_call(tmp_path):
    """Also a first one that is told to stop."""
    out, at = tmp_path / "runs", tmp_path / "docs" / "study.md"
    at.parent.mkdir()
    small = {"model.num_blocks": 2, "text.tower_blocks": 1}
    small |= {f"data.options.{split}": count for split, count in (("train", 64), ("validation", 32), ("novel", 16))}
    small |= {"optimizer.name": '"adamw"', "optimizer.momentum": 0.9, "optimizer.decay": 0.99}  # Muon compiles long
    few = "\n".join(f'"{key}" = {value}' for key, value in small.items())
    text = STUDY.replace("[common]", f'[common]\n{few}\n"data.path" = "{tmp_path / "data"}"')
    command = [sys.executable, str(ROOT / "benchmarks" / "study.py"), f"--study={written(tmp_path, text)}"]
    command += [f"--out={out}", f"--page={at}", "--seeds=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": xla.flags(1)}

    def call(*more):
        done = subprocess.run(
            [*command, *more],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline().startswith("[1 of 2] dense, seed 1")
        time.sleep(2)  # in the middle of a command
        process.terminate()
        assert process.stdout.read().endswith("0 runs are done; the same command goes on\n")
    assert process.returncode == 0
    assert not at.exists()
    told = call("--jobs=2")
    assert "2 runs are done\n" in told and "dense, seed 1, rate x 1: done: " in told
    assert "[1 of" not in call()
    shown = at.read_text()
    assert "| dense |" in shown and "| expert choice, capacity fixed |" in shown and "+- nan" not in shown
    for plot in ("loss", "levels"):
        assert (at.parent / "images" / f"study_tiny_{plot}.png").stat().st_size > 10_000
        assert f"(images/study_tiny_{plot}.png)" in shown
