"""Loaded autoencoders: over meshes, in tiles, and with mistakes. test_vae.py compares them with diffusers'."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.encoders.autoencoder import Autoencoder, Identity
from tests.encoders.tiny_vae import BASE, mesh, normal, published, uniform

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return published(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def autoencoder(folder):
    return Autoencoder.load(folder, mesh())


@pytest.mark.parametrize("shape", [(1, 2, 2, 2), pytest.param((8, 1, 1, 1), marks=pytest.mark.exhaustive)])
def test_a_mesh_gives_what_one_device_gives(autoencoder, folder, shape):
    many = Autoencoder.load(folder, make_mesh(shape))
    image_BYXZ, latent_BYXZ = uniform(5, 16, 24, 3), normal(3, 2, 5, 4)
    for ours, expected in zip(many.encode(image_BYXZ), autoencoder.encode(image_BYXZ), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    for tile in (None, 4):
        ours, expected = many.decode(latent_BYXZ, tile), autoencoder.decode(latent_BYXZ, tile)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch(autoencoder):
    image_BYXZ = uniform(3, 16, 16, 3)
    for whole, alone in zip(autoencoder.encode(image_BYXZ), autoencoder.encode(image_BYXZ[1:2]), strict=True):
        np.testing.assert_allclose(whole[1:2], alone, rtol=0, atol=1e-5)


def test_normalisation_undoes_itself(tmp_path):
    """The same weights under another scale and shift: other latents, which decode to the same images."""
    plain = Autoencoder.load(published(tmp_path / "plain", scaling_factor=1.0, shift_factor=None), mesh())
    scaled = Autoencoder.load(published(tmp_path / "scaled", scaling_factor=0.5, shift_factor=0.3), mesh())
    image_BYXZ = uniform(2, 16, 16, 3)
    (mean_BYXZ, std_BYXZ), (other_BYXZ, narrow_BYXZ) = plain.encode(image_BYXZ), scaled.encode(image_BYXZ)
    np.testing.assert_allclose(other_BYXZ, (mean_BYXZ - 0.3) * 0.5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(narrow_BYXZ, std_BYXZ * 0.5, rtol=1e-5)
    np.testing.assert_allclose(scaled.decode(other_BYXZ), plain.decode(mean_BYXZ), rtol=0, atol=1e-4)


def test_large_latents_are_decoded_in_tiles(autoencoder):
    assert autoencoder.tile == 128  # and not the 8 of a sample_size of 64
    latent_BYXZ = normal(2, 6, 11, 4)
    whole_BYXZ = autoencoder.decode(latent_BYXZ)
    np.testing.assert_array_equal(autoencoder.decode(latent_BYXZ, tile=11), whole_BYXZ)
    tiled_BYXZ = autoencoder.decode(latent_BYXZ, tile=8)
    assert tiled_BYXZ.shape == whole_BYXZ.shape == (2, 48, 88, 3)
    assert np.abs(tiled_BYXZ - whole_BYXZ).max() > 1e-3
    np.testing.assert_allclose(
        tiled_BYXZ[:, :, : 6 * 8], autoencoder.decode(latent_BYXZ[:, :, :8])[:, :, : 6 * 8], atol=1e-5
    )


def test_the_model_says_how_large_a_tile_is(tmp_path):
    assert Autoencoder.load(published(tmp_path, sample_size=[2048, 2048]), mesh()).tile == 256


@pytest.mark.exhaustive
def test_one_program_for_one_shape(autoencoder):
    before = autoencoder._decode._cache_size()
    for seed in range(3):
        autoencoder.decode(normal(2, 3, 4, 4, seed=seed))
    autoencoder.decode(normal(2, 4, 9, 4), tile=4)  # six tiles in three calls
    assert autoencoder._decode._cache_size() == before + 2


def test_bfloat16_is_near(autoencoder, folder):
    half = Autoencoder.load(folder, mesh(), jnp.bfloat16)
    latent_BYXZ = normal(2, 3, 3, 4)
    ours, exact = half.decode(latent_BYXZ), autoencoder.decode(latent_BYXZ)
    assert ours.dtype == np.float32
    assert 0 < np.abs(ours - exact).mean() < 0.05 * exact.std()


def test_identity_is_an_autoencoder_of_pixels():
    pixels = Identity()
    image_BYXZ = uniform(2, 5, 7, 3)
    mean_BYXZ, std_BYXZ = pixels.encode(image_BYXZ)
    np.testing.assert_array_equal(mean_BYXZ, image_BYXZ)
    np.testing.assert_array_equal(std_BYXZ, np.zeros_like(image_BYXZ))
    np.testing.assert_array_equal(pixels.decode(jnp.asarray(image_BYXZ), tile=2), image_BYXZ)
    assert (pixels.factor, pixels.channels) == (1, 3)


def test_the_config_of_another_model(tmp_path):
    published(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 512}))
    with pytest.raises(
        UserError, match=r"config\.json has no 'block_out_channels'; it is not the config\.json of these weights"
    ):
        Autoencoder.load(tmp_path, mesh())


def test_the_folder_above(tmp_path):
    published(tmp_path / "vae")
    with pytest.raises(UserError, match="did you mean a folder in it: vae"):
        Autoencoder.load(tmp_path, mesh())


def test_weights_that_do_not_fit_the_config(tmp_path):
    published(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(BASE | {"latent_channels": 8}))
    with pytest.raises(UserError, match=r"decoder\.conv_in\.weight has shape .*, but config\.json says"):
        Autoencoder.load(tmp_path, mesh())


def test_float16_is_refused(folder):
    with pytest.raises(UserError, match="runs in float32 or bfloat16, not float16"):
        Autoencoder.load(folder, mesh(), jnp.float16)


def test_wrong_arrays(autoencoder):
    with pytest.raises(UserError, match="images of 16 x 20 pixels: both sides must be multiples of 8"):
        autoencoder.encode(uniform(1, 16, 20, 3))
    with pytest.raises(UserError, match=r"images have shape \(1, 16, 16, 4\), not \(batch, rows, columns, 3\)"):
        autoencoder.encode(uniform(1, 16, 16, 4))
    with pytest.raises(UserError, match=r"latents have shape \(1, 2, 2, 16\), not \(batch, rows, columns, 4\)"):
        autoencoder.decode(normal(1, 2, 2, 16))
    with pytest.raises(UserError, match=r"images have shape \(16, 16, 3\), not"):
        autoencoder.encode(uniform(16, 16, 3))
    with pytest.raises(UserError, match=r"images are uint8, not floats; a byte becomes -1..1 by x / 127\.5 - 1"):
        autoencoder.encode(np.zeros((1, 16, 16, 3), np.uint8))


def test_numbers_that_are_not_finite(autoencoder, folder, tmp_path):
    image_BYXZ = uniform(1, 16, 16, 3)
    with pytest.raises(UserError, match="encoding images gave numbers that are not finite; they were not finite them"):
        autoencoder.encode(image_BYXZ * np.nan)

    def damaged(weights):
        return weights | {"encoder.conv_in.bias": np.full_like(weights["encoder.conv_in.bias"], 3e38)}

    published(tmp_path, damaged)
    with pytest.raises(UserError, match="not finite; the weights are damaged, or"):
        Autoencoder.load(tmp_path, mesh()).encode(image_BYXZ)
    with pytest.raises(UserError, match="not finite; load the autoencoder with dtype float32 instead of bfloat16"):
        Autoencoder.load(tmp_path, mesh(), jnp.bfloat16).encode(image_BYXZ)


def test_a_latent_that_diverged_spoils_no_other(autoencoder):
    """Its picture is not finite, which whoever asked for it counts."""
    latent_BYXZ = normal(3, 2, 2, 4)
    spoilt_BYXZ = latent_BYXZ.copy()
    spoilt_BYXZ[1] = np.nan
    found, expected = autoencoder.decode(spoilt_BYXZ), autoencoder.decode(latent_BYXZ)
    assert not np.isfinite(found[1]).any()
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])


def test_the_weights_by_their_own_path(folder, autoencoder):
    latent_BYXZ = normal(1, 2, 2, 4)
    ours = Autoencoder.load(folder / "diffusion_pytorch_model.safetensors", mesh())
    np.testing.assert_array_equal(ours.decode(latent_BYXZ), autoencoder.decode(latent_BYXZ))


def test_a_large_batch_is_worked_on_in_parts(autoencoder, monkeypatch):
    """Of a size that compiles once, whatever is left for the last part."""
    latent_BYXZ, image_BYXZ = normal(5, 4, 6, 4), uniform(5, 32, 48, 3)
    decoded_BYXZ, encoded = autoencoder.decode(latent_BYXZ), autoencoder.encode(image_BYXZ)
    monkeypatch.setattr("ec_dit.encoders.autoencoder._PIXELS_AT_ONCE", 2 * 4 * 6)
    before = autoencoder._decode._cache_size()
    np.testing.assert_allclose(autoencoder.decode(latent_BYXZ), decoded_BYXZ, atol=1e-5)
    assert autoencoder._decode._cache_size() == before + 1
    for part, whole in zip(autoencoder.encode(image_BYXZ), encoded, strict=True):
        np.testing.assert_allclose(part, whole, atol=1e-5)
