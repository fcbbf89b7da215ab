"""An image depends on its prompt, seed, index and settings only."""

import jax
import numpy as np
import pytest

from ec_dit import specs
from ec_dit.core.errors import UserError
from ec_dit.core.tree import named_leaves
from ec_dit.train.checkpoint import abstract_like
from tests import helpers

pytestmark = pytest.mark.slow


def generator(routing="expert_choice", devices=1, **overrides):
    c = helpers.tiny_config(routing, **overrides)
    system = helpers.make_system(c, jax.devices()[:devices])
    shapes = jax.eval_shape(system.init_params, jax.random.key(0))
    rng = np.random.default_rng(0)  # everything random: zero gates would hide attention and experts
    params = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)
    draw = system.generator()
    draw._decode = lambda images: images  # floats, not pixels: rounding would hide differences
    return draw, params


@pytest.mark.parametrize("routing", ["expert_choice", "token_choice"])
@pytest.mark.parametrize("group", ["pair", "image"])
def test_alone_or_in_company(routing, group):
    draw, params = generator(routing, sample__group_size=group)
    company = draw(params, ["abc", "fed", "aaa", "b", "c", "dd", "e", "fab"], [0, 0, 0, 3, 4, 5, 6, 7], seed=5)
    alone = draw(params, ["aaa"], [0], seed=5)
    np.testing.assert_allclose(alone[0], company[2], atol=1e-4)
    assert np.abs(company[2] - company[1]).max() > 0.01


@pytest.mark.parametrize("mesh", [{}, {"mesh__expert": 8}, {"mesh__expert": 2, "mesh__fsdp": 2, "mesh__tensor": 2}])
def test_one_device_or_eight(mesh):
    """Also where neither the training batch nor the sampling batch splits over the devices."""
    draw, params = generator()
    draw_eight, _ = generator(devices=8, train__batch_size=6, sample__batch_size=3, **mesh)
    prompts = ["abc", "fed", "cab", "ace", "bed"]
    one, eight = (d(params, prompts, range(5), seed=1) for d in (draw, draw_eight))
    np.testing.assert_allclose(one, eight, atol=1e-4)


def test_seed_and_index_make_other_images():
    draw, params = generator()
    a, b = draw(params, ["abc", "abc"], [0, 1], seed=1)
    (c,) = draw(params, ["abc"], [0], seed=2)
    assert np.abs(a - b).max() > 0.1
    assert np.abs(a - c).max() > 0.1


def test_a_group_that_spans_images_is_refused():
    with pytest.raises(UserError, match="an image has 16 tokens"):
        specs.sample_settings(helpers.tiny_config(sample__group_size="64"))
    small = helpers.tiny_config(data__size=12, sample__group_size="24")  # 36 tokens: 24 divides the pair, not the image
    with pytest.raises(UserError, match="an image alone has 36 tokens"):
        specs.sample_settings(small)


def test_capacity_and_group_may_be_raised_for_sampling():
    settings = specs.sample_settings(helpers.tiny_config(sample__capacity_factor=4.0, sample__group_size="image"))
    assert settings.routing.capacity_factor == 4.0
    assert settings.paired_routing.group_size == 16


def test_weights_loaded_for_sampling_in_half_precision_draw_the_same():
    """Matrices are held in the dtype in which they are used; the router and everything that is no matrix in float32."""
    draw, params = generator(model__dtype="bfloat16")
    system = helpers.make_system(helpers.tiny_config(model__dtype="bfloat16"), jax.devices()[:1])
    abstract = abstract_like(*system.abstract_state(system.optimizer())).params
    held = jax.tree.map(lambda a, like: a.astype(like.dtype), params, system.sampling_params(abstract))
    halved = [name for name, leaf in named_leaves(held) if leaf.dtype != np.float32]
    assert any("w_up_EDF" in name for name in halved) and not any("router" in name for name in halved)
    np.testing.assert_array_equal(draw(held, ["abc"], [0], seed=1), draw(params, ["abc"], [0], seed=1))
