"""CLIP's vision tower: embeddings of transformers' from its files, whole or in parts, on one device and over a mesh."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.core import export, hub
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.core.tree import num_params
from ec_dit.encoders import clip, clip_tower, clip_vision
from ec_dit.encoders.clip_vision import ClipVision, ClipVisionSpec
from ec_dit.nn import param
from tests.encoders.text_folders import clip_config, write_clip
from tests.encoders.vision_folders import channels_first, pictures, shaken, vision_config, write_vision

pytestmark = pytest.mark.slow

PIXELS_BYXZ = pictures(8, 12, 12)


def one_device():
    return make_mesh((1, 1, 1, 1), jax.devices()[:1])


def run(folder, mesh, pixels_BYXZ=PIXELS_BYXZ, dtype=jnp.float32):
    _, (graphdef, params) = clip_vision.load(folder, mesh, dtype)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda p, *a: nnx.merge(graphdef, p)(*a))(params, pixels_BYXZ)
    return np.asarray(out, np.float32)


def published(folder, kind="CLIPVisionModel", shards=False, prefix=False, **changes):
    """Saves a random model with transformers; returns the model.

    Args:
        prefix: name tensors as transformers 4 does, which also saves the numbers of the positions.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**vision_config(**changes))
    if kind == "CLIPModel":
        text = clip_config(num_hidden_layers=1, bos_token_id=798)
        config = transformers.CLIPConfig(text_config=text, vision_config=config.to_dict(), projection_dim=10)
    model = shaken(getattr(transformers, kind)(config))
    model.save_pretrained(folder, max_shard_size="10KB" if shards else "1GB")
    if prefix:
        files = hub.TensorFiles(folder)
        tensors = {f"vision_model.{name}": files.read(name) for name in files.tensors}
        tensors["vision_model.embeddings.position_ids"] = np.arange(10)[None]
        export.write(folder, "model", tensors.items())
    return model


def expected(model, pixels_BYXZ=PIXELS_BYXZ):
    import torch

    with torch.no_grad():
        pooled = getattr(model, "vision_model", model)(channels_first(pixels_BYXZ)).pooler_output
        return (model.visual_projection(pooled) if hasattr(model, "visual_projection") else pooled).numpy()


WHOLE = {"kind": "CLIPModel", "hidden_act": "gelu", "hidden_size": 20, "num_attention_heads": 2}


@pytest.mark.extra("conformance")
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"prefix": True},
        {"kind": "CLIPVisionModelWithProjection"},
        {"kind": "CLIPVisionModelWithProjection", "hidden_act": "gelu", "shards": True},
        {"kind": "CLIPModel", "patch_size": 2},
        WHOLE,
    ],
    ids=["B/32", "B/32 of version 4", "L/14", "sharded", "whole B/16", "whole H/14"],
)
def test_embeddings_equal_transformers(case, tmp_path):
    wanted_BD = expected(published(tmp_path, **case))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == case.get("shards", False)
    assert wanted_BD.std() > 0.1
    for mesh in (one_device(), make_mesh((1, 2, 2, 2))):
        np.testing.assert_allclose(run(tmp_path, mesh), wanted_BD, rtol=1e-4, atol=1e-4)


@pytest.mark.extra("conformance")
def test_a_whole_clip_compares_pictures_and_texts_as_transformers_does(tmp_path):
    import torch

    model = published(tmp_path, **WHOLE)
    ids_BT = np.array([[5, 7, 799, 0], [799, 0, 0, 0]], np.int32)  # ends with the largest id
    with torch.no_grad():
        model.logit_scale.copy_(torch.tensor(math.log(77.0)))
        model.save_pretrained(tmp_path)
        out = model(torch.from_numpy(ids_BT.astype(np.int64)), channels_first(PIXELS_BYXZ))
    images_BD = run(tmp_path, one_device())
    _, (graphdef, params) = clip.load(tmp_path, one_device(), jnp.float32)
    texts_BD = np.asarray(nnx.merge(graphdef, params)(ids_BT).pooled_BM)
    cosines = (texts_BD / np.linalg.norm(texts_BD, axis=1, keepdims=True)) @ (
        images_BD / np.linalg.norm(images_BD, axis=1, keepdims=True)
    ).T
    assert clip_tower.logit_scale(tmp_path) == pytest.approx(77, rel=1e-6)
    assert out.logits_per_text.std() > 0.1
    np.testing.assert_allclose(cosines * 77, out.logits_per_text, rtol=1e-4, atol=1e-3)


def test_a_scale_is_one_number_of_a_whole_clip(tmp_path):
    write_clip(tmp_path)
    with pytest.raises(UserError, match=r"model.safetensors has no logit_scale: it is one tower alone"):
        clip_tower.logit_scale(tmp_path)
    for value in (np.zeros(3, np.float32), np.array(np.nan, np.float32), np.array(1e6, np.float32)):
        export.write(tmp_path, "model", [("logit_scale", value)])
        with pytest.raises(UserError, match=r"logit_scale is .*, not the logarithm of a factor. Download it again"):
            clip_tower.logit_scale(tmp_path)
    export.write(tmp_path, "model", [("logit_scale", np.full(1, 2.0, np.float16))])
    assert clip_tower.logit_scale(tmp_path) == pytest.approx(math.exp(2))


