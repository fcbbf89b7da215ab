"""Folders that convert writes and reads: what is damaged or not finite is named, and what lies round a file is found."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ec_dit import convert
from ec_dit.conversion import published, reading, writing
from ec_dit.core import export
from ec_dit.core.errors import UserError
from ec_dit.encoders import frozen
from ec_dit.runs.workdir import Workdir
from ec_dit.system.captions import load_encoders
from ec_dit.system.model import make_system
from ec_dit.system.painter import load_autoencoder
from tests import damage, helpers
from tests.encoders import text_folders, tiny_vae
from tests.test_convert import PIXART_LIKE, build_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("convert")]

MESH = {"data": -1, "fsdp": 1, "expert": 1, "tensor": 1}
SCHEDULER = {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "linear", "prediction_type": "epsilon"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A dense model like PixArt, of random numbers."""
    system = make_system(
        helpers.tiny_config("dense", **PIXART_LIKE), build_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    )
    shapes = system.shapes()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jax.numpy.asarray(rng.normal(0, 0.2, s.shape), s.dtype), shapes)
    return reading.Model(system, params, 7, {"report": {"source": "shapes"}})


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The folder of our own layout, in several files."""
    folder, (shard_bytes,) = tmp_path_factory.mktemp("exported"), export.write.__defaults__
    export.write.__defaults__ = (20_000,)
    try:
        writing.to_safetensors(model, str(folder), "float32")
    finally:
        export.write.__defaults__ = (shard_bytes,)
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy"


class Read(Exception):
    """A config was read, and the system would be built."""


@pytest.fixture
def nothing_is_built(monkeypatch):
    """What is read is told by a Read, whose argument is the config."""

    def stop(config, *_):
        raise Read(config)

    for module in (reading, published):
        monkeypatch.setattr(module, "make_system", stop)


def outcome(work):
    """The message of a UserError; '' where the config was read."""
    try:
        work()
    except UserError as error:
        return str(error)
    except Read:
        return ""
    raise AssertionError("it was neither read nor refused")


def ours(folder):
    return lambda: reading.from_safetensors(str(folder), MESH, print)


def pixarts(folder, said=None):
    return lambda: published.from_published("pixart", str(folder), MESH, None, print if said is None else said.append)


def damaged(file, **options):
    """(kind) of each damage while it is done; the file is whole again afterwards."""
    data = file.read_bytes()
    for kind, content in damage.of(data, **options):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        yield kind
    file.write_bytes(data)


def test_damage_in_any_file_of_an_export_is_found(copy, nothing_is_built):
    """By its digest, to the bit."""
    files = sorted(copy.iterdir())
    assert len(files) >= 6
    for file in files:
        for kind in damaged(file, flips=16):
            message = outcome(ours(copy))
            if (file.name, kind) == (export.DIGESTS, "deleted"):
                assert not message  # then nothing is compared
            else:
                assert str(copy) in message and file.name in message, (file.name, kind, message)
                assert "Bring a copy back" in message or "remove" in message, (file.name, kind, message)
    assert not outcome(ours(copy))


def test_damage_without_digests_is_named_or_harmless(copy, nothing_is_built):
    """As of exports of older versions."""
    (copy / export.DIGESTS).unlink()
    for name in ("config.json", "tokenizer.model"):
        refused = []
        for kind in damaged(copy / name, values=15):
            if message := outcome(ours(copy)):
                refused.append(kind)
                assert str(copy) in message, (name, kind, message)
        assert refused[:4] == ["deleted", "cut short", "emptied", "zeroed"]


def test_a_change_of_ones_own_is_allowed(copy, nothing_is_built):
    (copy / "README.md").write_text("a model")  # of no account
    assert not outcome(ours(copy))
    config = json.loads((copy / "config.json").read_text())
    config["ec_dit"]["name"] = "mine"
    (copy / "config.json").write_text(json.dumps(config))
    assert f"After a change of your own, remove {copy / export.DIGESTS}" in outcome(ours(copy))
    (copy / export.DIGESTS).unlink()
    assert not outcome(ours(copy))


def test_weights_of_an_export_are_compared_too_when_a_file_is_given(copy, nothing_is_built):
    first = sorted(copy.glob("*.safetensors"))[0]
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    assert f"{first} is damaged: its SHA-256 is not that in digests.json" in outcome(ours(first))


@pytest.fixture(scope="module")
def pipeline(model, tmp_path_factory):
    """A pipeline's folder in diffusers' layout, with a comma in its name; its tokenizer is tokenizer.json alone."""
    root = tmp_path_factory.mktemp("pipelines") / "pixart, of mine"
    writing.to_diffusers(model, str(root / "transformer"), "float32", print)
    text_folders.write_t5(root / "text_encoder")
    (root / "text_encoder" / "spiece.model").unlink()
    text_folders.write_t5_json(root / "tokenizer")
    tiny_vae.published(root / "vae")
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (root / "model_index.json").write_text(json.dumps({"_class_name": "PixArtSigmaPipeline"}))
    return root


def config_of(path, said=None):
    with pytest.raises(Read) as read:
        pixarts(path, said)()
    return read.value.args[0]


def test_a_pipeline_is_found_from_its_folder_or_any_path_in_it(pipeline, nothing_is_built, monkeypatch):
    monkeypatch.chdir(pipeline / "transformer")
    for path in (pipeline, pipeline / "transformer", pipeline / "transformer" / WEIGHTS, Path(), Path(WEIGHTS)):
        said = []
        config = config_of(path, said)
        assert config.text.length == 300  # PixArt-Sigma's
        assert frozen.folders(config.text.path) == [str(pipeline / "text_encoder")]
        assert config.data.autoencoder == str(pipeline / "vae")
        assert not said


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("place", ["", "transformer", f"transformer/{WEIGHTS}"])
def test_the_noise_of_the_pipeline_counts_wherever_it_is_read_from(place, pipeline, tmp_path, nothing_is_built):
    shutil.copytree(pipeline, tmp_path / "other")
    other = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    other.write_text(json.dumps(SCHEDULER | {"prediction_type": "v_prediction"}))
    message = outcome(pixarts(tmp_path / "other" / place))
    assert f"{other}: prediction_type is 'v_prediction'; supported: 'epsilon'" in message


def test_encoders_that_changed_since_a_conversion_are_named(pipeline, tmp_path, monkeypatch):
    """By one bit of any of their files; and another conversion takes over what is known of them."""
    shutil.copytree(pipeline, tmp_path / "pipeline")
    model = published.from_published("pixart", str(tmp_path / "pipeline"), MESH, None, print)
    Workdir(str(tmp_path / "first")).fill(model.config(), None, {}, model.origin)
    monkeypatch.setattr(Workdir, "checkpointer", lambda *_, **__: SimpleNamespace(newest=lambda *_: (model.params, 0)))
    model = reading.from_workdir(str(tmp_path / "first"), MESH, ema=True, step=None)
    vae, encoder = (tmp_path / "pipeline" / name for name in ("vae", "text_encoder"))
    assert model.origin["encoders"].keys() == {str(vae), str(encoder)}
    system = replace(model.system, config=helpers.change(model.config(), data__channels=4))  # of this autoencoder
    assert load_autoencoder(system).channels == 4
    found = {
        vae / WEIGHTS: (load_autoencoder, vae),
        vae / "config.json": (load_autoencoder, vae),
        encoder / "model.safetensors": (load_encoders, encoder),
        tmp_path / "pipeline" / "tokenizer" / "tokenizer.json": (load_encoders, encoder),
    }
    for file, (load, folder) in found.items():
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(
            UserError, match=rf"{folder} is not what it was when this model was converted: .* Download it"
        ):
            load(system)
        file.write_bytes(data)
    (vae / WEIGHTS).write_bytes(b"")
    other = helpers.change(system.config, data__autoencoder=str(pipeline / "vae"))  # of another folder nothing is known
    assert load_autoencoder(replace(system, config=other)).channels == 4


def test_a_pipeline_without_a_tokenizer_says_so(pipeline, tmp_path, nothing_is_built):
    shutil.copytree(pipeline, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "tokenizer")
    said = []
    config_of(tmp_path / "other", said)
    assert len(said) == 1
    assert said[0].startswith(
        "note: without a tokenizer no prompt can be drawn: no tokenizer (spiece.model or tokenizer.json"
    )


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", f"transformer/{WEIGHTS}"],
)
def test_damage_in_the_files_round_the_weights(name, pipeline, tmp_path, nothing_is_built):
    shutil.copytree(pipeline, tmp_path / "other")
    file, refused = tmp_path / "other" / name, []
    (file.parent / export.DIGESTS).unlink(missing_ok=True)
    for kind in damaged(file, values=15):
        if message := outcome(pixarts(tmp_path / "other")):
            refused.append(kind)
            assert str(tmp_path / "other") in message and file.name in message, (kind, message)
            assert re.search(r"[Dd]ownload|supported", message), (kind, message)
    assert {"cut short", "emptied", "zeroed", "foreign JSON", "a list", "nested deeply", "a web page"} <= set(refused)


@pytest.mark.parametrize(
    "paths", [["a"], ["a", "b/c"], ["a, b"], ["a, b", "c"], ["[a]"], ["/x/[1], y", "z"], ['quoted "a", b']]
)
def test_lists_of_folders_come_back(paths, tmp_path, monkeypatch):
    assert frozen.folders(frozen.joined(paths)) == paths


def test_a_folder_with_a_comma_may_be_given_as_it_is(tmp_path):
    (tmp_path / "a, b").mkdir()
    assert frozen.folders(str(tmp_path / "a, b")) == [str(tmp_path / "a, b")]
    assert frozen.folders("a, b") == ["a", "b"]  # as configs before had it
    for text in ("[", "[]", "[1]", '["a"'):
        with pytest.raises(UserError, match="is no list of folders"):
            frozen.folders(text)


def test_numbers_that_are_not_finite_are_not_written(model, tmp_path, capsys):
    bad = jax.tree.map(lambda a: a, model.params)
    bad["dit"]["stages"][0]["blocks"][0]["ffn"]["w_up_DF"] = (
        bad["dit"]["stages"][0]["blocks"][0]["ffn"]["w_up_DF"].at[0, 1].set(np.nan)
    )
    broken = reading.Model(model.system, bad, 7)
    with pytest.raises(
        UserError, match=r"the parameters dit/.*w_up_DF hold numbers that are not finite, and nothing is"
    ):
        writing.refuse_broken(broken)
    writing.refuse_broken(model)
    for noise in ("nan", "inf", "-1"):
        words = ["--from=workdir", f"--path={tmp_path}", f"--out={tmp_path / 'out'}", "--upcycle", f"--noise={noise}"]
        assert convert.main(["convert", *words]) == 2
        assert "--noise" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (
            {"model__width": 48, "model__bias": False, "text__tower_blocks": 2},
            ["model.bias: true -> false", "model.width: 32 -> 48", "text.tower_blocks: 1 -> 2"],
        ),
        (
            {"moe__routing": "expert_choice", "moe__num_experts": 4},
            ["moe.num_experts: 0 -> 4", 'moe.routing: "dense" ->'],
        ),
    ],
)
def test_a_start_from_another_structure_names_the_keys(change, lines, model, tmp_path):
    """Before any array is read, and with what does not matter left out."""
    source = Workdir(str(tmp_path / "source"))
    source.fill(model.config(), model.system.tokenizer, {}, {})
    config = helpers.tiny_config(**{"routing": "dense"} | PIXART_LIKE | change | {"optimizer__learning_rate": 0.5})
    other = make_system(config, model.system.tokenizer)
    with pytest.raises(UserError) as error:
        source.check_start(other)
    message = str(error.value)
    assert message.startswith(f"--config.train.init_from={tmp_path / 'source'} holds another model: ")
    assert all(line in message for line in lines) and "learning_rate" not in message, message


def test_a_start_from_a_folder_without_checkpoints_is_refused_at_once(model, tmp_path):
    source = Workdir(str(tmp_path / "source"))
    source.fill(model.config(), model.system.tokenizer, {}, {})
    with pytest.raises(UserError, match="there is no finished checkpoint in it"):
        source.check_start(model.system)
