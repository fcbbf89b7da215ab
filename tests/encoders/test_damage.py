"""Every file of a published folder, damaged in every way: one message that names it and the way out, or rightly harmless."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from ec_dit.core import export, hub
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.encoders import clip, clip_vision, dino, qwen3, qwen_vae, t5, text
from ec_dit.encoders.autoencoder import Autoencoder
from ec_dit.encoders.clip_tokenizer import ClipTokenizer
from ec_dit.encoders.pixels import Processor
from ec_dit.encoders.t5_tokenizer import T5JsonTokenizer
from ec_dit.encoders.vae import VaeSpec
from ec_dit.models.published import nucleus, pixart, sd3
from tests import damage, published_folders
from tests.encoders import test_qwen3, test_qwen_vae, text_folders, tiny_vae, vision_folders
from tests.pixart_folders import SIZES

pytestmark = pytest.mark.slow


def write_clip_json(folder):
    return text_folders.write_clip_tokenizer(folder, files="tokenizer.json")


def write_in_parts(folder):
    """An autoencoder in several files, with their index."""
    (weights,) = tiny_vae.published(folder).glob("*.safetensors")
    files = hub.TensorFiles(folder)
    export.write(folder, weights.stem, [(name, files.read(name)) for name in files.tensors], shard_bytes=300_000)
    return folder


def load_tokenizer(kind):
    def load(folder):
        tokenizer = kind(folder)
        assert tokenizer.encode(["a cat"], 8)[0].shape == (1, 8)

    return load


def told(work):
    """The message of a UserError; '' where there was none."""
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def mesh():
    return make_mesh((1, 1, 1, 1), jax.devices()[:1])


FOLDERS = {
    "clip's tokenizer": (text_folders.write_clip_tokenizer, load_tokenizer(ClipTokenizer.load), 5),
    "clip's tokenizer.json": (write_clip_json, load_tokenizer(ClipTokenizer.load), 5),
    "t5's tokenizer.json": (text_folders.write_t5_json, load_tokenizer(T5JsonTokenizer), 12),
    "t5's spiece.model": (
        text_folders.write_t5_tokenizer,
        load_tokenizer(lambda folder: text._tokenizer(folder, "t5")),
        0,
    ),
    "t5": (text_folders.write_t5, lambda folder: t5.load(folder, mesh(), np.float32), 0),
    "clip": (text_folders.write_clip, lambda folder: clip.load(folder, mesh(), np.float32), 0),
    "clip's vision tower": (
        vision_folders.write_vision,
        lambda folder: clip_vision.load(folder, mesh(), np.float32),
        0,
    ),
    "dino": (vision_folders.write_dino, lambda folder: dino.load(folder, mesh(), np.float32), 0),
    "autoencoder": (tiny_vae.published, lambda folder: Autoencoder.load(folder, mesh()), 0),
    "autoencoder in parts": (write_in_parts, lambda folder: Autoencoder.load(folder, mesh()), 0),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_damaged_file_is_named(what, tmp_path):
    write, load, values = FOLDERS[what]
    write(tmp_path)
    load(tmp_path)
    weights = what in ("t5", "clip", "clip's vision tower", "dino") or what.startswith("autoencoder")
    for file in sorted(tmp_path.iterdir()):
        if weights and file.name != "config.json" and ".safetensors" not in file.name:
            continue  # of the tokenizer
        data, refused = file.read_bytes(), []
        for kind, damaged in damage.of(data, flips=1 if weights else 3, values=values):
            if damaged is None:
                file.unlink()
            else:
                file.write_bytes(damaged)
            if message := told(lambda: load(tmp_path)):
                refused.append(kind)
                assert str(tmp_path) in message and len(message) < 1000, (file.name, kind, message)
                assert file.name in message, (file.name, kind, message)
                assert re.search(r"[Dd]ownload (it|them|both|the folder|.*again)", message), (file.name, kind, message)
        file.write_bytes(data)
        if file.name not in ("tokenizer_config.json", "special_tokens_map.json"):  # which may be missing
            assert refused[:4] == ["deleted", "cut short", "emptied", "zeroed"], (file.name, refused)
            assert {"foreign JSON", "a list", "nested deeply", "a web page"} <= set(refused), (file.name, refused)


DESCRIPTIONS = {
    "t5": (text_folders.t5_config(), t5.T5Spec.from_config),
    "clip": (text_folders.clip_config(), clip.ClipSpec.from_config),
    "qwen3": ({"model_type": "qwen3_vl", "text_config": test_qwen3.SIZES}, qwen3.Qwen3Spec.from_config),
    "a whole clip": (
        {"model_type": "clip", "text_config": text_folders.clip_config(), "projection_dim": 12},
        clip.ClipSpec.from_config,
    ),
    "clip's vision tower": (vision_folders.vision_config(), clip_vision.ClipVisionSpec.from_config),
    "a whole clip's vision tower": (
        {"model_type": "clip", "vision_config": vision_folders.vision_config(), "projection_dim": 12},
        clip_vision.ClipVisionSpec.from_config,
    ),
    "dino": (vision_folders.dino_config(), dino.DinoSpec.from_config),
    "an image processor": (vision_folders.processor_config(), Processor.from_config),
    "autoencoder": (tiny_vae.BASE, VaeSpec.from_config),
    "an autoencoder of videos": (test_qwen_vae.CONFIG | {"_class_name": qwen_vae.CLASS}, qwen_vae.spec_of),
    "pixart": (SIZES | {"_class_name": "PixArtTransformer2DModel"}, lambda found, where: pixart.read(found, (), where)),
    "nucleus": (published_folders.NUCLEUS | {"_class_name": nucleus.CLASS}, nucleus.read),
    "sd3": (published_folders.SD3 | published_folders.SD35 | {"_class_name": sd3.CLASS}, sd3.read),
    "a text encoder": (text_folders.clip_config(), lambda found, where: text._kind(Path(where).parent)),
}


@pytest.mark.parametrize("what", DESCRIPTIONS)
def test_a_value_of_another_kind_in_a_config_is_named(what, tmp_path):
    found, read = DESCRIPTIONS[what]
    refused = 0
    for kind, damaged in damage.of(json.dumps(found).encode(), values=10**6):
        if damaged is not None:
            (tmp_path / "config.json").write_bytes(damaged)
            if message := told(lambda: hub.described(tmp_path, read)):
                refused += 1
                assert str(tmp_path / "config.json") in message, (kind, message)
                told_what_to_do = re.search(r"[Dd]ownload|supported|text encoders here are|give ", message)
                assert told_what_to_do, (kind, message)
    assert refused > 10
