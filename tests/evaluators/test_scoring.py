"""Suites while a run trains: the data they see, their schedule and figures, and what a kill or SIGTERM makes of them.

The model is a stand-in, two numbers: after step n its average is n, and it draws pictures of the grey 10 n.
"""

import io
import json
import os
import re
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ec_dit import evaluators
from ec_dit.core import sharding
from ec_dit.core.errors import UserError
from ec_dit.data import dataset
from ec_dit.evaluators import registry
from ec_dit.flow.loss import LEVELS
from ec_dit.runs import feed, training
from ec_dit.runs.evaluation import Scorer
from ec_dit.runs.references import References
from ec_dit.runs.subjects import RunSubject
from ec_dit.runs.workdir import Workdir
from ec_dit.sampling.generator import Generator
from ec_dit.system import step as training_step
from ec_dit.train.metrics import read_metrics
from ec_dit.train.state import TrainState
from tests import helpers
from tests.evaluators.more import add_suites

ROOT = Path(__file__).parents[2]
STEPS, SUITES = 5, ("distance:every=2,images=6", "distance:split=novel", "distance:split=train,every=3,images=1")


class Killed(BaseException):
    """Stands for SIGKILL: nothing that catches what fails sees it."""


@pytest.fixture(scope="module")
def c(tmp_path_factory):
    """A config with its data set: a dozen scenes."""
    c = helpers.tiny_config("dense", model__num_blocks=1, train__steps=STEPS)
    options = {"image_size": 48, "train": 16, "validation": 6, "novel": 4}
    every = {
        "checkpoint__every": 2,
        "checkpoint__asynchronous": False,
        "log__every": 1,
        "log__validate_every": 0,
        "log__sample_every": 0,
        "sample__layout": "mesh",  # parameters are of no model, and stay as they are
    }
    path = str(tmp_path_factory.mktemp("scoring") / "data")
    c = helpers.change(c, data__path=path, data__workers=0, data__options=options, **every)
    feed.open_data(c, print)
    return c


@pytest.fixture(scope="module")
def system(c):
    return helpers.make_system(c)


@pytest.fixture
def events(monkeypatch, system):
    """Whatever a test puts in here happens when a batch of that step is drawn: {(step, start of the batch): event}."""
    happening = {}

    def init_state(*_):
        numbers = {"w": jnp.zeros(2)}
        return TrainState(jnp.int32(0), jax.random.key(0), numbers, numbers, ())

    def abstract_state(system, tx):
        abstract = jax.eval_shape(init_state)
        return abstract, jax.tree.map(lambda _: sharding.replicated(system.mesh), abstract)

    def step_fn(system, tx, shardings):
        metrics = {name: jnp.float32(1) for name in ("loss", "grad_norm", "param_norm")}
        metrics |= {"level_sum": jnp.zeros(LEVELS), "level_count": jnp.zeros(LEVELS)}

        def step(state, batch, frozen):
            done = state.step + 1
            return state._replace(step=done, ema={"w": jnp.full(2, done, jnp.float32)}), metrics

        return step

    def batches(self, params, prompts, indices, seed):
        step = int(params["w"][0])
        assert [prompts[:i].count(prompt) for i, prompt in enumerate(prompts)] == indices
        for start in range(0, len(prompts), 4):
            happening.pop((step, start), lambda: None)()
            part = slice(start, min(start + 4, len(prompts)))
            yield part, np.full((part.stop - start, 8, 8, 3), 10 * step, np.uint8)

    add_suites(monkeypatch)
    monkeypatch.setattr(training, "peak_flops", lambda device: (1e12, "made up"))
    for name, function in (
        ("init_state", init_state),
        ("abstract_state", abstract_state),
        ("make_train_step", step_fn),
    ):
        monkeypatch.setattr(training_step, name, function)
    monkeypatch.setattr(training, "make_system", lambda *_, **__: system)
    monkeypatch.setattr(Generator, "batches", batches)
    return happening


def run(c, path, suites=SUITES):
    """(its fingerprint, what it said)."""
    said = []
    return training.run(helpers.change(c, eval__suites=suites), str(path), said.append), said


def figures(path):
    """{step: the figures of suites}, of all steps that have any."""
    rows = {row["step"]: {k: v for k, v in row.items() if k.startswith("eval/")} for row in read_metrics(str(path))}
    return {step: values for step, values in rows.items() if values}


