"""The KL autoencoder against diffusers' implementation, with tiny random weights of every published kind."""

import json

import numpy as np
import pytest
from flax import nnx

from ec_dit.core.errors import UserError
from ec_dit.core.tree import named_leaves
from ec_dit.encoders import vae
from ec_dit.encoders.autoencoder import Autoencoder
from ec_dit.nn import param
from tests.encoders.tiny_vae import BASE, mesh, normal, uniform

pytestmark = pytest.mark.slow

NO_MATRICES = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
FAMILIES = {
    "Stable Diffusion 1 and 2": {"scaling_factor": 0.18215, "layers_per_block": 2},
    "SDXL": {"scaling_factor": 0.13025, "sample_size": 128},
    "SD3": {"scaling_factor": 1.5305, "shift_factor": 0.0609, **NO_MATRICES},
    "Flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159, **NO_MATRICES},
    "no attention": {"mid_block_add_attention": False, "norm_num_groups": 8},
}


def of_diffusers(**changes):
    """diffusers' autoencoder with weights larger than the initial ones, so that every part has a say in the output."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(**{key: value for key, value in (BASE | changes).items() if key != "_class_name"}).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def torch_of(array_BYXZ):
    import torch

    return torch.from_numpy(array_BYXZ.transpose(0, 3, 1, 2).copy())


def numpy_of(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


def compare(ours, theirs, image_BYXZ, latent_BYXZ):
    """Encodes and decodes with both, where diffusers' users normalise by the formulas of its pipelines."""
    import torch

    scale, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0.0
    with torch.no_grad():
        posterior = theirs.encode(torch_of(image_BYXZ)).latent_dist
        expected = theirs.decode(torch_of(latent_BYXZ) / scale + shift).sample
    mean_BYXZ, std_BYXZ = ours.encode(image_BYXZ)
    out_BYXZ = ours.decode(latent_BYXZ)
    assert min(float(part.std()) for part in (posterior.mean, posterior.std, expected)) > 0.05
    np.testing.assert_allclose(mean_BYXZ, numpy_of((posterior.mean - shift) * scale), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(std_BYXZ, numpy_of(posterior.std * scale), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out_BYXZ, numpy_of(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.extra("conformance")
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in ("SDXL", "SD3"))) for name in FAMILIES]
)
def test_encode_and_decode_equal_diffusers(family, tmp_path):
    theirs = of_diffusers(**FAMILIES[family])
    theirs.save_pretrained(tmp_path)
    ours = Autoencoder.load(tmp_path, mesh(8))
    assert (ours.factor, ours.channels) == (8, theirs.config.latent_channels)
    for size in ((32, 32), (24, 40)):
        latent = normal(2, size[0] // 8, size[1] // 8, ours.channels)
        compare(ours, theirs, uniform(3, *size, 3), latent)


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_at_full_size_are_those_of_diffusers(family):
    """Names and shapes, without any numbers."""
    import torch
    from diffusers import AutoencoderKL

    found = BASE | FAMILIES[family] | {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
    with torch.device("meta"):
        theirs = AutoencoderKL(**{key: value for key, value in found.items() if key != "_class_name"})
    spec = vae.VaeSpec.from_config(found, "config.json")
    _, shapes, _ = param.split(nnx.eval_shape(lambda: vae.Vae(spec, rngs=nnx.Rngs(0))))
    ours = named_leaves(shapes)
    entries = vae.entries(name for name, _ in ours)
    assert {entries[name].names[0]: entries[name].way.their_shape(leaf.shape) for name, leaf in ours} == {
        name: tuple(weight.shape) for name, weight in theirs.state_dict().items()
    }


@pytest.mark.extra("conformance")
def test_attention_in_parts_equals_diffusers(tmp_path, monkeypatch):
    from ec_dit.encoders import vae_layers

    monkeypatch.setattr(vae_layers, "_QUERIES", 7)  # of 20 pixels: two parts and a rest
    theirs = of_diffusers()
    theirs.save_pretrained(tmp_path)
    compare(Autoencoder.load(tmp_path, mesh(2)), theirs, uniform(2, 32, 40, 3), normal(2, 4, 5, 4))


@pytest.mark.extra("conformance")
def test_files_in_parts(tmp_path):
    theirs = of_diffusers()
    theirs.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    compare(Autoencoder.load(tmp_path, mesh()), theirs, uniform(1, 16, 16, 3), normal(1, 2, 2, 4))


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.extra("conformance")
def test_first_files_of_stable_diffusion(tmp_path):
    """Other names in the attention, and a config.json that lacks what was added later."""
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file, save_file

    of_diffusers(norm_num_groups=8).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for new, old in OLD.items():
        weights = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): w for name, w in weights.items()}
    assert sum("proj_attn" in name for name in weights) == 4
    save_file(weights, file, metadata={"format": "pt"})
    first = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "latent_channels")
    found = {key: BASE[key] for key in (*first, "_class_name", "sample_size")}
    found |= {"act_fn": "silu", "in_channels": 3, "out_channels": 3, "norm_num_groups": 8}
    (tmp_path / "config.json").write_text(json.dumps(found))
    theirs = AutoencoderKL.from_pretrained(tmp_path).eval()
    assert theirs.config.scaling_factor == 0.18215
    compare(Autoencoder.load(tmp_path, mesh()), theirs, uniform(1, 16, 24, 3), normal(1, 2, 3, 4))


