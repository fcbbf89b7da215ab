"""An image depends on its prompt, seed, index and settings only."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

from ec_dit.config import specs
from ec_dit.core.errors import UserError
from ec_dit.core.tree import named_leaves
from ec_dit.nn.routing import record
from ec_dit.nn.routing.spec import IMAGE, RoutingSpec
from ec_dit.system import step as training_step
from ec_dit.system.painter import Painter
from tests import helpers

pytestmark = pytest.mark.slow


def random_params(system):
    """Everything random: zero gates would hide attention and experts. Tables of training hold numbers that could be."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = str(path[-1])
        if record.TABLE in name:
            return rng.uniform(1, 3, leaf.shape).astype(np.float32)
        values = rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        return 0.3 + values / 20 if record.THRESHOLD in name else values

    return jax.tree_util.tree_map_with_path(draw, system.shapes())


JOINT_KV = {
    "model__block": "joint_kv",
    "model__position": "rope",
    "model__position_fit": "centred",
    "sample__guidance_norm": "token",
    "sample__group_size": "image",
}
MMDIT = {"model__block": "mmdit", "model__dual_blocks": 1, "model__position_fit": "crop", "model__position_grid": 6}
# Ways of routing whose training has pools, and what makes sampling of an image alone follow them; and blocks of other kinds.
POOLED = {
    "joint_kv": ("expert_choice", JOINT_KV),
    "mmdit": ("expert_choice", MMDIT),
    "race": ("expert_race", {"moe__score": "identity"}),
    "race_of_shares": ("expert_race", {"moe__score": "sigmoid", "moe__most": 3.0}),
    "diffmoe": ("diffmoe", {}),
    "matched": ("expert_choice", {"moe__record": True, "sample__capacity": "matched"}),
    "nucleus": (
        "expert_choice",
        {
            "moe__gate": "normalized",
            "moe__gate_scale": 2.5,
            "moe__router_input": "normed_time",
            "moe__shared_width": 64,
        },
    ),
    "top_k": ("top_k", {"moe__top_k": 3, "moe__capacity_factor": 3.0, "moe__score": "sigmoid"}),
}


@cache  # what is compiled once serves every test
def generator(routing="expert_choice", devices=1, shape=None, **overrides):
    c = helpers.tiny_config(routing, **overrides)
    system = helpers.make_system(c, jax.devices()[:devices])
    params = random_params(system)
    draw = Painter(system).generator(shape=shape)
    draw.decode = lambda images: (
        images,
        np.isfinite(images).all((1, 2, 3)),
    )  # floats, not pixels: rounding would hide differences
    return draw, params


@pytest.mark.parametrize("routing", ["expert_choice", "token_choice"])
@pytest.mark.parametrize("group", ["pair", "image"])
def test_alone_or_in_company(routing, group):
    draw, params = generator(routing, sample__group_size=group)
    company = draw(params, ["abc", "fed", "aaa", "b", "c", "dd", "e", "fab"], [0, 0, 0, 3, 4, 5, 6, 7], seed=5)
    alone = draw(params, ["aaa"], [0], seed=5)
    np.testing.assert_allclose(alone[0], company[2], atol=1e-4)
    assert np.abs(company[2] - company[1]).max() > 0.01


@pytest.mark.parametrize("name", POOLED)
def test_alone_or_in_company_whatever_training_pools(name):
    """Batches of another size too; and on eight devices."""
    routing, changes = POOLED[name]
    draw, params = generator(routing, **changes)
    company = draw(params, ["abc", "fed", "aaa", "b", "c"], [0, 0, 0, 3, 4], seed=5)
    np.testing.assert_allclose(draw(params, ["aaa"], [0], seed=5)[0], company[2], atol=1e-4)
    assert np.abs(company[2] - company[1]).max() > 0.01
    small, _ = generator(routing, sample__batch_size=2, **changes)
    np.testing.assert_allclose(small(params, ["fed", "aaa"], [0, 0], seed=5), company[1:3], atol=1e-4)
    eight, _ = generator(routing, devices=8, mesh__expert=8, **changes)
    np.testing.assert_allclose(eight(params, ["fed", "aaa"], [0, 0], seed=5), company[1:3], atol=1e-4)


@pytest.mark.parametrize(
    ("group", "routing"),
    [
        ("pair", "expert_choice"),
        pytest.param("image", "token_choice", marks=pytest.mark.exhaustive),
        pytest.param("pair", "token_choice", marks=pytest.mark.exhaustive),
        pytest.param("image", "expert_choice", marks=pytest.mark.exhaustive),
    ],
)
def test_pictures_of_another_shape(routing, group):
    """15 tokens, 8 experts: capacities of 3.75 and 7.5 are rounded up. On eight devices as on one, alone or in company."""
    draw, params = generator(routing, shape=(6, 10), sample__group_size=group)
    draw_eight, _ = generator(routing, devices=8, shape=(6, 10), sample__group_size=group, mesh__expert=8)
    company = draw(params, ["abc", "fed", "aaa"], [0, 0, 3], seed=5)
    assert company.shape == (3, 6, 10, 3)
    np.testing.assert_allclose(draw(params, ["aaa"], [3], seed=5)[0], company[2], atol=1e-4)
    np.testing.assert_allclose(draw_eight(params, ["fed", "aaa"], [0, 3], seed=5), company[1:], atol=1e-4)
    assert np.abs(company[2] - company[1]).max() > 0.01


