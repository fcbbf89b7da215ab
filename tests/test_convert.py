"""Models from and to the layouts that hubs publish, by the entry point: nothing is lost, and what is wrong is said."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from ec_dit import config, convert, main
from ec_dit.config import specs
from ec_dit.conversion import reading, writing
from ec_dit.core import settings
from ec_dit.core.tree import named_leaves
from ec_dit.data.batch import Text
from ec_dit.runs.workdir import Workdir
from ec_dit.sampling import generator
from ec_dit.system.model import make_system
from tests import helpers
from tests.pixart_folders import save_transformer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("convert")]

ONE = {"data": -1, "fsdp": 1, "expert": 1, "tensor": 1}
MANY = {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2}
PARTS = "--mesh=1,2,2,2"


def run(capsys, **flags):
    """(exit code, output, message)."""
    words = ["convert", *(f"--{name}={value}" for name, value in flags.items())]
    code = convert.main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def load(path, ema=True):
    workdir = Workdir(str(path))
    return workdir.load(workdir.config(), ema=ema, exact=True)


def assert_same(a, b, within=0.0):
    a, b = (dict(named_leaves(tree)) for tree in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=within, err_msg=name)


@pytest.fixture(scope="module")
def pixart(tmp_path_factory):
    """(diffusers' model, its folder, the workdir it became)."""
    folder = tmp_path_factory.mktemp("pixart")
    theirs = save_transformer(folder / "transformer", num_layers=4)
    words = ["--from=pixart", f"--path={folder / 'transformer'}", f"--out={folder / 'run'}", PARTS, "--text_length=7"]
    assert convert.main(["convert", *words]) == 0
    return theirs, folder / "transformer", folder / "run"


def inputs(images=2):
    """(noise, text, null text) for `pixart`."""
    rng = np.random.default_rng(0)
    noise_BYXZ = rng.standard_normal((images, 8, 8, 4), np.float32)
    text_BTM = rng.standard_normal((images, 7, 10), np.float32)
    mask_BT = np.arange(7) < np.array([[7], [3]])[:images]
    return noise_BYXZ, Text(text_BTM, mask_BT), Text(rng.standard_normal((7, 10), np.float32), np.arange(7) < 1)


@pytest.mark.extra("conformance")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddim"])
def test_sampling_equals_diffusers_pipeline(pixart, sampler):
    import torch
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PixArtAlphaPipeline

    theirs, _, run_folder = pixart
    workdir = Workdir(str(run_folder))
    sampling = {"sampler": sampler, "steps": 5, "guidance": 3.5, "spacing": "trailing"}
    c = settings.changed(workdir.config(), settings.prefixed("sample", sampling))
    system, params, _ = workdir.load(c)
    noise_BYXZ, text, null = inputs()
    made = generator.sample(system.graphdef, specs.sample_settings(c), params, noise_BYXZ, text, null)

    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler(**betas, clip_sample=False) if sampler == "ddim" else DPMSolverMultistepScheduler(**betas)
    pipeline = PixArtAlphaPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=theirs, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt=None,
        negative_prompt=None,
        num_inference_steps=5,  # diffusers strides by whole levels
        guidance_scale=3.5,
        height=64,
        width=64,
        latents=torch.from_numpy(noise_BYXZ.transpose(0, 3, 1, 2).copy()),
        prompt_embeds=torch.from_numpy(text.tokens),
        prompt_attention_mask=torch.from_numpy(text.mask_BT),
        negative_prompt_embeds=torch.from_numpy(np.broadcast_to(null.tokens, text.tokens.shape).copy()),
        negative_prompt_attention_mask=torch.from_numpy(np.broadcast_to(null.mask_BT, text.mask_BT.shape).copy()),
        use_resolution_binning=False,
        output_type="latent",
    ).images.numpy()
    spread = expected.std()  # a random network drives latents far from 1
    np.testing.assert_allclose(made / spread, expected.transpose(0, 2, 3, 1) / spread, rtol=1e-4, atol=1e-4)


