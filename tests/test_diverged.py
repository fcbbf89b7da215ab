"""Pictures whose numbers are not finite are drawn grey and counted, wherever pictures are drawn."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ec_dit import sample
from ec_dit.core.stopping import StopSignal
from ec_dit.runs.evaluation import Scorer
from ec_dit.runs.grid import SampleGrid
from ec_dit.runs.references import References
from ec_dit.runs.subjects import RunSubject
from ec_dit.runs.workdir import Workdir
from ec_dit.sampling import generator
from ec_dit.system.painter import Painter
from tests import helpers
from tests.test_convert import random_run

PROMPTS = ["a", "b", "c", "d", "e"]
TOLD = "2 of 5 images came out with numbers that are not finite and are plain grey"


@pytest.fixture
def diverging(monkeypatch):
    """Latents without a model: of a batch the second has one nan, the fourth is infinite; the rest are noise."""

    def diverge(graphdef, settings, params, noise, text, null_text):
        return noise.at[1, 0, 0, 0].set(jnp.nan).at[3].set(jnp.inf)

    monkeypatch.setattr(generator, "sample", diverge)
    return helpers.make_system(helpers.tiny_config("dense", log__prompts=tuple(PROMPTS)), jax.devices()[:1])


def test_they_are_grey_and_counted_and_the_rest_is_as_ever(diverging):
    draw = Painter(diverging).generator()
    made = draw(None, PROMPTS, range(5), seed=3)
    noise_BYXZ = np.stack([generator.image_noise(3, p, i, (8, 8, 3)) for i, p in enumerate(PROMPTS)])
    expected = np.clip(np.round((noise_BYXZ + 1) * 127.5), 0, 255)
    expected[[1, 3]] = 128
    np.testing.assert_array_equal(made, expected)
    assert (draw.made, draw.broken) == (5, 2)  # not what fills the batch up
    assert draw.warning.startswith(TOLD)
    assert not Painter(diverging).generator().warning


def test_sample_grids_tell(diverging, tmp_path):
    said, sheets = [], []

    class Writer:
        def image(self, step, name, image):
            sheets.append(image)

    class State:
        ema = None

    grid = SampleGrid(References(diverging, Workdir(str(tmp_path))), Writer(), StopSignal(), said.append)
    for step in (10, 20):  # each of itself
        grid(step, State)
    assert len(sheets) == 2
    assert [line.split(" (")[0] for line in said] == [
        f"samples of step {step}: {TOLD}: the model has diverged" for step in (10, 20)
    ]


def test_evaluation_tells(diverging, tmp_path):
    said = []
    references = References(diverging, Workdir(str(tmp_path)))
    subject = RunSubject(references, tmp_path / "pictures", replace=True)
    score = Scorer(helpers.PlainSuite(prompts=tuple(PROMPTS)), subject, tmp_path, said.append)
    for step in (7, 8, 8):  # each of itself, the last from pictures that are there
        score(subject.at(None, step))
        assert json.loads((tmp_path / "eval_helpers.json").read_text())["choices"]["images_plain_grey"] == 2
    assert sum(line.startswith(f"2 of {len(PROMPTS)} pictures are plain grey: ") for line in said) == 3


@pytest.mark.slow
def test_sampling_tells(diverging, tmp_path, capsys):
    random_run(tmp_path / "run", "dense")
    words = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--num=1"]
    assert sample.main(["sample", *words, *(f"--prompt={prompt}" for prompt in PROMPTS)]) == 0
    assert TOLD in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["images_not_finite"] == 2
    assert (np.asarray(Image.open(tmp_path / "out" / "00003_0000.png")) == 128).all()
