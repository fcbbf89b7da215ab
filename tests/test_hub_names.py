"""Encoders and models by name through the entry points: what is made with them keeps the commit, and finds it again."""

import json
import shutil

import pytest
from huggingface_hub import constants

from ec_dit import prepare
from ec_dit.conversion import published, reading, writing
from ec_dit.core import download
from ec_dit.data import dataset
from ec_dit.encoders import frozen
from ec_dit.runs.workdir import Workdir
from ec_dit.system.captions import load_encoders
from ec_dit.system.painter import load_autoencoder
from tests import encoded_sets, helpers, hub_server
from tests.encoders import text_folders, tiny_vae
from tests.test_exports import MESH, SCHEDULER, model  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("convert")]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        download.fetch.cache_clear()
        yield running
        download.fetch.cache_clear()


def test_a_data_set_keeps_the_commit_of_its_encoders(hub, tmp_path, monkeypatch, capsys):
    encoders = encoded_sets.write_encoders(tmp_path / "first", **encoded_sets.HALF)
    vae, texts = hub.commit("tiny/vae", encoders / "vae"), hub.commit("tiny/pipe", encoders)
    tars = encoded_sets.write_tars(tmp_path / "tars", [(64, 64)], 1, 6)
    arguments = ["--source=webdataset", f"--path={tars}", f"--out={tmp_path / 'set'}", "--validation_share=0.2"]
    arguments += ["--resolution=16", "--text_length=20", "--batch_size=8"]
    named = ["--vae=tiny/vae", "--text_encoder=tiny/pipe/text_encoder"]
    assert prepare.main(["prepare", *arguments, *named]) == 0, capsys.readouterr().err
    made = dataset.open(str(tmp_path / "set")).encoding
    assert made.autoencoder_path == f"tiny/vae@{vae}"
    assert made.facts["text"]["paths"] == [f"tiny/pipe/text_encoder@{texts}"]

    # Another revision is named, the same files under another commit or in a folder are no difference.
    other = encoded_sets.write_encoders(tmp_path / "second", seed=1, **encoded_sets.HALF)
    moved = hub.commit("tiny/vae", other / "vae")
    download.fetch.cache_clear()
    wrong = frozen.autoencoder_difference(made.facts, "tiny/vae")
    assert f"made with the autoencoder tiny/vae@{vae} (" in wrong and f"not tiny/vae@{moved} (" in wrong
    assert not frozen.autoencoder_difference(made.facts, str(encoders / "vae"))
    (tmp_path / "first" / "README.md").write_text("changed")
    hub.commit("tiny/pipe", encoders)
    download.fetch.cache_clear()
    assert not frozen.text_difference(made.facts, ["tiny/pipe/text_encoder"])

    capsys.readouterr()
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:9")
    shutil.rmtree(tmp_path / "cache")
    download.fetch.cache_clear()
    arguments[2] = f"--out={tmp_path / 'other'}"
    assert prepare.main(["prepare", *arguments, *named]) == 2
    error = capsys.readouterr().err
    assert "there is no file or folder tiny/vae, and what has that name could not be downloaded" in error
    assert "Traceback" not in error


def test_a_converted_pipeline_names_its_encoders_by_their_commit(hub, model, tmp_path):  # noqa: F811 - the fixture
    root = tmp_path / "pixart"
    writing.to_diffusers(model, str(root / "transformer"), "float32", print)
    text_folders.write_t5(root / "text_encoder")
    (root / "text_encoder" / "spiece.model").rename(root / "spiece.model")
    (root / "tokenizer").mkdir()
    (root / "spiece.model").rename(root / "tokenizer" / "spiece.model")
    tiny_vae.published(root / "vae")
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (root / "model_index.json").write_text(json.dumps({"_class_name": "PixArtSigmaPipeline"}))
    commit = hub.commit("tiny/pixart", root)

    for path in ("tiny/pixart", "tiny/pixart/transformer"):
        found = published.from_published("pixart", path, MESH, None, print)
        assert found.config().name == "pixart"
        assert found.config().text.path == f"tiny/pixart/text_encoder@{commit}"
        assert found.config().data.autoencoder == f"tiny/pixart/vae@{commit}"
        assert found.origin["path"].endswith(f"@{commit}")
        assert found.origin["encoders"].keys() == {f"tiny/pixart/{part}@{commit}" for part in ("text_encoder", "vae")}
    Workdir(str(tmp_path / "run")).fill(found.config(), None, {}, found.origin)
    system = reading.make_system(
        helpers.change(Workdir(str(tmp_path / "run")).config(), data__channels=4, text__width=16, text__length=8), None
    )
    hub.repositories.clear()  # what was fetched is found in the cache by its commit
    download.fetch.cache_clear()
    assert load_autoencoder(system).channels == 4
    assert load_encoders(system).width == 16

    # An export says where its encoders are published.
    writing.to_safetensors(found, str(tmp_path / "export"), "float32")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["ec_dit"]["data"]["autoencoder"].endswith(
        commit
    )
