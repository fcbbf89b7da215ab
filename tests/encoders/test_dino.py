"""DINOv2: features of transformers' from its files, on the grid of its positions and on others, on one device and over a mesh."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.core import export, hub
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.core.tree import num_params
from ec_dit.encoders import dino, vit
from ec_dit.encoders.dino import Dino, DinoSpec
from ec_dit.nn import param
from tests.encoders.vision_folders import channels_first, dino_config, pictures, shaken, write_dino

pytestmark = pytest.mark.slow


def one_device():
    return make_mesh((1, 1, 1, 1), jax.devices()[:1])


def run(folder, mesh, pixels_BYXZ, dtype=jnp.float32):
    _, (graphdef, params) = dino.load(folder, mesh, dtype)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda p, *a: nnx.merge(graphdef, p)(*a))(params, pixels_BYXZ)
    return np.asarray(out, np.float32)


def published(folder, **changes):
    """Saves a random model with transformers; returns the model."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = shaken(transformers.Dinov2Model(transformers.Dinov2Config(**dino_config(**changes))), scale=0.2)
    model.save_pretrained(folder)
    return model


GIANT = {"use_swiglu_ffn": True, "hidden_size": 20, "num_attention_heads": 2}  # 53, rounded up to 56, hidden numbers


@pytest.mark.extra("conformance")
@pytest.mark.parametrize(
    ("case", "sides"),
    [({}, (20, 20)), ({}, (8, 8)), ({}, (12, 28)), ({}, (100, 4)), (GIANT, (20, 20)), (GIANT, (16, 16))],
    ids=["small", "smaller grid", "wide", "25 in a column", "giant", "giant, smaller grid"],
)
def test_features_equal_transformers(case, sides, tmp_path):
    import torch

    model, pixels_BYXZ = published(tmp_path, **case), pictures(8, *sides)
    names = hub.TensorFiles(tmp_path).tensors
    assert ("encoder.layer.0.mlp.weights_in.weight" in names) == bool(case)  # as the published files have it
    with torch.no_grad():
        wanted_BD = model(channels_first(pixels_BYXZ)).pooler_output.numpy()
    assert wanted_BD.std() > 0.1
    for mesh in (one_device(), make_mesh((1, 2, 2, 2))):
        np.testing.assert_allclose(run(tmp_path, mesh, pixels_BYXZ), wanted_BD, rtol=1e-4, atol=1e-4)


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("shape", [(16, 16), (37, 37), (24, 41), (1, 90)])
def test_positions_are_resized_as_torch_does(shape):
    import torch

    learned_YXD = np.random.default_rng(0).normal(size=(37, 37, 5)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(learned_YXD.transpose(2, 0, 1)[None].copy()), shape, mode="bicubic", align_corners=False
    )
    rows, columns = (vit.bicubic(37, side) for side in shape)
    resized_YXD = np.einsum("Yy,Xx,yxD->YXD", rows, columns, learned_YXD)
    np.testing.assert_allclose(resized_YXD, wanted[0].numpy().transpose(1, 2, 0), rtol=0, atol=1e-5)


def test_resizing_by_hand():
    np.testing.assert_array_equal(vit.bicubic(4, 4), np.eye(4))
    # To half the size: between pixels Keys' kernel has -0.09375, 0.59375, 0.59375, -0.09375, and edges are repeated.
    wanted = [[0.5, 0.59375, -0.09375, 0], [0, -0.09375, 0.59375, 0.5]]
    np.testing.assert_allclose(vit.bicubic(4, 2), wanted, rtol=1e-6)
    np.testing.assert_allclose(vit.bicubic(37, 16).sum(axis=1), 1, rtol=1e-6)