@pytest.mark.extra("conformance")
def test_pixart_goes_back_bit_for_bit_and_loads_in_diffusers(pixart, tmp_path, capsys):
    from diffusers import PixArtTransformer2DModel

    theirs, folder, run_folder = pixart
    code, _, error = run(capsys, **{"from": "workdir"}, path=run_folder, to="diffusers", out=tmp_path / "back")
    assert code == 0, error
    before = load_file(folder / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "back" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    again = PixArtTransformer2DModel.from_pretrained(tmp_path / "back")
    for name, weight in theirs.state_dict().items():
        np.testing.assert_array_equal(weight.numpy(), again.state_dict()[name].numpy(), err_msg=name)


def random_run(path, routing, **overrides):
    """A workdir whose parameters are all random, as if it had been trained; what it holds."""
    c = helpers.tiny_config(routing, **overrides)
    system = make_system(c, build_tokenizer(path.parent))
    shapes = system.shapes()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jax.numpy.asarray(rng.normal(0, 0.2, s.shape), s.dtype), shapes)
    writing.to_workdir(reading.Model(system, params, 7, {"report": {"source": "shapes"}}), str(path))
    return params


def build_tokenizer(folder):
    from ec_dit.data.tokenizer import Tokenizer
    from ec_dit.preparation import vocabulary

    model = vocabulary.train(["a red circle", "two blue squares", "a green star and a pink moon"] * 5, 60)
    (folder / "tokenizer.model").write_bytes(model)
    return Tokenizer(model)


PIXART_LIKE = {
    "model__modulation": "adaln_single",
    "model__bias": True,
    "model__num_kv_heads": 4,
    "model__head_dim": 8,
    "model__qk_norm": False,
    "model__num_blocks": 4,
}


@pytest.mark.parametrize(
    ("shards", "routing"),
    [
        (2**31, "expert_choice"),
        pytest.param(4000, "dense", marks=pytest.mark.exhaustive),
        pytest.param(2**31, "dense", marks=pytest.mark.exhaustive),
        pytest.param(4000, "expert_choice", marks=pytest.mark.exhaustive),
    ],
)
def test_our_own_models_come_back_bit_for_bit(tmp_path, capsys, monkeypatch, routing, shards):
    monkeypatch.setattr(writing.export.write, "__defaults__", (shards,))
    params = random_run(tmp_path / "run", routing, model__num_blocks=5)
    flags = {
        "from": "workdir",
        "path": tmp_path / "run",
        "to": "safetensors",
        "out": tmp_path / "out",
        "mesh": "1,2,2,2",
    }
    code, _, error = run(capsys, **flags)
    assert code == 0, error
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert ("model.safetensors" in files) == (shards > 4000)
    flags = {"from": "safetensors", "path": tmp_path / "out", "out": tmp_path / "back", "mesh": "2,1,4,1"}
    code, _, error = run(capsys, **flags)
    assert code == 0, error
    system, back, step = load(tmp_path / "back")
    assert_same(params, back)
    assert step == 7
    assert system.tokenizer.model == (tmp_path / "tokenizer.model").read_bytes()
    assert Workdir(str(tmp_path / "back")).data_report() == {"source": "shapes"}


def test_a_dense_model_of_ours_goes_to_diffusers_and_back(tmp_path, capsys):
    params = random_run(tmp_path / "run", "dense", **PIXART_LIKE)
    flags = {"from": "workdir", "path": tmp_path / "run", "to": "diffusers", "out": tmp_path / "out"}
    code, output, error = run(capsys, **flags)
    assert code == 0, error
    assert "the text tower stays behind" in output
    assert "was not trained with PixArt's noise" in output
    code, _, error = run(capsys, **{"from": "pixart"}, path=tmp_path / "out", out=tmp_path / "back", text_length=8)
    assert code == 0, error
    system, back, _ = load(tmp_path / "back")
    assert_same(params["dit"], back["dit"])
    assert (system.config.flow.path, system.config.flow.prediction) == ("rectified", "velocity")