def test_the_square_is_a_shape_like_any_other():
    draw, params = generator()
    named, _ = generator(shape=(8, 8))
    np.testing.assert_array_equal(named(params, ["abc"], [0], seed=5), draw(params, ["abc"], [0], seed=5))


@pytest.mark.parametrize(
    ("shape", "group"),
    [((6, 10), "pair"), ((4, 16), "8")]
    + [
        pytest.param(shape, group, marks=pytest.mark.exhaustive)
        for shape, groups in (((8, 8), ("pair", "image", "8")), ((6, 10), ("image",)), ((4, 16), ("pair", "image")))
        for group in groups
    ],  # groups of 8 do not divide the 15 tokens of (6, 10)
)
def test_validation_routes_an_image_of_any_shape_alone(shape, group):
    c = helpers.tiny_config(sample__group_size=group)
    system = helpers.make_system(c, jax.devices()[:1])
    params, validate = random_params(system), training_step.make_validation(system)
    image_BYXZ = np.random.default_rng(0).uniform(-1, 1, (16, *shape, 3)).astype(np.float32)
    batch = helpers.batch(c)._replace(image_BYXZ=image_BYXZ, position_B=np.arange(16))
    placed = training_step.place(system, batch)
    together, count = validate(params, placed)
    only = [np.where(np.arange(16) == i, i, -1) for i in range(16)]
    alone = [validate(params, placed._replace(position_B=position_B))[0] for position_B in only]
    assert count == 16
    np.testing.assert_allclose(together, np.sum(alone), rtol=1e-5)
    # Other images beside it change nothing.
    others = batch._replace(image_BYXZ=np.concatenate([image_BYXZ[:1], -image_BYXZ[1:]]), position_B=only[0])
    np.testing.assert_allclose(validate(params, training_step.place(system, others))[0], alone[0], rtol=1e-5)
    routing = RoutingSpec(group_size=8 if group == "8" else IMAGE)
    goal = dataclasses.replace(specs.training_objective(c, system.null_text()), routing=routing)
    loss_fn = jax.jit(lambda params, *args: goal.validation_loss(nnx.merge(system.graphdef, params), None, *args))
    np.testing.assert_allclose(together, loss_fn(params, placed).sum(), rtol=1e-6)


@pytest.mark.parametrize(
    "mesh",
    [
        {"mesh__expert": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
        pytest.param({}, marks=pytest.mark.exhaustive),
        pytest.param({"mesh__expert": 8}, marks=pytest.mark.exhaustive),
    ],
)
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


def test_groups_of_another_shape_are_of_its_tokens():
    config = helpers.tiny_config()
    settings = specs.sample_settings(config, (6, 10))
    assert (settings.routing.group_size, settings.paired_routing.group_size) == (15, 30)
    assert specs.sample_settings(config, (8, 8)) == specs.sample_settings(config)
    with pytest.raises(UserError, match=r"an image has 15 tokens \(6 x 10 pixels\), .* divisor of 30"):
        specs.sample_settings(helpers.tiny_config(sample__group_size="16"), (6, 10))
    with pytest.raises(UserError, match=r"an image of 6 x 9 pixels .* make both sides multiples of 2"):
        specs.sample_settings(config, (6, 9))


def test_the_square_must_come_out_whole():
    with pytest.raises(UserError, match=r"group size 9 x capacity factor 2 / 8 experts = 2\.25"):
        specs.sample_settings(helpers.tiny_config(data__size=6, flow__mask_ratio=0.0))


def test_capacity_and_group_may_be_raised_for_sampling():
    settings = specs.sample_settings(helpers.tiny_config(sample__capacity_factor=4.0, sample__group_size="image"))
    assert settings.routing.capacity_factor == 4.0
    assert settings.paired_routing.group_size == 16


def test_weights_loaded_for_sampling_in_half_precision_draw_the_same():
    """Matrices are held in the dtype in which they are used; the router and everything that is no matrix in float32."""
    draw, params = generator(model__dtype="bfloat16")
    system = helpers.make_system(helpers.tiny_config(model__dtype="bfloat16"), jax.devices()[:1])
    held = jax.tree.map(lambda a, like: a.astype(like.dtype), params, system.sampling_params(system.abstract_params()))
    halved = [name for name, leaf in named_leaves(held) if leaf.dtype != np.float32]
    assert any("w_up_EDF" in name for name in halved) and not any("router" in name for name in halved)
    np.testing.assert_array_equal(draw(held, ["abc"], [0], seed=1), draw(params, ["abc"], [0], seed=1))
