"""Keys and values of a config: what is refused, with which words, and what survives JSON."""

import functools
import json

import jax
import pytest

from ec_dit import config
from ec_dit.config import RunConfig, checks, specs
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import MESH_AXES
from tests import helpers


def changed(**values) -> RunConfig:
    """The default config with dotted keys (__ for the dot) replaced."""
    return helpers.change(RunConfig(), **values)


def test_default_is_valid():
    checks.validate(RunConfig())
    assert config.typed(config.default()) == RunConfig()


@pytest.mark.parametrize("key", config.KEYS)
def test_every_key_keeps_its_type(key):
    c = config.default().lock()
    *sections, name = key.split(".")
    holder = functools.reduce(lambda section, part: section[part], sections, c)
    value = holder[name]
    holder[name] = value
    wrong = 1 if isinstance(value, str | tuple) else "word"
    with pytest.raises(TypeError):
        holder[name] = wrong
    assert holder[name] == value


EXPERTS = {"moe__routing": "expert_choice", "moe__num_experts": 8}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"moe__routing": "expert_choise"},
            r"moe.routing='expert_choise': choose one of .*did you mean expert_choice\?",
        ),
        ({"optimizer__name": "sgd"}, r"optimizer.name='sgd': choose one of rmsprop, adamw, muon"),
        (
            {"data__source": "shape"},
            r"data.source='shape': choose one of emoji, icons, shapes, coco, folder, .*did you mean shapes",
        ),
        ({"train__steps": 0}, r"train.steps=0: must be at least 1"),
        ({"optimizer__clip_norm": -1.0}, r"optimizer.clip_norm=-1.0: must not be negative"),
        ({"flow__mask_ratio": 1.0}, r"flow.mask_ratio=1.0: must be at least 0 and less than 1"),
        ({"optimizer__learning_rate": 0.0}, r"optimizer.learning_rate=0.0: must be greater than 0"),
        ({"moe__group_size": "pair"}, r"moe.group_size='pair': give a number of tokens, or image"),
        ({"sample__group_size": "0"}, r"sample.group_size='0': give a number of tokens, or image or pair"),
        ({"moe__num_experts": 4}, r"moe.num_experts=4: routing 'dense' needs 0"),
        (
            {**EXPERTS, "moe__score": "identity", "moe__gate": "normalized"},
            r"moe.score='identity': logits may be negative",
        ),
        (
            {**EXPERTS, "moe__routing": "top_k", "moe__score": "identity"},
            r"moe.score='identity': logits may be negative",
        ),
        ({**EXPERTS, "moe__routing": "top_k", "moe__top_k": 9}, r"moe.top_k=9: there are 8 experts"),
        (
            {**EXPERTS, "moe__router": "cosine", "moe__router_input": "normed_time"},
            r"moe.router='cosine': prototypes are",
        ),
        (
            {**EXPERTS, "moe__capacity_factors": (0.0,)},
            r"moe.capacity_factors=\(0.0,\): give a number above 0 for each",
        ),
        (
            {**EXPERTS, "moe__capacity_factors": (2.0,) * 14, "sample__capacity_factor": 4.0},
            r"sample.capacity_factor=4.0: every sparse block has its own, moe.capacity_factors",
        ),
        (
            {**EXPERTS, "moe__capacity_factors": (2.0,) * 14, "moe__capacity_factor": 4.0},
            r"moe.capacity_factor=4.0: every sparse block has its own, moe.capacity_factors",
        ),
        ({**EXPERTS, "sample__capacity": "matched"}, r"sample.capacity='matched': it goes by what training recorded"),
        ({"moe__routing": "token_choice"}, r"moe.num_experts=0: routing 'token_choice' needs >= 2"),
        ({"model__patch": 3}, r"data.size=32: model.patch 3 must divide it"),
        ({"model__num_kv_heads": 4}, r"model.num_kv_heads=4: must divide num_heads 18"),
        ({"train__accumulate": 3}, r"train.accumulate=3: must divide train.batch_size 4096"),
        ({"sample__guidance_interval": (0.5, 0.5)}, r"sample.guidance_interval=\(0.5, 0.5\): give two times"),
        ({"flow__mask_ratio": 0.3}, r"flow.mask_ratio=0.3 keeps 179.2 of the 256 tokens"),
        ({"text__encoder": "tower", "text__tower_heads": 3}, r"text.tower_heads=3: must divide text.width 1280"),
        ({"data__space": "pixels"}, r"data.channels=4: pixels have 3 channels"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(UserError, match=rf"^--config\.{words}"):
        checks.validate(changed(**values))


def test_json_round_trip():
    c = changed(model__width=77, log__prompts=("a red circle", "b"), sample__guidance_interval=(0.25, 0.75))
    c = helpers.change(c, data__options={"image_size": 16, "colors": ("red",)})
    text = config.to_json(c)
    back = config.from_json(text)
    assert config.to_json(back) == text
    assert back.model.width == 77
    assert tuple(back.sample.guidance_interval) == (0.25, 0.75)
    assert config.difference(c, back) == []
    checks.validate(back)


def test_json_of_an_older_version_takes_new_defaults():
    old = json.loads(config.to_json(changed(train__steps=7)))
    del old["optimizer"]["eps"], old["eval"], old["objective"]
    back = config.from_json(json.dumps(old))
    assert back.objective.name == "denoise" and config.difference(back, changed(train__steps=7)) == []
    assert back.optimizer.eps == RunConfig().optimizer.eps
    assert back.eval.suites == ()
    assert back.train.steps == 7


@pytest.mark.parametrize(
    ("saved", "suites"),
    [
        ({"suites": ["shapes"], "images_per_task": 7}, ("shapes:images_per_task=7",)),
        ({"suites": [], "images_per_task": 40}, ()),
        ({"suites": ["shapes"]}, ("shapes",)),
    ],
)
def test_json_of_an_older_version_has_the_pictures_of_a_task_as_a_key(saved, suites):
    old = json.loads(config.to_json(changed(data__source="shapes", text__encoder="tower"))) | {"eval": saved}
    back = config.from_json(json.dumps(old))
    assert back.eval.suites == suites
    checks.validate(back)


def test_difference_lists_what_must_not_change():
    old = RunConfig()
    new = changed(model__width=1536, log__every=1, mesh__fsdp=8, train__steps=9, data__workers=4, flow__mask_ratio=0.25)
    assert config.difference(old, new) == ["flow.mask_ratio: 0.5 -> 0.25", "model.width: 1152 -> 1536"]
    assert config.difference(new, new) == []


def test_what_changes_memory_alone_may_change_and_what_looks_so_says_why():
    sparse = {"moe__routing": "expert_choice", "moe__num_experts": 8}
    old, free = changed(**sparse), changed(**sparse, model__remat="full", moe__combine="one_hot", mesh__expert=4)
    free = helpers.change(free, name="again")
    assert config.difference(old, free) == []
    (line,) = config.difference(old, changed(**sparse, train__accumulate=2))
    assert line.startswith("train.accumulate: 1 -> 2 (each micro-batch draws noise")
    assert "with fewer devices, or less memory, give model.remat=full" in line
    (line,) = config.difference(old, changed(**sparse, moe__group_size="512"))
    assert line.startswith('moe.group_size: "1024" -> "512" (it decides which tokens compete')


def test_length_of_a_run_may_change_only_where_the_schedule_ignores_it():
    old, new = (changed(optimizer__schedule="cosine", train__steps=steps) for steps in (10, 20))
    assert config.difference(old, new) == ["train.steps: 10 -> 20"]
    assert config.difference(changed(train__steps=10), changed(train__steps=20)) == []


def test_cudnn_attention_is_refused_without_a_gpu():
    c = helpers.tiny_config(model__attention="cudnn")
    with pytest.raises(UserError, match=r"--config\.model\.attention=cudnn needs NVIDIA GPUs"):
        helpers.make_system(c)


def mesh_of(devices):
    return jax.sharding.AbstractMesh((devices, 1, 1, 1), MESH_AXES)


def test_batches_of_several_shapes():
    specs.check_batch(helpers.tiny_config(), mesh_of(8))
    specs.check_batch(helpers.tiny_config(), mesh_of(8), [(8, 8), (4, 16), (8, 16)])
    each_alone = helpers.tiny_config(moe__group_size="image")
    specs.check_batch(each_alone, mesh_of(8), [(8, 8), (8, 12), (4, 6), (12, 10)])  # C = 2, 3, 0.75, 3.75
    assert specs.kept_tokens(each_alone) == specs.kept_tokens(each_alone, (8, 8)) == 8
    assert specs.kept_tokens(each_alone, (8, 12)) == 12


@pytest.mark.parametrize(
    ("shape", "devices", "values", "words"),
    [
        ((8, 7), 1, {}, r"^an image of 8 x 7 pixels .* patches of 2 x 2: make both sides multiples of 2"),
        (
            (6, 6),
            1,
            {},
            r"flow\.mask_ratio=0\.5 keeps 4\.5 of the 9 tokens of an image of 6 x 6 pixels, .* whole number",
        ),
        (
            (8, 12),
            1,
            {"train__batch_size": 8, "moe__group_size": "64"},
            r"^batches of 8 x 12 pixels: routing: groups of 64 tokens do not divide the 96 tokens",
        ),
        (
            (8, 12),
            8,
            {},
            r"16 images \(8 x 12 pixels\) x 12 tokens makes 12 routing groups of 16 tokens, .* over 8 devices",
        ),
        ((6, 6), 1, {"flow__mask_ratio": 0.0, "sample__group_size": "8"}, r"has 9 tokens \(6 x 6 pixels\)"),
        (
            (8, 12),
            3,
            {},
            r"16 images do not split over 3 devices .*multiple of 3; .*mesh.tensor=3, with 1 devices over",
        ),
        (
            (8, 8),
            12,
            {"moe__group_size": "image"},
            r"16 images do not split over 12 devices .* give --config.mesh.tensor=3, with 4 devices over the other axes",
        ),
        (
            (8, 12),
            8,
            {},
            r"12 routing groups .* as in a run that goes on: give --config.mesh.tensor=2, with 4 devices over",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_named(shape, devices, values, words):
    with pytest.raises(UserError, match=words):
        specs.check_batch(helpers.tiny_config(**values), mesh_of(devices), [(8, 8), shape])


def test_latent_shapes_are_named_so():
    c = helpers.tiny_config(data__space="latents", data__channels=4)
    with pytest.raises(UserError, match="an image of 8 x 7 latent pixels"):
        specs.check_batch(c, mesh_of(1), [(8, 7)])
