"""What the rooms below get of a config, worked out by hand."""

import contextlib
import dataclasses
import math

import jax
import numpy as np
import pytest

from ec_dit.config import KEYS, specs
from ec_dit.core import settings
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import MESH_AXES
from ec_dit.core.tree import named_leaves
from ec_dit.objectives.denoise import Denoise
from tests import helpers


def test_the_transformer_has_the_fields_of_the_sections_it_comes_from():
    config = helpers.tiny_config()
    spec = specs.dit_spec(config)
    assert (spec.latent_size, spec.channels, spec.text_width) == (8, 3, 32)
    for section, made in ((config.model, spec), (config.moe, spec.sparse)):
        shared = {each.name for each in dataclasses.fields(section)} & {each.name for each in dataclasses.fields(made)}
        assert shared and all(getattr(made, name) == getattr(section, name) for name in shared)


@pytest.mark.slow
def test_keys_that_parameters_get_their_shapes_from_say_so():
    """Every other key of the model, changed alone, leaves the parameters as they are."""

    def shapes(c):
        params = helpers.make_system(c, jax.devices()[:1]).shapes()
        return {name: leaf.shape for name, leaf in named_leaves(params)}

    base, tried = helpers.tiny_config(), set()
    before = shapes(base)
    for name, known in KEYS.items():
        value, kind = settings.get(base, name), known.kind
        others = [word for word in known.words if word != value] or ([not value] if kind is bool else [])
        others = others or ([2 * value or 1] if kind in (int, float) else [])
        of_the_model = name.partition(".")[0] in ("model", "moe", "text")
        if of_the_model and others and (known.facts.params != "shape" or name == "model.num_blocks"):
            with contextlib.suppress(UserError):  # which says that it does not fit the others
                same = shapes(settings.changed(base, {name: others[0]})) == before
                assert same == (name != "model.num_blocks"), name
                tried.add(name)
    assert {"model.num_blocks", "model.remat", "model.position_fit", "moe.gate", "text.lower"} <= tried


def test_the_text_tower_has_the_words_of_its_tokenizer():
    config, tokenizer = helpers.tiny_config(), helpers.LetterTokenizer()
    tower = specs.tower_spec(config, tokenizer)
    assert dataclasses.astuple(tower)[:5] == (32, 32, 1, 2, helpers.LENGTH)
    cached = helpers.change(config, text__encoder="cached")
    assert specs.tower_spec(cached, None) is specs.tower_spec(cached, tokenizer) is None
    with pytest.raises(UserError, match="needs a tokenizer: prepare a data set first"):
        specs.tower_spec(config, None)


@pytest.mark.parametrize(("shape", "tokens"), [(None, 16), ((8, 8), 16), ((4, 16), 16), ((8, 12), 24), ((2, 2), 1)])
def test_tokens_are_patches(shape, tokens):
    """2 x 2 pixels make a token; training drops half of them, where that is a whole number."""
    config = helpers.tiny_config()
    assert specs.image_tokens(config, shape) == tokens
    if tokens % 2 == 0:
        assert specs.kept_tokens(config, shape) == tokens // 2
        assert specs.kept_tokens(helpers.change(config, flow__mask_ratio=0.0), shape) == tokens


@pytest.mark.parametrize("shape", [(7, 8), (8, 9), (0, 8), (8, -2)])
def test_sides_are_whole_patches(shape):
    with pytest.raises(UserError, match=rf"an image of {shape[0]} x {shape[1]} pixels does not divide into patches"):
        specs.image_tokens(helpers.tiny_config(), shape)


def test_training_routes_groups_of_which_each_expert_takes_a_whole_number():
    """16 images of 8 kept tokens, in groups of 16: each of 8 experts takes 16 * 2 / 8 of them."""
    routing = specs.train_routing(helpers.tiny_config())
    assert (routing.routing, int(routing.group_size), routing.capacity_factor) == ("expert_choice", 16, 2.0)
    with pytest.raises(UserError, match="capacity"):
        specs.train_routing(helpers.change(helpers.tiny_config(), moe__capacity_factor=1.3))
    dense = helpers.tiny_config(routing="dense")
    assert specs.train_routing(dense).routing == "dense"


@pytest.mark.parametrize(
    ("group_size", "shape", "alone", "paired"),
    [
        ("pair", None, 16, 32),
        ("image", None, 16, 16),
        ("pair", (8, 12), 24, 48),
        ("image", (8, 12), 24, 24),
        ("8", None, 8, 8),
        ("32", None, 16, 32),
    ],
)
def test_no_routing_group_of_sampling_spans_two_images(group_size, shape, alone, paired):
    config = helpers.change(helpers.tiny_config(), sample__group_size=group_size, sample__capacity_factor=4.0)
    settings = specs.sample_settings(config, shape)
    assert (settings.routing.group_size, settings.paired_routing.group_size) == (alone, paired)
    assert settings.routing.capacity_factor == settings.paired_routing.capacity_factor == 4.0
    assert (settings.steps, settings.sampler, settings.prediction) == (3, "heun", config.flow.prediction)
    trained = helpers.change(config, sample__capacity_factor=0.0)  # as in training
    assert specs.sample_settings(trained, shape).routing.capacity_factor == config.moe.capacity_factor


@pytest.mark.parametrize(
    ("group_size", "shape", "words"),
    [
        ("12", None, "an image has 16 tokens .8 x 8 pixels., with its unconditional copy 32; a group must divide that"),
        ("64", None, "a group must divide that"),
        ("16", (8, 12), "an image alone has 24 tokens .8 x 12 pixels., which groups of 16 do not divide"),
    ],
)
def test_a_group_that_would_span_two_images_is_refused(group_size, shape, words):
    config = helpers.change(helpers.tiny_config(), sample__group_size=group_size)
    with pytest.raises(UserError, match=words):
        specs.sample_settings(config, shape)


@pytest.mark.parametrize(("batch_size", "accumulate", "devices"), [(16, 1, 16), (16, 2, 8), (48, 3, 4), (16, 4, 8)])
def test_a_micro_batch_and_its_groups_split_over_all_devices(batch_size, accumulate, devices):
    """Groups of 16 tokens hold two images."""
    config = helpers.tiny_config(train__batch_size=batch_size)
    config = helpers.change(config, train__accumulate=accumulate)
    mesh = jax.sharding.AbstractMesh((devices, 1, 1, 1), MESH_AXES)
    images = batch_size // accumulate
    if images % devices == 0 and images // 2 % devices == 0:
        specs.check_batch(config, mesh)
        return
    with pytest.raises(UserError, match=rf"over {devices} devices"):
        specs.check_batch(config, mesh)
    fits = math.gcd(images, images // 2, devices)
    specs.check_batch(config, jax.sharding.AbstractMesh((fits, 1, 1, 1), MESH_AXES))


def test_the_balancing_loss_counts_for_token_choice_alone():
    null = np.zeros(3)
    for routing, weight in (("token_choice", 0.25), ("expert_choice", 0.0), ("dense", 0.0)):
        config = helpers.change(helpers.tiny_config(routing=routing), moe__aux_weight=0.25)
        made = specs.training_objective(config, null)
        assert isinstance(made, Denoise) and made.aux_weight == weight and made.null_text is null
        assert made.routing == specs.train_routing(config) and made.mask_ratio == config.flow.mask_ratio


def test_a_text_tower_gives_no_pooled_vectors():
    c = helpers.tiny_config(text__pooled_width=12)
    assert specs.dit_spec(c).pooled_width == 0
    assert specs.dit_spec(helpers.change(c, text__encoder="cached")).pooled_width == 12
