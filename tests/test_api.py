"""`import ec_dit` as a notebook uses it: cheap to import, the entry point's pictures, routes as plain NumPy has them."""

import inspect
import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import ec_dit
from ec_dit import sample
from ec_dit.config import specs
from ec_dit.conversion import writing
from ec_dit.conversion.model import Model
from ec_dit.runs import loaded
from ec_dit.sampling.generator import image_noise
from ec_dit.system.model import make_system
from tests import helpers, plain
from tests.test_convert import build_tokenizer

PROMPT, EXPERTS = "a red circle", 8


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """(kind of routing, blocks) -> the folder of a converted model of random numbers, made once."""
    made = {}

    def folder(kind, blocks=1):
        if (kind, blocks) not in made:
            place = tmp_path_factory.mktemp("run")
            sparse = {"moe__first": blocks - 1} if kind != "dense" else {}
            config = helpers.tiny_config(kind, model__num_blocks=blocks, sample__sampler="euler", **sparse)
            system = make_system(config, build_tokenizer(place), jax.devices()[:1])
            shapes = system.shapes()
            rng = np.random.default_rng(0)
            params = jax.tree.map(lambda s: jax.numpy.asarray(rng.normal(0, 0.2, s.shape), s.dtype), shapes)
            writing.to_workdir(Model(system, params, 7), str(place / "run"))
            made[kind, blocks] = place / "run"
        return str(made[kind, blocks])

    return folder


