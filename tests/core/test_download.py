"""Published weights by name, from a hub on localhost through the real huggingface_hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ec_dit.core import download
from ec_dit.core.download import Name
from ec_dit.encoders import clip_tokenizer, json_tokenizer, text
from tests import hub_server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ASK = """
import json, sys
from pathlib import Path
from ec_dit.core import hub
from ec_dit.core.errors import UserError, explain
for call in json.loads(sys.argv[1]):
    try:
        print(json.dumps([hub.pinned(call), str(hub.local(call))]))
    except Exception as error:
        known = explain(error)
        print(json.dumps([type(known).__name__, str(known)] if known else ["crash", repr(error)]))
"""


@pytest.fixture(scope="module")
def server():
    with hub_server.running() as running:
        yield running


@pytest.fixture
def ask(server, tmp_path):
    """Names -> [where each leads, or the message that it ends in], by a process with a cache of its own."""

    def ask(*names, **variables):
        env = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "cache")}
        env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"} | variables
        command = [sys.executable, "-c", ASK, json.dumps(names)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=100)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


def write(folder, weights="model.safetensors", value=0, **others):
    """A repository of one tensor, with what is not to be fetched beside it; `others` are texts of more files."""
    (folder / weights).parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.full(3, value, np.float32)}, folder / weights)
    beside = {"config.json": "{}", "README.md": "of no use", "pytorch_model.bin": "a pickle"} | others
    for name, content in beside.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_only_what_is_read_is_fetched_and_once(server, ask, tmp_path):
    there = write(
        tmp_path / "there", **{"model.fp16.safetensors": "x", "tokenizer.json": "{ }", "onnx/model.safetensors": "x"}
    )
    commit = server.commit("some/encoder", there)
    server.asked.clear()
    ((place, path),) = ask("some/encoder")
    assert place == f"some/encoder@{commit}"
    assert sorted(server.asked) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (Path(path) / "model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()
    server.asked.clear()
    assert ask("some/encoder", f"some/encoder@{commit}", "some/encoder@main") == [[place, path]] * 3
    assert ask("some/encoder", HF_HUB_OFFLINE="1") == [[place, path]]
    assert ask(place, HF_ENDPOINT="http://localhost:9") == [[place, path]]
    assert server.asked == []


def test_a_folder_wins_over_a_name_and_a_revision_is_kept(server, ask, tmp_path):
    first = server.commit("some/vae", write(tmp_path / "first", "diffusion_pytorch_model.safetensors"))
    second = server.commit("some/vae", write(tmp_path / "second", "diffusion_pytorch_model.safetensors", 1))
    assert [place for place, _ in ask("some/vae", f"some/vae@{first}")] == [f"some/vae@{second}", f"some/vae@{first}"]
    assert (write(tmp_path / "some" / "vae")).is_dir()
    assert ask("some/vae") == [[str(tmp_path / "some" / "vae"), "some/vae"]]


def test_parts_of_a_repository(server, ask, tmp_path):
    files = {
        "text_encoder/config.json": "{}",
        "tokenizer/tokenizer.json": "{ }",
        "tokenizer_2/merges.txt": "x",
        "vae/x.bin": "",
    }
    root = write(tmp_path / "pipe", "text_encoder/model.safetensors", **files)
    save_file({"w": np.zeros(3, np.float32)}, root / "vae" / "odd.safetensors")
    commit = server.commit("some/pipeline", root)
    server.asked.clear()
    ((place, path),) = ask("some/pipeline/text_encoder")
    assert place == f"some/pipeline/text_encoder@{commit}"
    assert sorted(server.asked) == [
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
    ]
    assert (Path(path).parent / "tokenizer" / "tokenizer.json").is_file()
    (whole, odd, (file, _), nowhere) = ask(
        "some/pipeline", "some/pipeline/vae", "some/pipeline/vae/odd.safetensors", "some/pipeline/unet"
    )
    assert whole == [
        "UserError",
        f"some/pipeline@{commit} holds no weights itself; did you mean a folder in it: text_encoder, vae?",
    ]
    assert odd[1].endswith("has weights under other names; give the file's own: vae/odd.safetensors")
    assert file == f"some/pipeline/vae/odd.safetensors@{commit}"
    assert nowhere[1] == f"some/pipeline@{commit} at Hugging Face has no weights in unet: check the name."


def test_pickles_are_never_fetched(server, ask, tmp_path):
    write(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    server.commit("some/old", tmp_path / "old")
    server.asked.clear()
    (((kind, message),)) = ask("some/old")
    assert kind == "UserError" and "has only pytorch_model.bin: weights are read from safetensors" in message
    assert "pytorch_model.bin" not in server.asked


def test_what_cannot_be_had_is_told_in_one_message(server, ask, tmp_path):
    server.commit("some/model", write(tmp_path / "model"))
    server.commit("some/closed", write(tmp_path / "closed"))
    server.gated.add("some/closed")
    revision, private, gated, path, relative = ask(
        "some/model@v9", "some/secret", "some/closed", "/no/such", "../some/secret"
    )
    assert revision == [
        "UserError",
        f"some/model at {server.url} has no revision 'v9': give a branch, a tag or a commit after the @.",
    ]
    assert private[1].startswith(
        f"there is no file or folder some/secret, and at {server.url} no repository some/secret that"
    )
    assert gated[1].endswith(
        f"is gated: accept its terms at {server.url}/some/closed, then log in with hf auth login, or set HF_TOKEN."
    )
    assert path == ["UserError", "there is no file or folder /no/such."]
    assert relative == ["UserError", "there is no file or folder ../some/secret."]
    ((kind, message),) = ask("some/model@v9", HF_ENDPOINT="http://localhost:9")
    assert kind == "UserError"  # not TryAgain, whose exit code is another
    assert "could not be downloaded from http://localhost:9 (" in message
    assert message.endswith("(hf download some/model --revision v9 --local-dir FOLDER) and give the folder.")
    ((kind, message),) = ask("some/model", HF_HUB_OFFLINE="1")
    assert kind == "UserError" and "with HF_HUB_OFFLINE only what the cache " in message


def test_without_the_extra_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"no file or folder a/b@c; to download .* run: pip install 'ec-dit\[hub\]'"):
        download.fetch(Name("a/b", revision="c"))


@pytest.mark.parametrize(
    ("text_", "name"),
    [
        ("stabilityai/sd-vae-ft-mse", Name("stabilityai/sd-vae-ft-mse")),
        ("a/b@refs/pr/3", Name("a/b", "", "refs/pr/3")),
        (
            "PixArt-alpha/PixArt-XL-2-1024-MS/text_encoder@1f2",
            Name("PixArt-alpha/PixArt-XL-2-1024-MS", "text_encoder", "1f2"),
        ),
        ("a/b/vae/x.safetensors", Name("a/b", "vae/x.safetensors")),
        *(
            (text, None)
            for text in ("model", "./a/b", "../a/b", "/a/b", "~/a/b", "a/b/", "a/../b", "a b/c", "a/b@", "gs://a/b", "")
        ),
    ],
)
def test_names(text_, name):
    assert Name.parse(text_) == name
    assert name is None or str(name) == text_


def test_a_file_that_is_there_is_no_name(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("")
    monkeypatch.chdir(tmp_path)
    assert Name.parse("a/b") is None and Name.parse("a/c") is not None


def test_every_file_of_a_tokenizer_is_fetched():
    read = {
        *clip_tokenizer.FILES,
        *json_tokenizer.FILES,
        *(name for names in text._TOKENIZERS.values() for name in names),
    }
    assert read == set(download.TOKENIZERS)
