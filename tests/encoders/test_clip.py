"""CLIP's text tower: outputs of transformers' from its files, whole or in parts, on one device and over a mesh."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.core import export, hub
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.core.tree import num_params
from ec_dit.encoders import clip
from ec_dit.encoders.clip import ClipOutput, ClipSpec, ClipText
from ec_dit.nn import param
from tests.encoders.text_folders import clip_config, write_clip

pytestmark = pytest.mark.slow

END = 799
IDS_BT = np.random.default_rng(0).integers(1, END, (8, 11)).astype(np.int32)
for row, end in enumerate((10, 4, 1, 8, 10, 2, 3, 9)):
    IDS_BT[row, end:] = END if row % 2 else 0  # one pads with the end-of-text token, another does not
    IDS_BT[row, end] = END


def one_device():
    return make_mesh((1, 1, 1, 1), jax.devices()[:1])


def run(folder, mesh, ids_BT=IDS_BT, dtype=jnp.float32):
    _, (graphdef, params) = clip.load(folder, mesh, dtype)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda p, *a: nnx.merge(graphdef, p)(*a))(params, ids_BT)
    return ClipOutput(*(np.asarray(a, np.float32) for a in out))


def published(folder, kind="CLIPTextModel", shards=False, prefix=False, **changes):
    """Saves a random model with transformers; returns the model.

    Args:
        prefix: name tensors as transformers 4 does, which also saves the numbers of the positions.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(bos_token_id=END - 1, **clip_config(**changes))
    if kind == "CLIPModel":
        vision = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 8, "patch_size": 4}
        config = transformers.CLIPConfig(text_config=config.to_dict(), vision_config=vision, projection_dim=10)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():  # larger than the initial values, so that every part has a say in the output
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder, max_shard_size="10KB" if shards else "1GB")
    if prefix:
        files = hub.TensorFiles(folder)
        tensors = {f"text_model.{name}": files.read(name) for name in files.tensors}
        tensors["text_model.embeddings.position_ids"] = np.arange(20)[None]
        export.write(folder, "model", tensors.items())
    return model


def expected(model, ids_BT=IDS_BT):
    import torch

    ids = torch.from_numpy(ids_BT.astype(np.int64))
    with torch.no_grad():
        tower = getattr(model, "text_model", model)
        out = tower(input_ids=ids, output_hidden_states=True)
        pooled = model.text_projection(out.pooler_output) if hasattr(model, "text_projection") else out.pooler_output
    return ClipOutput(*(a.numpy() for a in (out.last_hidden_state, out.hidden_states[-2], pooled)))


@pytest.mark.extra("conformance")
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"prefix": True, "eos_token_id": END},
        {"kind": "CLIPTextModelWithProjection", "hidden_act": "gelu"},
        {"kind": "CLIPTextModelWithProjection", "eos_token_id": END, "shards": True},
        {"kind": "CLIPModel", "hidden_act": "gelu", "eos_token_id": END},
        {"num_hidden_layers": 1},
    ],
    ids=["L", "L of version 4", "bigG", "sharded", "whole", "one block"],
)
def test_outputs_equal_transformers(case, tmp_path):
    outputs = expected(published(tmp_path, **case))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == case.get("shards", False)
    for mesh in (one_device(), make_mesh((1, 2, 2, 2))):
        for out, wanted in zip(run(tmp_path, mesh), outputs, strict=True):
            assert wanted.std() > 0.1
            np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.extra("conformance")
def test_the_first_end_of_text_is_pooled_as_transformers_does(tmp_path):
    ids_BT = np.array([[5, END, 7, END, 0], [END, END, END, END, END], [3, 4, 5, 6, 7]], np.int32)  # the last has none
    for eos in (END, 2):
        outputs = expected(published(tmp_path, eos_token_id=eos), ids_BT)
        pooled_BM = run(tmp_path, one_device(), ids_BT).pooled_BM
        np.testing.assert_allclose(pooled_BM, outputs.pooled_BM, rtol=1e-4, atol=1e-4)