def load(folder, **changes):
    """One device alone: what is drawn on eight would be filled up to eight."""
    one = {"mesh.data": 1, "mesh.fsdp": 1, "mesh.expert": 1, "mesh.tensor": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
        return ec_dit.load(folder, changes=one | changes, say=lambda _: None)


def test_importing_the_package_costs_nothing():
    check = (
        "import sys, ec_dit; heavy = {'jax', 'numpy', 'absl', 'flax'} & set(sys.modules); assert not heavy, heavy; "
        "assert {'load', 'Run'} <= set(dir(ec_dit)); import ec_dit.core.errors; assert ec_dit.UserError.__name__ == 'UserError'; "
        "assert not {'jax', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
    assert ec_dit.load is loaded.load and ec_dit.Run is loaded.Run
    for name in ec_dit.__all__:
        assert inspect.getdoc(getattr(ec_dit, name))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        ec_dit.lod  # noqa: B018


def test_shapes_count_in_latent_pixels():
    assert loaded.latent_shape((384, 640), 8, 2) == (48, 80)
    with pytest.raises(
        ec_dit.UserError, match=r"multiples of 16 pixels \(autoencoder 8 x patch 2\); the nearest is 384x640"
    ):
        loaded.latent_shape((380, 640), 8, 2)


@pytest.mark.slow
def test_pictures_are_those_of_the_entry_point_bit_for_bit(make, tmp_path):
    folder = make("expert_choice", 2)
    arguments = [
        "--prompt=a red circle",
        "--prompt=two blue squares",
        "--num=2",
        "--seed=3",
        "--steps=2",
        "--guidance=2",
    ]
    out = tmp_path / "out"
    assert sample.main(["sample", f"--workdir={folder}", f"--out={out}", "--shape=12x20", *arguments]) == 0
    theirs = [np.asarray(Image.open(path)) for path in sorted(out.glob("0*.png"))]
    run = ec_dit.load(folder, changes={"sample.guidance": 2.0})
    drawn = run.draw([PROMPT, "two blue squares"], num=2, seed=3, shape=(12, 20), steps=2)
    assert drawn.dtype == np.uint8 and drawn.shape == (4, 12, 20, 3)
    np.testing.assert_array_equal(drawn, theirs)
    assert len({image.tobytes() for image in drawn}) == 4
    np.testing.assert_array_equal(run.draw(PROMPT, seed=3, shape=(12, 20), steps=2)[0], drawn[0])


def expected_routes(run, kind, group, steps, guidance, seed):
    """Gates (U, S, E) of a model of one block, by float64 NumPy, NaN where an expert did not take a token."""
    spec, params = specs.dit_spec(run.config), jax.device_get(run.params)
    model = nnx.merge(run.system.graphdef, run.params)
    text = model.encode(run.captions([PROMPT, ""]))
    x = image_noise(seed, PROMPT, 0, (8, 8, 3)).astype(np.float64)
    times = np.linspace(1, 0, steps + 1)
    routes = []
    for t, t_next in itertools.pairwise(times):
        out, ((scores_BSE, _),) = plain.dit(spec, params["dit"], (np.stack([x, x]), [t, t], text.tokens, text.mask_BT))
        together = scores_BSE.reshape(-1, EXPERTS) if group == "pair" else scores_BSE[0]
        choose = {"expert_choice": plain.algorithm_1, "token_choice": plain.gshard_top2}[kind]
        gate_SE = np.full((len(together), EXPERTS), np.nan)
        for token, expert, shared in choose(together, len(together) * 2 // EXPERTS):
            share = together[token, shared].sum() if shared else 1
            gate_SE[token, expert] = together[token, expert] / share
        routes.append(gate_SE[:16])
        guided = out[1] + guidance * (out[0] - out[1])
        x = x + (t_next - t) * np.block(
            [[[guided[4 * i + j].reshape(2, 2, 3)] for j in range(4)] for i in range(4)]
        ).reshape(8, 8, 3)
    return np.array(routes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "group", "steps"),
    [
        ("expert_choice", "image", 2),
        ("expert_choice", "pair", 1),
        ("token_choice", "image", 1),
        ("token_choice", "pair", 1),
    ],
)
def test_routes_equal_a_plain_top_k(make, kind, group, steps):
    run = load(make(kind))
    routes = run.routing(PROMPT, seed=5, steps=steps, guidance=2.0, group_size=group)
    expected_USE = expected_routes(run, kind, group, steps, 2.0, 5)
    assert routes.gate_LUYXE.shape == routes.taken_LUYXE.shape == (1, steps, 4, 4, EXPERTS)
    np.testing.assert_array_equal(routes.taken_LUYXE.reshape(expected_USE.shape), ~np.isnan(expected_USE))
    np.testing.assert_allclose(
        routes.gate_LUYXE.reshape(expected_USE.shape), np.nan_to_num(expected_USE), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(routes.time_U, np.linspace(1, 0, steps + 1)[:-1], rtol=1e-6)
    assert routes.block_L.tolist() == [0]
    assert 0 < routes.taken_LUYXE.mean() < 1


@pytest.mark.slow
def test_the_routes_are_those_of_the_picture_that_is_drawn(make):
    """Heun evaluates twice a step, but once in the last; guidance acts in a part of the times alone."""
    run = load(make("expert_choice", 2))
    how = {"steps": 3, "sampler": "heun", "guidance_interval": (0.2, 0.7)}
    routes = run.routing(PROMPT, index=1, seed=4, **how)
    np.testing.assert_allclose(routes.time_U, [1, 2 / 3, 2 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    assert routes.block_L.tolist() == [1]
    image_YXZ = run.draw([PROMPT], num=2, seed=4, batch_size=2, **how)[1]
    assert np.abs(routes.image_YXZ.astype(int) - image_YXZ).max() <= 1
    # Evaluations without guidance route the image alone: every expert takes 16 x 2 / 8 tokens.
    np.testing.assert_array_equal(routes.taken_LUYXE[0, 0].sum((0, 1)), np.full(EXPERTS, 4))


@pytest.mark.slow
def test_routes_are_the_same_on_eight_devices(make):
    folder = make("expert_choice", 2)
    one = load(folder).routing(PROMPT, steps=2, guidance=2.0)
    eight = ec_dit.load(folder, changes={"mesh.expert": 4, "mesh.fsdp": 2}).routing(PROMPT, steps=2, guidance=2.0)
    np.testing.assert_array_equal(one.taken_LUYXE, eight.taken_LUYXE)
    np.testing.assert_allclose(one.gate_LUYXE, eight.gate_LUYXE, atol=1e-5)


@pytest.mark.slow
def test_mistakes_are_told(make):
    run = load(make("dense"))
    for call, message in [
        (lambda: run.routing(PROMPT), "this model is dense"),
        (lambda: run.draw([]), "nothing to draw"),
        (lambda: run.draw(PROMPT, step=3), r"no key sample.step \(did you mean sample.steps\?\)"),
        (lambda: run.draw(PROMPT, steps="3"), "sample.steps is '3', but must be a whole number"),
        (lambda: run.draw(PROMPT, spacing="leading"), "has no effect with flow.path='rectified'"),
        (lambda: run.draw(PROMPT, shape=(8, 9)), "both sides must be multiples of 2 pixels"),
        (lambda: ec_dit.load("nowhere"), "nowhere is no workdir of a run"),
    ]:
        with pytest.raises(ec_dit.UserError, match=message):
            call()