@pytest.mark.extra("conformance")  # whose fixture is diffusers' model
@pytest.mark.parametrize(
    ("like", "mesh"),
    [
        ("pixart", "1,2,4,1"),
        pytest.param("ours", "-1,1,1,1", marks=pytest.mark.exhaustive),
        pytest.param("pixart", "-1,1,1,1", marks=pytest.mark.exhaustive),
        pytest.param("ours", "1,2,4,1", marks=pytest.mark.exhaustive),
    ],
)
def test_an_upcycled_model_starts_as_the_dense_one(like, mesh, pixart, tmp_path, capsys):
    path = pixart[2] if like == "pixart" else tmp_path / "run"
    if like == "ours":
        random_run(path, "dense", model__num_blocks=4)
    flags = {"from": "workdir", "path": path, "upcycle": True, "experts": 8, "out": tmp_path / "grown", "mesh": mesh}
    code, output, error = run(capsys, **flags)
    assert code == 0, error
    found = json.loads((tmp_path / "grown" / "conversion.json").read_text())["upcycled"]["first_outputs"]
    everyone, fewer = found["every expert takes every token"], found["capacity factor 2"]
    assert everyone["relative"] < 1e-5
    assert everyone["untaken"] == 0
    # What is lost at a smaller capacity is what untaken tokens lose.
    assert 0 < fewer["untaken"] < 0.25
    assert 1e-3 < fewer["relative"] < 1
    assert f"tokens of no expert {fewer['untaken']:.1%}" in output
    system, params, step = load(tmp_path / "grown")
    assert (step, system.config.moe.gate, system.config.moe.num_experts) == (0, "normalized", 8)
    blocks = params["dit"]["stages"][0]["blocks"]
    assert np.asarray(blocks[1]["ffn"]["w_router_DE"]).std() > 0
    dense = load(path)[1]["dit"]["stages"][0]["blocks"][0]
    for expert in range(8):
        for ours, theirs in (("w_up_EDF", "w_up_DF"), ("w_down_EFD", "w_down_FD")):
            np.testing.assert_array_equal(blocks[1]["ffn"][ours][:, expert], dense["ffn"][theirs][1::2])
    np.testing.assert_array_equal(blocks[0]["ffn"]["w_up_DF"], dense["ffn"]["w_up_DF"][::2])


@pytest.mark.exhaustive
def test_a_converted_run_keeps_its_mesh_and_kernel(tmp_path, capsys):
    random_run(tmp_path / "run", "dense")
    path = tmp_path / "run" / "config.json"
    found = json.loads(path.read_text())
    found["mesh"]["fsdp"], found["model"]["attention"] = 2, "cudnn"
    path.write_text(json.dumps(found))
    (tmp_path / "run" / "digests.json").unlink()  # changed on purpose
    assert run(capsys, **{"from": "workdir"}, path=tmp_path / "run", upcycle=True, out=tmp_path / "grown")[0] == 0
    grown = json.loads((tmp_path / "grown" / "config.json").read_text())
    assert (grown["mesh"], grown["model"]["attention"]) == (found["mesh"], "cudnn")


@pytest.mark.extra("conformance")
def test_a_config_of_older_diffusers_is_read_by_its_files(tmp_path, capsys):
    """Neither says whether the picture's size enters; the class is an older one."""
    for sized in (True, False):
        folder = tmp_path / str(sized)
        sizes = {"num_attention_heads": 6, "cross_attention_dim": 48, "num_layers": 1, "sample_size": 128}
        save_transformer(folder, **sizes, use_additional_conditions=sized)
        found = json.loads((folder / "config.json").read_text())
        del found["use_additional_conditions"]
        (folder / "config.json").write_text(json.dumps(found | {"_class_name": "Transformer2DModel"}))
        code, output, error = run(capsys, **{"from": "pixart"}, path=folder, out=tmp_path / f"run{sized}")
        assert code == 0, error
        assert "text tokens: 120; pipelines have: PixArtAlphaPipeline 120, PixArtSigmaPipeline 300" in output
        told = json.loads((tmp_path / f"run{sized}" / "config.json").read_text())
        assert told["model"]["size_embedding"] is sized
        assert told["sample"]["batch_size"] == 4  # of 4,096 tokens each


@pytest.mark.exhaustive
def test_noise_tells_the_copies_apart(tmp_path, capsys):
    random_run(tmp_path / "run", "dense", model__num_blocks=2)
    flags = {"from": "workdir", "path": tmp_path / "run", "upcycle": True, "noise": 0.1, "out": tmp_path / "grown"}
    assert run(capsys, **flags)[0] == 0
    up = np.asarray(load(tmp_path / "grown")[1]["dit"]["stages"][0]["blocks"][1]["ffn"]["w_up_EDF"])[0]
    one = np.asarray(load(tmp_path / "run")[1]["dit"]["stages"][0]["blocks"][0]["ffn"]["w_up_DF"])[1]
    assert (up - one).std(axis=(1, 2)) == pytest.approx(0.1 * one.std(), rel=0.1)
    assert np.abs(np.corrcoef((up - one).reshape(8, -1)) - np.eye(8)).max() < 0.1


