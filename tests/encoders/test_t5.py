"""T5's encoder: outputs of transformers' from its files, whole or in parts, on one device and over a mesh."""

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
from ec_dit.encoders import t5
from ec_dit.encoders.t5 import T5Encoder, T5Spec, distance_classes
from ec_dit.nn import param
from tests.encoders.text_folders import t5_config, write_t5

pytestmark = pytest.mark.slow

LENGTHS = np.array([[11], [4], [1], [8], [11], [2], [3], [10]])
IDS_BT = np.random.default_rng(0).integers(3, 480, (8, 11)).astype(np.int32)
MASK_BT = np.arange(11) < LENGTHS


def one_device():
    return make_mesh((1, 1, 1, 1), jax.devices()[:1])


def run(folder, mesh, ids_BT=IDS_BT, mask_BT=MASK_BT, dtype=jnp.float32):
    _, (graphdef, params) = t5.load(folder, mesh, dtype)
    with jax.set_mesh(mesh):
        return np.asarray(jax.jit(lambda p, *a: nnx.merge(graphdef, p)(*a))(params, ids_BT, mask_BT), np.float32)


def published(folder, whole=False, shards=False, **changes):
    """Saves a random model with transformers; returns its encoder."""
    import torch
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(**t5_config(**changes))
    model = (T5ForConditionalGeneration if whole else T5EncoderModel)(config).eval()
    with torch.no_grad():  # larger than the initial values, so that every part has a say in the output
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder, max_shard_size="10KB" if shards else "1GB")
    return model.encoder if whole else model


def expected(model, ids_BT=IDS_BT, mask_BT=MASK_BT):
    import torch

    ids, mask = torch.from_numpy(ids_BT.astype(np.int64)), torch.from_numpy(mask_BT)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()


@pytest.mark.extra("conformance")
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"feed_forward_proj": "relu"},
        {"whole": True},
        {"whole": True, "shards": True, "feed_forward_proj": "relu"},
        {"num_layers": 1, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
    ],
    ids=["v1.1", "v1.0", "whole", "sharded", "other distances"],
)
def test_outputs_equal_transformers(case, tmp_path):
    outputs = expected(published(tmp_path, **case))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == case.get("shards", False)
    assert outputs.std() > 0.3
    np.testing.assert_allclose(run(tmp_path, one_device()), outputs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(tmp_path, make_mesh((1, 2, 2, 2))), outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.extra("conformance")
def test_long_texts_equal_transformers(tmp_path):
    model = published(tmp_path)
    ids_BT = np.random.default_rng(1).integers(3, 480, (1, 200)).astype(np.int32)
    everywhere = np.ones_like(ids_BT, bool)
    out_BTM = run(tmp_path, one_device(), ids_BT, everywhere)
    np.testing.assert_allclose(out_BTM, expected(model, ids_BT, everywhere), rtol=1e-4, atol=1e-4)


@pytest.mark.extra("conformance")
@pytest.mark.parametrize(("classes", "furthest"), [(32, 128), (32, 64), (16, 20), (8, 1000)])
def test_distance_classes_equal_transformers(classes, furthest):
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    away_ST = torch.arange(600)[None] - torch.arange(600)[:, None]
    theirs = T5Attention._relative_position_bucket(away_ST, True, classes, furthest)
    np.testing.assert_array_equal(distance_classes(600, classes, furthest), theirs.numpy())


def test_distance_classes():
    away = distance_classes(300, 32, 128)[:, 0]  # the first key, behind every query
    np.testing.assert_array_equal(away[:17], [0, 1, 2, 3, 4, 5, 6, 7, *[8] * 4, *[9] * 4, 10])
    assert (away[128:] == 15).all() and (np.diff(away) >= 0).all()
    np.testing.assert_array_equal(distance_classes(300, 32, 128)[0, 1:], away[1:] + 16)


def test_the_token_table_has_either_name_or_both(tmp_path):
    tensors = dict(read_all(write_t5(tmp_path / "shared")))
    out_BTM = run(tmp_path / "shared", one_device())
    table = tensors.pop("shared.weight")
    for name, tables in {
        "embed": {"encoder.embed_tokens.weight": table},
        "both": {"encoder.embed_tokens.weight": table, "shared.weight": table},
    }.items():
        for shard_bytes in (10**9, 9000):  # an index promises both
            export.write(tmp_path / name, "model", (tensors | tables).items(), shard_bytes)
            (tmp_path / name / "config.json").write_text(json.dumps(t5_config()))
            np.testing.assert_array_equal(run(tmp_path / name, one_device()), out_BTM)


def read_all(folder):
    files = hub.TensorFiles(folder)
    return [(name, files.read(name)) for name in files.tensors]


def test_hidden_tokens_have_no_influence(tmp_path):
    write_t5(tmp_path)
    out_BTM = run(tmp_path, one_device())
    changed = run(tmp_path, one_device(), np.where(MASK_BT, IDS_BT, 7))
    np.testing.assert_array_equal(changed[MASK_BT], out_BTM[MASK_BT])


def test_bfloat16_is_near(tmp_path):
    write_t5(tmp_path)
    _, (_, params) = t5.load(tmp_path, one_device(), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    exact, near = run(tmp_path, one_device()), run(tmp_path, make_mesh((2, 2, 1, 2)), dtype=jnp.bfloat16)
    assert np.abs(near - exact).max() < 0.05 * exact.std() < 1


def test_sizes_of_the_published_xxl():
    sizes = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    spec = T5Spec.from_config(t5_config(**sizes), "config.json")
    _, params, _ = param.split(nnx.eval_shape(lambda: T5Encoder(spec, rngs=nnx.Rngs(0))))
    assert num_params(params) == 4_762_310_656
    old = {"model_type": "t5", **sizes}
    assert T5Spec.from_config(old, "config.json").gated is False
    assert T5Spec.from_config(old, "config.json").furthest == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "umt5"}, r"config.json: model_type is 'umt5'; supported: 't5'"),
        ({"feed_forward_proj": "gated-silu"}, r"feed_forward_proj is 'gated-silu'; supported: 'relu', 'gated-gelu'"),
        ({"d_model": None}, r"config.json has no 'd_model'"),
        ({"num_layers": "3"}, r"num_layers is '3', not of the kind int"),
        ({"d_model": 32}, r"tensor .*weight has shape .*, but config.json says .* Are these the weights of another"),
        ({"num_layers": 4}, r"9 of 39 tensors are missing: encoder.block.3.*another model"),
        ({"num_layers": 2}, r"9 tensors that nothing here uses: encoder.block.2.*another model"),
        (
            {"feed_forward_proj": "relu"},
            r"3 of 27 tensors are missing: encoder.block.0.layer.1.DenseReluDense.wi.weight",
        ),
    ],
)
def test_another_config_is_refused(changes, message, tmp_path):
    write_t5(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(t5_config(**changes)))
    with pytest.raises(UserError, match=message):
        t5.load(tmp_path, one_device(), jnp.float32)


def test_a_mesh_that_does_not_divide_it_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"distance_VH: dimension 'heads' of size 4 is not divisible by 8 \(mesh tensor=8\)"
    ):
        t5.load(write_t5(tmp_path), make_mesh((1, 1, 1, 8)), jnp.float32)