def lines(path):
    """(step, name) of every headline in the order of the file."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], name) for row in rows for name in row if name.endswith("/score")]


DUE = [
    *[(2, "eval/distance/score"), (3, "eval/distance_train/score"), (4, "eval/distance/score")],
    *[(5, f"eval/distance{which}/score") for which in ("", "_novel", "_train")],
]


def by_hand(c, split, count, grey):
    """Distances of the mean colours of the stored pictures, scaled down by PIL, from a grey."""
    records = dataset.open(c.data.path)[split]
    real = [Image.open(io.BytesIO(records[i].image)).resize((8, 8), Image.Resampling.BOX) for i in range(count)]
    return [np.linalg.norm(np.mean(np.asarray(image, float), (0, 1)) - grey) for image in real]


def test_figures_are_of_their_steps_and_of_the_data_of_the_run(c, events, tmp_path):
    fingerprint, said = run(c, tmp_path)
    assert fingerprint
    assert lines(tmp_path) == DUE
    found = figures(tmp_path)
    for step, label, split, count in ((2, "", "validation", 6), (5, "", "validation", 6), (5, "_novel", "novel", 4)):
        expected = by_hand(c, split, count, 10 * step)
        values = [found[step][f"eval/distance{label}/{name}"] for name in ("score", "extremes/far", "extremes/near")]
        np.testing.assert_allclose(values, [np.mean(expected), max(expected), min(expected)], atol=3)
    last = json.loads((tmp_path / "eval_distance_novel.json").read_text())
    assert (last["choices"]["step"], last["score"]) == (5, found[5]["eval/distance_novel/score"])
    assert (tmp_path / "eval_distance.png").exists()
    assert "suite distance_train: step 3, ema, heun, 3 steps, guidance " in "\n".join(said)


def test_what_is_cut_short_or_missing_is_made_up_for_and_nothing_is_done_twice(c, events, tmp_path):
    _, unbroken = run(c, tmp_path / "whole"), figures(tmp_path / "whole")

    events[2, 4] = lambda: os.kill(os.getpid(), signal.SIGTERM)  # in the second batch of the first suite
    _, said = run(c, tmp_path / "run")
    assert lines(tmp_path / "run") == [] and "stopped by SIGTERM after step 2 of 5" in said[-1]

    def kill():
        raise Killed

    events[3, 0] = kill  # which leaves the checkpoint of step 2
    with pytest.raises(Killed):
        run(c, tmp_path / "run")
    assert lines(tmp_path / "run") == DUE[:1]

    events[5, 0] = kill  # in the last step, of which there is a checkpoint
    with pytest.raises(Killed):
        run(c, tmp_path / "run")
    for again in (run, run):
        assert again(c, tmp_path / "run")[0]
        assert lines(tmp_path / "run") == DUE
    assert figures(tmp_path / "run") == unbroken


def test_a_suite_that_is_added_to_a_finished_run_scores_its_end(c, events, tmp_path):
    run(c, tmp_path, ())
    run(c, tmp_path, ("distance",))
    assert lines(tmp_path) == [(5, "eval/distance/score")]


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("distance:split=hidden", "suite distance: the data of source shapes have no split 'hidden'"),
        ("emoji_only", "suite emoji_only scores models trained on the emoji data, not on shapes"),
    ],
)
def test_what_does_not_fit_the_data_says_so_before_the_first_step(c, events, tmp_path, suite, message):
    unnamed = helpers.change(c, data__source="", data__options={})
    with pytest.raises(UserError, match=message):
        run(unnamed, tmp_path, (suite,))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_on_synthetic_data_has_none(tmp_path):
    references = References(None, Workdir(str(tmp_path)))
    assert (references.source, references.splits) == ("synthetic", ())
    with pytest.raises(UserError, match="has no data set"):
        references.examples("train", 1)


def test_another_data_set_in_the_place_of_the_runs_is_refused(c, tmp_path):
    workdir = Workdir(str(tmp_path))
    data = {"path": c.data.path, "fingerprint": "another", "report": {"source": "shapes"}}
    workdir.fill(c, None, data)
    with pytest.raises(UserError, match=r"is not the one that the run in .* was trained on"):
        References(None, workdir).examples("train", 1)


def test_a_finished_run_is_scored_without_its_data_open(c, system, events, tmp_path):
    """As `ec_dit.evaluate` does it: the workdir alone knows where the data are."""
    workdir = Workdir(str(tmp_path))
    found = dataset.open(c.data.path)
    workdir.fill(c, None, {"path": c.data.path, "fingerprint": found.fingerprint, "report": {"source": "shapes"}})
    subject = RunSubject(References(system, workdir), tmp_path / "pictures")
    score = Scorer(registry.parse("distance:images=2"), subject, tmp_path, print)
    values = score(subject.at({"w": np.full((2,), 7.0)}, 70))
    assert values["score"] == pytest.approx(np.mean(by_hand(c, "validation", 2, 70)), abs=3)
    assert json.loads((tmp_path / "eval_distance.json").read_text())["choices"]["step"] == 70


def test_pictures_of_other_parameters_are_not_taken_for_these(events, system, tmp_path):
    subject = RunSubject(References(system, Workdir(str(tmp_path))), tmp_path / "pictures")
    score = Scorer(helpers.PlainSuite(prompts=("a",)), subject, tmp_path, print)
    score(subject.at({"w": np.ones(2)}, 1))
    with pytest.raises(UserError, match="drawn with other settings:\n  params_fingerprint: "):
        score(subject.at({"w": np.array([1.0, 2.0])}, 1))


def test_a_prompt_that_comes_again_is_another_picture_of_it(events, system, tmp_path):
    """What draws here compares the indices that it is given with a count of its own."""
    suite = helpers.PlainSuite(prompts=("a", "b", "a", "a", "b"))
    subject = RunSubject(References(system, Workdir(str(tmp_path))), tmp_path / "pictures")
    assert Scorer(suite, subject, tmp_path, print)(subject.at({"w": np.ones(2)}, 1)) == {"score": 0.0}


def test_the_suite_that_the_docs_show_scores(c, events, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(\"\"\".*?)```", (ROOT / "docs/evaluation.md").read_text(), re.DOTALL)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/colour.py").write_text(code)
    monkeypatch.setattr(evaluators, "__path__", [*evaluators.__path__, str(tmp_path / "more")])
    run(c, tmp_path / "run", ("colour:images=5",))
    expected = by_hand(c, "validation", 5, 10 * STEPS)
    found = figures(tmp_path / "run")[STEPS]
    np.testing.assert_allclose(found["eval/colour/score"], np.mean(expected), atol=3)
    np.testing.assert_allclose(found["eval/colour/largest"], max(expected), atol=3)