def test_the_hidden_patch_of_training_may_be_there_or_not(tmp_path):
    write_dino(tmp_path)
    pixels_BYXZ = pictures(2, 20, 20)
    before_BD = run(tmp_path, one_device(), pixels_BYXZ)
    files = hub.TensorFiles(tmp_path)
    tensors = {name: files.read(name) for name in files.tensors}
    export.write(tmp_path, "model", [*tensors.items(), ("embeddings.mask_token", np.ones((1, 16), np.float32))])
    np.testing.assert_array_equal(run(tmp_path, one_device(), pixels_BYXZ), before_BD)


def test_bfloat16_is_near(tmp_path):
    write_dino(tmp_path, **GIANT)
    pixels_BYXZ = pictures(8, 12, 12)
    exact_BD = run(tmp_path, one_device(), pixels_BYXZ)
    near_BD = run(tmp_path, make_mesh((2, 2, 1, 2)), pixels_BYXZ, dtype=jnp.bfloat16)
    assert np.abs(near_BD - exact_BD).max() < 0.06 * exact_BD.std()


def test_pictures_that_do_not_divide_into_patches_are_refused(tmp_path):
    write_dino(tmp_path)
    with pytest.raises(UserError, match=r"a 20 x 18 image or latent does not divide into patches of 4 x 4"):
        run(tmp_path, one_device(), pictures(1, 20, 18))


def test_sizes_of_the_published_models():
    def count(width, blocks, heads, gated=False):
        found = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads, "image_size": 518}
        spec = DinoSpec.from_config({"model_type": "dinov2", "use_swiglu_ffn": gated, **found}, "config.json")
        return num_params(param.split(nnx.eval_shape(lambda: Dino(spec, rngs=nnx.Rngs(0))))[1])

    # As counted by transformers, less the mask token of `width` numbers.
    assert count(384, 12, 6) == 22_056_576 - 384
    assert count(768, 12, 12) == 86_580_480 - 768
    assert count(1024, 24, 16) == 304_368_640 - 1024
    assert count(1536, 40, 24, gated=True) == 1_136_480_768 - 1536


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "dinov2_with_registers"}, r"supported: 'dinov2', the model without register tokens"),
        ({"model_type": "vit"}, r"config.json: model_type is 'vit'; supported: 'dinov2'"),
        ({"hidden_act": "relu"}, r"config.json: hidden_act is 'relu'; supported: 'gelu'"),
        ({"qkv_bias": False}, r"config.json: qkv_bias is False; supported: True"),
        ({"num_channels": 1}, r"config.json: num_channels is 1; supported: 3"),
        ({"num_attention_heads": 5}, r"config.json: hidden_size 16 is not divisible by num_attention_heads 5"),
        ({"patch_size": 3}, r"config.json: image_size 20 is not divisible by patch_size 3"),
        ({"hidden_size": None}, r"config.json has no 'hidden_size'"),
        ({"mlp_ratio": 2}, r"mlp.fc1.bias has shape \(64,\), but config.json says \(32,\)"),
        ({"use_swiglu_ffn": True}, r"12 of 60 tensors are missing: encoder.layer.0.mlp.weights_in.bias"),
        ({"num_hidden_layers": 4}, r"18 of 78 tensors are missing: encoder.layer.3.attention.attention.key.bias"),
        ({"image_size": 24}, r"position_embeddings has shape \(1, 26, 16\), but config.json says \(1, 37, 16\)"),
    ],
)
def test_another_config_is_refused(changes, message, tmp_path):
    write_dino(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dino_config(**changes)))
    with pytest.raises(UserError, match=message):
        dino.load(tmp_path, one_device(), jnp.float32)


def test_register_tokens_in_the_files_are_refused(tmp_path):
    write_dino(tmp_path)
    files = hub.TensorFiles(tmp_path)
    tensors = {name: files.read(name) for name in files.tensors}
    export.write(tmp_path, "model", [*tensors.items(), ("embeddings.register_tokens", np.ones((1, 4, 16), np.float32))])
    with pytest.raises(UserError, match=r"1 tensors that nothing here uses: embeddings.register_tokens"):
        dino.load(tmp_path, one_device(), jnp.float32)
