"""FID's Inception: features of pytorch-fid's own network from its file, alone and over a mesh; files of other networks."""

import jax
import numpy as np
import pytest

from ec_dit.core import export, hub
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.encoders import inception
from ec_dit.encoders.features import Features
from ec_dit.encoders.resizing import RESIZES, clean_fid, pytorch_fid
from tests import fid_network, fid_tools

pytestmark = [pytest.mark.slow, pytest.mark.extra("conformance"), pytest.mark.xdist_group("inception")]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return fid_network.write(tmp_path_factory.mktemp("inception") / "fid.safetensors")


@pytest.fixture(scope="module")
def pictures():
    """Noise over gradients, so that neighbours differ and large parts do, too."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64] / 64
    made = [np.stack([rows * i, columns * (4 - i), (rows - columns) * 2 + i], 2) * 60 for i in range(4)]
    return [np.clip(picture + rng.normal(0, 30, picture.shape), 0, 255).astype(np.uint8) for picture in made]


def one_device():
    return make_mesh((1, 1, 1, 1), jax.devices()[:1])


def ours(file, pictures, mesh, batch):
    found = list(Features(inception.load(file, mesh), pytorch_fid, mesh, batch)(iter(pictures)))
    return np.concatenate(found)


def test_features_equal_pytorch_fids(file, pictures):
    wanted = fid_network.features(pictures)
    assert wanted.shape == (4, 2048) and wanted.std() > 0.1 and wanted.std(0).mean() > 0.01
    found = ours(file, pictures, one_device(), 2)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_pictures_features_are_the_same_bits_in_any_company_and_on_any_mesh(file, pictures):
    alone = np.concatenate([ours(file, [picture], one_device(), 1) for picture in pictures[:3]])
    np.testing.assert_array_equal(ours(file, pictures[:3], make_mesh((2, 1, 1, 1), jax.devices()[:2]), 1), alone)


def test_resizing_is_each_tools_pixel_for_pixel(pictures):
    import torch

    build_resizer = fid_tools.load("cleanfid.resize").build_resizer
    wide = np.random.default_rng(1).integers(0, 256, (40, 500, 3), np.uint8)
    for picture in (pictures[0], wide):
        np.testing.assert_array_equal(clean_fid(picture), (build_resizer("clean")(picture) - 128) / 128)
        batch = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        wanted = torch.nn.functional.interpolate(batch, (299, 299), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(pytorch_fid(picture), 2 * wanted[0].permute(1, 2, 0).numpy() - 1, atol=1e-6)
    assert set(RESIZES) == {"pytorch_fid", "clean"}


def test_other_networks_are_refused(file, tmp_path):
    tensors = {name: hub.TensorFiles(file).read(name) for name in hub.TensorFiles(file).tensors}

    def written(name, **changes):
        left = {key: value for key, value in (tensors | changes).items() if value is not None}
        export.write(tmp_path / name, "model", left.items())
        return tmp_path / name

    with pytest.raises(UserError, match="is an Inception of 1000 classes; FID's has 1008"):
        inception.load(written("imagenet", **{"fc.weight": tensors["fc.weight"][:1000]}), one_device())
    with pytest.raises(UserError, match=r"1 of 470 tensors are missing: Mixed_7c.branch_pool.bn.running_var"):
        inception.load(written("cut", **{"Mixed_7c.branch_pool.bn.running_var": None}), one_device())
    with pytest.raises(UserError, match=r"1 tensors that nothing here uses: AuxLogits"):
        inception.load(written("more", **{"AuxLogits.conv": np.zeros(3, np.float32)}), one_device())
    with pytest.raises(
        UserError, match=r"is a pickle, which may run any program. Write it once as safetensors: python -c"
    ):
        inception.load(tmp_path / "pt_inception.pth", one_device())
