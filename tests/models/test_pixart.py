"""A dense DiT with the weights of a tiny random PixArt, read from the folder that diffusers wrote, gives diffusers' outputs."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from ec_dit.core import hub, name_map
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.core.tree import named_leaves
from ec_dit.encoders import weights
from ec_dit.models.dit import DiT
from ec_dit.models.published import pixart
from ec_dit.models.sparse_spec import MoESpec
from ec_dit.nn.embeddings import unpatchify
from ec_dit.nn.routing.spec import RoutingSpec
from tests.pixart_folders import save_transformer

pytestmark = pytest.mark.slow

CASES = {
    "learned sigma": {},
    "large patches of pixels": {
        "num_layers": 3,
        "sample_size": 16,
        "patch_size": 4,
        "in_channels": 3,
        "out_channels": 3,
    },
    "interpolated positions": {"num_attention_heads": 3, "cross_attention_dim": 24, "interpolation_scale": 2},
    "another resolution": {"rows": 12, "columns": 12},
    "a wide picture": {"rows": 4, "columns": 12},
    "text as it is": {"caption_channels": None, "cross_attention_dim": 10, "attention_head_dim": 12},
    "the picture's size": {
        "use_additional_conditions": True,
        "num_attention_heads": 6,
        "cross_attention_dim": 48,
        "rows": 12,
    },
    "half precision in the file": {"dtype": "float16"},
}


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_diffusers(case, tmp_path):
    import torch

    changes = dict(CASES[case])
    sides = {side: changes.pop(side, None) for side in ("rows", "columns")}
    theirs = save_transformer(tmp_path, **changes)
    spec = pixart.read(hub.config(tmp_path), (), "config.json")[0]
    rows, columns = (side or spec.latent_size for side in sides.values())

    mesh = make_mesh((1, 1, 1, 1), jax.devices()[:1])
    graphdef, params = weights.load(
        lambda rngs: DiT(spec, rngs=rngs),
        lambda names: pixart.entries(names, spec),
        hub.TensorFiles(tmp_path),
        mesh,
        np.dtype("float32"),
    )
    rng = np.random.default_rng(0)
    x_BYXZ = rng.normal(size=(3, rows, columns, spec.channels)).astype(np.float32)
    text_BTM = rng.normal(size=(3, 7, spec.text_width)).astype(np.float32)
    mask_BT = np.arange(7) < np.array([[7], [4], [1]])
    t_B = np.array([0.0, 0.371, 0.999], np.float32)

    out_BSP, _ = jax.jit(lambda *args: nnx.merge(graphdef, args[0])(*args[1:], routing=RoutingSpec()))(
        params, x_BYXZ, t_B, text_BTM, mask_BT
    )
    out_BYXZ = unpatchify(out_BSP, spec.patch, rows // spec.patch, columns // spec.patch)
    pixels = {
        "resolution": torch.tensor([[8 * rows, 8 * columns]] * 3),
        "aspect_ratio": torch.tensor([[rows / columns]] * 3),
    }
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x_BYXZ.transpose(0, 3, 1, 2).copy()),
            encoder_hidden_states=torch.from_numpy(text_BTM),
            timestep=torch.from_numpy(1000 * t_B),
            encoder_attention_mask=torch.from_numpy(mask_BT),
            added_cond_kwargs={name: value.float() for name, value in pixels.items()},
        ).sample.numpy()
    assert np.abs(expected).std() > 0.1
    np.testing.assert_allclose(out_BYXZ, expected.transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.extra("conformance")
def test_the_config_goes_both_ways(tmp_path):
    from diffusers import PixArtTransformer2DModel

    sizes = {"use_additional_conditions": True, "num_attention_heads": 6, "cross_attention_dim": 48}
    theirs = save_transformer(tmp_path, interpolation_scale=2, **sizes)
    spec = pixart.read(hub.config(tmp_path), (), "config.json")[0]
    ours = pixart.write(spec, MoESpec())
    assert {key: theirs.config[key] for key in ours if not key.startswith("_")} == {
        key: value for key, value in ours.items() if not key.startswith("_")
    }
    assert pixart.read(ours, (), "")[0] == spec
    made = PixArtTransformer2DModel.from_config(ours)
    assert {n: tuple(w.shape) for n, w in made.named_parameters()} == {
        n: tuple(w.shape) for n, w in theirs.named_parameters()
    }


BASE = {
    "_class_name": "PixArtTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 1,
    "in_channels": 4,
    "sample_size": 8,
    "caption_channels": 10,
    "cross_attention_dim": 16,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "SD3Transformer2DModel"},
            "_class_name is 'SD3Transformer2DModel'; supported: 'PixArtTransformer2DModel'",
        ),
        ({"norm_type": "ada_norm"}, "norm_type is 'ada_norm'; supported: 'ada_norm_single'"),
        ({"num_layers": None}, "has no 'num_layers'"),
        ({"sample_size": "large"}, "sample_size is 'large', not of the kind int"),
        ({"cross_attention_dim": 20}, "cross_attention_dim is 20; supported: the width, 16"),
        ({"out_channels": 5}, "out_channels is 5; supported: once or twice in_channels"),
    ],
)
def test_other_configs_are_refused(changes, message):
    assert pixart.read(BASE, (), "here")[0].width == 16
    with pytest.raises(UserError, match=message):
        pixart.read(BASE | changes, (), "config.json")


def test_tables_name_every_parameter_once():
    found = BASE | {"use_additional_conditions": True, "num_attention_heads": 3, "cross_attention_dim": 24}
    spec, _ = pixart.read(found, (), "")
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: DiT(spec, rngs=nnx.Rngs(0))), nnx.Param))
    table: name_map.Table = pixart.entries([name for name, _ in named_leaves(shapes)], spec)
    theirs = [name for entry in table.values() for name in entry.names]
    assert len(set(theirs)) == len(theirs)
    assert json.dumps(sorted(theirs)).count("transformer_blocks.0.") == 21


@pytest.mark.parametrize("fit", ["crop", "centred"])
def test_positions_that_diffusers_does_not_have_are_not_written(fit):
    spec, moe = pixart.read(BASE, (), "here")
    pixart.write(spec, moe)
    with pytest.raises(UserError, match="position_fit area or sides is False, not True"):
        pixart.write(dataclasses.replace(spec, position_fit=fit, position_grid=16), moe)
