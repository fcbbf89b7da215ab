"""Features of pictures batch by batch: their order, padding, meshes, and what is made ready while a batch is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.core.mesh import make_mesh
from ec_dit.encoders.features import Features
from ec_dit.encoders.weights import Frozen
from ec_dit.nn import param


class Sums(nnx.Module):
    """Pictures (B, 2, 2, 3) -> their sums with weights (B, 5)."""

    def __init__(self, rngs):
        self.w_YXZD = param.table(jax.random.normal(rngs.params(), (2, 2, 3, 5)), (None,) * 4)

    def __call__(self, image_BYXZ):
        return jnp.einsum("byxz,yxzd->bd", image_BYXZ, self.w_YXZD[...])


@pytest.fixture(scope="module")
def network():
    graphdef, params, _ = param.split(Sums(nnx.Rngs(0)))
    return Frozen(graphdef, params)


def halved(image_YXZ):
    return image_YXZ.astype(np.float32)[:2, :2] / 2


def pictures(count):
    return list(np.random.default_rng(0).integers(0, 256, (count, 3, 4, 3), np.uint8))


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7])
def test_features_are_those_of_their_pictures_in_order(network, count):
    mesh = make_mesh((1, 1, 1, 1), jax.devices()[:1])
    made = pictures(count)
    found = list(Features(network, halved, mesh, batch=3)(iter(made)))
    assert [len(features_BD) for features_BD in found] == [3] * (count // 3) + ([count % 3] if count % 3 else [])
    w_YXZD = np.asarray(network.params["w_YXZD"], float)
    expected = [np.einsum("yxz,yxzd->d", picture[:2, :2] / 2.0, w_YXZD) for picture in made]
    if count:
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5)


def test_a_mesh_gives_the_same_bits(network):
    one = Features(network, halved, make_mesh((1, 1, 1, 1), jax.devices()[:1]), batch=2)
    eight = Features(network, halved, make_mesh((2, 2, 2, 1)), batch=2)
    np.testing.assert_array_equal(np.concatenate(list(one(pictures(21)))), np.concatenate(list(eight(pictures(21)))))


def test_the_next_pictures_are_made_while_a_batch_is_computed(network):
    """What draws pictures goes on to the second batch before anybody waits for the features of the first."""
    drawn = []

    def draw():
        for number, picture in enumerate(pictures(9)):
            drawn.append(number)
            yield picture

    features = Features(network, halved, make_mesh((1, 1, 1, 1), jax.devices()[:1]), batch=3)(draw())
    next(features)
    assert drawn == list(range(6))
    next(features)
    assert drawn == list(range(9))