def test_a_projection_is_used_where_the_files_hold_it(tmp_path):
    write_vision(tmp_path, architectures=["CLIPVisionModelWithProjection"])
    projected_BD = run(tmp_path, one_device())
    files = hub.TensorFiles(tmp_path)
    tensors = {name: files.read(name) for name in files.tensors}
    matrix = tensors.pop("visual_projection.weight")
    export.write(tmp_path, "model", tensors.items())
    with pytest.raises(UserError, match=r"1 of 56 tensors are missing: visual_projection.weight"):
        clip_vision.load(tmp_path, one_device(), jnp.float32)
    (tmp_path / "config.json").write_text(json.dumps(vision_config()))
    np.testing.assert_allclose(run(tmp_path, one_device()) @ matrix.T, projected_BD, rtol=1e-5, atol=1e-5)


def test_every_patch_counts_for_the_class_token_and_none_for_another_picture(tmp_path):
    write_vision(tmp_path)
    _, (graphdef, params) = clip_vision.load(tmp_path, one_device(), jnp.float32)
    embed = jax.jit(nnx.merge(graphdef, params))
    before_BD = embed(PIXELS_BYXZ)
    for row, column in ((0, 0), (11, 0), (5, 11)):
        changed_BYXZ = PIXELS_BYXZ.copy()
        changed_BYXZ[2, row, column] += 3
        same_B = (np.abs(embed(changed_BYXZ) - before_BD) < 1e-5).all(axis=1)
        assert same_B.tolist() == [True, True, False, True, True, True, True, True]


def test_bfloat16_is_near(tmp_path):
    write_vision(tmp_path, architectures=["CLIPVisionModelWithProjection"])
    exact_BD = run(tmp_path, one_device())
    near_BD = run(tmp_path, make_mesh((2, 2, 1, 2)), dtype=jnp.bfloat16)
    assert np.abs(near_BD - exact_BD).max() < 0.06 * exact_BD.std()


def test_pictures_of_another_size_are_refused(tmp_path):
    write_vision(tmp_path)
    with pytest.raises(UserError, match=r"takes pictures of 12 x 12 pixels, not 12 x 16"):
        run(tmp_path, one_device(), pictures(1, 12, 16))


LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
HUGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "num_hidden_layers": 32}


def test_sizes_of_the_published_towers():
    def count(**found):
        spec = ClipVisionSpec.from_config({"model_type": "clip_vision_model", **found}, "config.json")
        return num_params(param.split(nnx.eval_shape(lambda: ClipVision(spec, rngs=nnx.Rngs(0))))[1])

    assert count() == 87_849_216
    assert count(**LARGE, patch_size=14, projection_dim=768) == 303_966_208
    assert count(**LARGE, patch_size=14, image_size=336, projection_dim=768) == 304_293_888
    assert count(**HUGE, patch_size=14, projection_dim=1024, hidden_act="gelu") == 632_076_800


def test_a_whole_model_describes_its_tower():
    # As transformers 5 writes it, values of the tower that are its defaults may be missing; others may stand twice.
    found = {
        "model_type": "clip",
        "projection_dim": 768,
        "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 32},
        "text_config": {"hidden_size": 64, "patch_size": 3},
    }
    spec = ClipVisionSpec.from_config(found | {"vision_config_dict": {"patch_size": 14}}, "config.json")
    assert (spec.width, spec.num_heads, spec.hidden, spec.num_blocks) == (1024, 16, 3072, 12)
    assert (spec.size, spec.patch, spec.act, spec.projection) == (224, 14, "quick_gelu", 768)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip_text_model"}, r"'clip_text_model'; supported: 'clip', 'clip_vision_model'"),
        ({"hidden_act": "relu"}, r"config.json: hidden_act is 'relu'; supported: 'quick_gelu', 'gelu'"),
        ({"num_attention_heads": 5}, r"config.json: hidden_size 16 is not divisible by num_attention_heads 5"),
        ({"patch_size": 5}, r"config.json: image_size 12 is not divisible by patch_size 5"),
        ({"num_channels": 4}, r"config.json: num_channels is 4; supported: 3"),
        ({"image_size": [12, 12]}, r"image_size is \[12, 12\], not of the kind int"),
        ({"num_hidden_layers": 4}, r"16 of 71 tensors are missing: vision_model.encoder.layers.3.layer_norm1.bias"),
        ({"num_hidden_layers": 2}, r"16 tensors that nothing here uses: vision_model.encoder.layers.2"),
        ({"vision_config": 3, "model_type": "clip"}, r"vision_config is 3, not of the kind dict"),
        ({"image_size": 16}, r"position_embedding.weight has shape \(10, 16\), but config.json says \(17, 16\)"),
    ],
)
def test_another_config_is_refused(changes, message, tmp_path):
    write_vision(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(vision_config(**changes)))
    with pytest.raises(UserError, match=message):
        clip_vision.load(tmp_path, one_device(), jnp.float32)


def test_a_text_tower_is_refused(tmp_path):
    write_clip(tmp_path)
    with pytest.raises(UserError, match=r"model_type is 'clip_text_model'; supported: 'clip', 'clip_vision_model'"):
        clip_vision.load(tmp_path, one_device(), jnp.float32)