@pytest.mark.extra("conformance")
def test_files_in_bfloat16_compute_in_float32(tmp_path):
    """As Flux is published."""
    import torch
    from diffusers import AutoencoderKL

    of_diffusers(**FAMILIES["Flux"]).to(torch.bfloat16).save_pretrained(tmp_path)
    theirs = AutoencoderKL.from_pretrained(tmp_path, torch_dtype=torch.float32).eval()
    compare(Autoencoder.load(tmp_path, mesh()), theirs, uniform(1, 16, 16, 3), normal(1, 2, 2, 16))


@pytest.mark.extra("conformance")
def test_tiles_equal_diffusers(tmp_path):
    """One row of tiles, and columns up to those that diffusers decodes from its last, smaller tile."""
    import torch

    theirs = of_diffusers()
    theirs.save_pretrained(tmp_path)
    ours = Autoencoder.load(tmp_path, mesh())
    tile, step = 8, 6
    theirs.enable_tiling()
    theirs.tile_latent_min_size, theirs.tile_sample_min_size = tile, tile * ours.factor
    latent_BYXZ = normal(1, step, 3 * step + 2, 4)
    with torch.no_grad():
        expected = numpy_of(theirs.decode(torch_of(latent_BYXZ) / 0.18215).sample)
        theirs.disable_tiling()
        whole = numpy_of(theirs.decode(torch_of(latent_BYXZ) / 0.18215).sample)
    out_BYXZ = ours.decode(latent_BYXZ, tile=tile)
    same = 3 * step * ours.factor
    assert out_BYXZ.shape == expected.shape
    assert np.abs(out_BYXZ - whole).max() > 0.1  # tiles make a difference here, the same in both
    np.testing.assert_allclose(out_BYXZ[:, :, :same], expected[:, :, :same], rtol=1e-4, atol=1e-4)


WRONG_CONFIGS = {
    "another class": (
        {"_class_name": "PixArtTransformer2DModel"},
        "_class_name is 'PixArtTransformer2DModel'; supported: 'A",
    ),
    "another block": (
        {"down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]},
        "down_block_types is 'AttnDownEncoderBlock2D'; supported: 'DownEncoderBlock2D'",
    ),
    "fewer blocks": ({"up_block_types": ["UpDecoderBlock2D"]}, "1 up_block_types for 4 block_out_channels"),
    "latents normalised otherwise": (
        {"latents_mean": [0, 0, 0, 0]},
        r"latents_mean is \[0, 0, 0, 0\]; supported: None",
    ),
    "grey images": ({"in_channels": 1}, "in_channels is 1; supported: 3"),
    "another activation": ({"act_fn": "gelu"}, "act_fn is 'gelu'; supported: 'silu', 'swish'"),
    "odd groups": ({"norm_num_groups": 3}, "not whole multiples of norm_num_groups 3"),
    "no scale": ({"scaling_factor": 0}, "scaling_factor is 0, not above 0"),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_configs_that_are_not_supported(case):
    changes, message = WRONG_CONFIGS[case]
    with pytest.raises(UserError, match=f"config.json: .*{message}"):
        vae.VaeSpec.from_config(BASE | changes, "config.json")
