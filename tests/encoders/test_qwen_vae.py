"""Qwen-Image's autoencoder, tiny and random, against diffusers: latents and pictures; and what is refused."""

import jax
import numpy as np
import pytest

from ec_dit.core import hub
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.encoders import qwen_vae
from ec_dit.encoders.autoencoder import Autoencoder

pytestmark = [pytest.mark.slow, pytest.mark.extra("conformance")]

CONFIG = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "latents_mean": [-0.75, 0.5, 0.1, -0.2],
    "latents_std": [2.8, 1.4, 0.7, 1.9],
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(diffusers' model, its folder)."""
    import torch
    from diffusers import AutoencoderKLQwenImage

    folder = tmp_path_factory.mktemp("qwen_vae")
    torch.manual_seed(0)
    model = AutoencoderKLQwenImage(**CONFIG).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("mesh", [(1, 1, 1, 1), (4, 1, 2, 1)])
def test_latents_and_pictures_equal_diffusers(published, mesh):
    import torch

    theirs, folder = published
    ours = Autoencoder.load(folder, make_mesh(mesh, jax.devices()[: int(np.prod(mesh))]))
    assert (ours.factor, ours.channels) == (8, 4)
    rng = np.random.default_rng(0)
    image_BYXZ = rng.uniform(-1, 1, (3, 32, 48, 3)).astype(np.float32)
    mean_Z, std_Z = (np.float32(CONFIG[key]) for key in ("latents_mean", "latents_std"))
    with torch.no_grad():
        posterior = theirs.encode(torch.from_numpy(image_BYXZ.transpose(0, 3, 1, 2)[:, :, None].copy())).latent_dist
        mean, std = (a[:, :, 0].permute(0, 2, 3, 1).numpy() for a in (posterior.mean, posterior.std))
        latent_BYXZ = rng.normal(size=(3, 4, 6, 4)).astype(np.float32)
        z_BZYX = torch.from_numpy((latent_BYXZ * std_Z + mean_Z).transpose(0, 3, 1, 2)[:, :, None].copy())
        pictures = theirs.decode(z_BZYX).sample[:, :, 0].permute(0, 2, 3, 1).numpy()
    found_mean, found_std = ours.encode(image_BYXZ)
    assert mean.std() > 0.05
    np.testing.assert_allclose(found_mean, (mean - mean_Z) / std_Z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found_std, std / std_Z, rtol=1e-4, atol=1e-4)
    drawn = ours.decode(latent_BYXZ)
    assert pictures.std() > 0.05
    np.testing.assert_allclose(np.clip(drawn, -1, 1), pictures, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_scales": [0.5]}, r"attn_scales is \[0.5\]; supported: \[\]"),
        ({"latents_std": [1.0, 0.0, 1.0, 1.0]}, "latents_std is .* not a number for each of 4 channels"),
        ({"latents_mean": [1.0]}, "latents_mean is .* not a number for each of 4 channels"),
        ({"temperal_downsample": [True]}, "temperal_downsample and dim_mult do not go together"),
        ({"dim_mult": [1, 2.5]}, "dim_mult is"),
    ],
)
def test_other_configs_are_refused(published, changes, message):
    found = hub.config(published[1])
    qwen_vae.spec_of(found, "here")
    with pytest.raises(UserError, match=message):
        qwen_vae.spec_of(found | changes, "here")