def test_no_token_sees_a_later_one(tmp_path):
    write_clip(tmp_path)
    out, changed = run(tmp_path, one_device()), run(tmp_path, one_device(), np.where(np.arange(11) < 6, IDS_BT, 9))
    np.testing.assert_array_equal(changed.last_BTM[:, :6], out.last_BTM[:, :6])
    assert (changed.last_BTM[:, 6:] != out.last_BTM[:, 6:]).any()


def test_a_projection_is_used_where_the_files_hold_it(tmp_path):
    write_clip(tmp_path, architectures=["CLIPTextModelWithProjection"])
    projected = run(tmp_path, one_device())
    files = hub.TensorFiles(tmp_path)
    tensors = {name: files.read(name) for name in files.tensors}
    matrix = tensors.pop("text_projection.weight")
    export.write(tmp_path, "model", tensors.items())
    with pytest.raises(UserError, match=r"1 of 53 tensors are missing: text_projection.weight"):
        clip.load(tmp_path, one_device(), jnp.float32)
    (tmp_path / "config.json").write_text(json.dumps(clip_config()))
    plain = run(tmp_path, one_device())
    np.testing.assert_array_equal(plain.last_BTM, projected.last_BTM)
    np.testing.assert_allclose(plain.pooled_BM @ matrix.T, projected.pooled_BM, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_near(tmp_path):
    write_clip(tmp_path, architectures=["CLIPTextModelWithProjection"])
    exact = run(tmp_path, one_device())
    for near, wanted in zip(run(tmp_path, make_mesh((2, 2, 1, 2)), dtype=jnp.bfloat16), exact, strict=True):
        assert np.abs(near - wanted).max() < 0.06 * wanted.std()


LARGE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}


def test_sizes_of_the_published_towers():
    def count(found, projected):
        spec = ClipSpec.from_config(found, "config.json")
        spec = spec if projected else replace(spec, projection=None)
        return num_params(param.split(nnx.eval_shape(lambda: ClipText(spec, rngs=nnx.Rngs(0))))[1])

    rest = {"vocab_size": 49408, "max_position_embeddings": 77}
    assert count(clip_config(**LARGE, **rest, projection_dim=768), projected=False) == 123_060_480
    assert count(clip_config(**BIG_G, **rest, projection_dim=1280), projected=True) == 694_659_840


def test_a_whole_model_describes_its_tower():
    # As transformers 5 writes it, values of the tower that are its defaults may be missing; others may stand twice.
    found = {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {"hidden_size": 768, "num_attention_heads": 12},
    }
    spec = ClipSpec.from_config(found | {"text_config_dict": {"intermediate_size": 3072}}, "config.json")
    assert (spec.width, spec.num_heads, spec.hidden, spec.num_blocks, spec.length) == (768, 12, 3072, 12, 77)
    assert (spec.act, spec.projection, spec.eos_id) == ("quick_gelu", 768, 49407)
    assert ClipSpec.from_config(found | {"text_config": {"eos_token_id": 2}}, "config.json").eos_id is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "siglip_text_model"},
            r"model_type is 'siglip_text_model'; supported: 'clip', 'clip_text_model'",
        ),
        ({"hidden_act": "relu"}, r"config.json: hidden_act is 'relu'; supported: 'quick_gelu', 'gelu'"),
        ({"num_attention_heads": 5}, r"config.json: hidden_size 16 is not divisible by num_attention_heads 5"),
        ({"layer_norm_eps": "small"}, r"layer_norm_eps is 'small', not of the kind float"),
        ({"num_hidden_layers": 4}, r"16 of 68 tensors are missing: text_model.encoder.layers.3.layer_norm1.bias"),
        ({"text_config": 3, "model_type": "clip"}, r"config.json, text_config: text_config is 3, not of the kind dict"),
        (
            {"max_position_embeddings": 77},
            r"position_embedding.weight has shape \(20, 16\), but config.json says \(77, 16\)",
        ),
    ],
)
def test_another_config_is_refused(changes, message, tmp_path):
    write_clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(clip_config(**changes)))
    with pytest.raises(UserError, match=message):
        clip.load(tmp_path, one_device(), jnp.float32)