@pytest.mark.exhaustive
def test_training_starts_with_converted_parameters(tmp_path, capsys):
    """With a learning rate of nothing, a run ends in the parameters it was given; and they are not asked for again."""
    smoke = ["--config=configs/shapes_dense.py:smoke", f"--config.data.path={tmp_path / 'data'}"]
    size = ["--config.train.batch_size=64", "--config.model.num_blocks=2", "--config.train.steps=1"]
    size += ["--config.log.sample_every=0", "--config.log.validate_every=0", "--config.optimizer.name=adamw"]
    smoke += [*size, "--config.model.ffn_factor=4"]
    assert main.main(["main", *smoke, f"--workdir={tmp_path / 'dense'}"]) == 0
    flags = {"from": "workdir", "path": tmp_path / "dense", "upcycle": True, "out": tmp_path / "grown"}
    assert run(capsys, **flags)[0] == 0

    sparse = [
        "--config=configs/shapes.py:smoke",
        f"--config.data.path={tmp_path / 'data'}",
        *size,
        "--config.moe.gate=normalized",
        f"--config.train.init_from={tmp_path / 'grown'}",
    ]
    still = ["--config.optimizer.learning_rate=1e-30"]
    assert main.main(["main", *sparse, *still, f"--workdir={tmp_path / 'on'}"]) == 0
    assert f"starting with the parameters of {tmp_path / 'grown'}" in capsys.readouterr().out
    assert_same(load(tmp_path / "grown")[1], load(tmp_path / "on", ema=False)[1], within=1e-29)
    assert_same(load(tmp_path / "grown")[1], load(tmp_path / "on")[1], within=1e-6)  # the average rounds
    shutil.rmtree(tmp_path / "grown")
    assert main.main(["main", *sparse, *still, f"--workdir={tmp_path / 'on'}"]) == 0  # resumes

    for change, message in (
        ([f"--config.train.init_from={tmp_path / 'nowhere'}"], "is no workdir of a run"),
        (
            [f"--config.train.init_from={tmp_path / 'dense'}"],
            'moe.num_experts: 0 -> 8\n  moe.routing: "dense" -> "expert_choice"',
        ),
    ):
        assert main.main(["main", *sparse, *change, f"--workdir={tmp_path / 'else'}"]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "else").exists()  # no config that would lock the right one out
    other = [f"--config.train.init_from={tmp_path / 'on'}", "--config.moe.gate=score"]
    assert main.main(["main", *sparse, *still, *other, f"--workdir={tmp_path / 'score'}"]) == 0
    assert 'note: they were made with another moe.gate: "normalized" -> "score"' in capsys.readouterr().out


@pytest.mark.extra("conformance")
def test_mistakes(pixart, tmp_path, capsys):
    _, folder, run_folder = pixart
    random_run(tmp_path / "sparse", "expert_choice")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    out = tmp_path / "out"
    for flags, message in (
        ({}, "--from=... is needed"),
        ({"from": "pixart", "path": folder}, "--out=... is needed"),
        ({"from": "pixart", "path": folder, "out": tmp_path / "taken"}, "is not empty; give another --out"),
        ({"from": "pixart", "path": tmp_path / "none", "out": out}, "there is no file or folder"),
        ({"from": "pixart", "path": run_folder, "out": out}, "holds no safetensors weights"),
        ({"from": "workdir", "path": folder, "out": out}, "its config.json is another program's"),
        ({"from": "pixart", "path": folder, "dtype": "bfloat16", "out": out}, "--dtype belongs to --to=diffusers and"),
        ({"from": "pixart", "path": folder, "noise": 0.5, "out": out}, "--noise belongs to --upcycle"),
        (
            {"from": "workdir", "path": run_folder, "text_length": 5, "out": out},
            "--text_length belongs to --from=pixart or nucleus or sd3",
        ),
        ({"from": "safetensors", "path": folder, "out": out}, "no weights that ec_dit.convert wrote"),
        ({"from": "workdir", "path": tmp_path / "sparse", "upcycle": True, "out": out}, "has experts already"),
        ({"from": "workdir", "path": tmp_path / "sparse", "to": "diffusers", "out": out}, "cannot hold this model"),
        ({"from": "workdir", "path": run_folder, "upcycle": True, "experts": 7, "out": out}, "must be a whole number"),
        ({"from": "workdir", "path": run_folder, "step": 3, "out": out}, "there is no checkpoint"),
        ({"from": "torch", "path": folder, "out": out}, "value should be one of"),
    ):
        code, _, error = run(capsys, **flags)
        assert code == 2, (flags, error)
        assert message in error, (flags, error)
        assert not out.exists(), flags
    assert main.main(["main", "--config=configs/shapes.py:smoke", f"--workdir={run_folder}"]) == 2
    assert config.from_json((run_folder / "config.json").read_text()).text.length == 7
