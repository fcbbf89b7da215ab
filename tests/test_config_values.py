"""Whatever stands at a key, in Python or in a saved file: a message, or a config that the rooms below can take."""

import contextlib
import functools
import json
import math

import jax
import pytest
from ml_collections import ConfigDict

from ec_dit import config, presets
from ec_dit.config import checks, overrides, specs
from ec_dit.core.errors import DamageError, UserError
from ec_dit.core.mesh import MESH_AXES
from tests import helpers

KEYS = tuple(config.KEYS)
SECTIONS = tuple(key for key, value in config.default().items() if isinstance(value, ConfigDict))
JUNK = [None, True, False, -1, 0, 1, 7, 2**31, 2**64, 10**400, -0.0, 0.3, 1e-320, 1e308, math.nan, math.inf, -math.inf]
JUNK += ["", "word", "7", "-1", "²", "\0", "\ud800", "9" * 5000, b"word", [], [0.1, 0.9], ["a", "b"], [None, 1], [[[]]]]
JUNK += [(), (0.1, 0.9), (None, 1), ("a", 1.5), (math.nan, 1.0), ((), ()), ({"a": 1},), (True, False), {"a": 1}, 1j]
MESH = jax.sharding.AbstractMesh((1, 1, 1, 1), MESH_AXES)


def passes(made) -> bool:
    """Whether a config gets through the checks, and all that is made of it; nothing but a UserError may come."""
    message = ""
    try:
        c = made()
        c = c if isinstance(c, config.RunConfig) else config.typed(c)
        checks.validate(c)
        specs.dit_spec(c)
        specs.training_objective(c, None)
        specs.check_batch(c, MESH)
        json.loads(config.to_json(c))
    except UserError as error:
        message = str(error)
    assert len(message) < 1000
    return not message


def place_of(c, key):
    """(section, name in it) of a dotted key."""
    *sections, name = key.split(".")
    return functools.reduce(lambda section, part: section[part], sections, c), name


def with_value(c, key, value):
    """The config with a value that its own types would refuse."""
    holder, name = place_of(c, key)
    object.__getattribute__(holder, "_fields")[name] = value
    return c


def test_any_value_of_any_key():
    c, good = presets.shapes(), 0
    for key in KEYS:
        holder, name = place_of(c, key)
        was = holder[name]
        for junk in JUNK:
            good += passes(lambda key=key, junk=junk: with_value(c, key, junk))
        with_value(c, key, was)
    assert passes(lambda: c)
    assert len(KEYS) < good < len(KEYS) * len(JUNK) / 3  # both happen


def test_any_text_of_any_key():
    texts = [
        "",
        "word",
        "nan",
        "-inf",
        "-1",
        "0",
        "1e999",
        "9" * 5000,
        "(",
        "(None, 1)",
        "('a', 'b')",
        "{}",
        "b'x'",
        "[[[]]]",
    ]
    texts += ["1,2", "True", "lambda: 0", "\0", "\ud800", "1_0", "__import__('os')"]
    for key in KEYS:
        c = config.typed(presets.shapes())
        for text in texts:
            passes(lambda c=c, key=key, text=text: overrides.apply(c, [(key, text)]))


def test_any_value_in_a_saved_config():
    whole = config.to_json(config.typed(presets.shapes()))
    for key in (*KEYS, *SECTIONS, "data.options", "tpu_options", "moe.unknown", "unknown", "model.deeper.width", "a.b"):
        saved = json.loads(whole)
        *parts, name = key.split(".")
        holder = saved
        for part in parts:
            holder = holder.setdefault(part, {})
        for junk in (
            None,
            True,
            -1,
            10**400,
            0.3,
            math.nan,
            math.inf,
            "",
            "word",
            "\ud800",
            [],
            [None, 1],
            [[[]]],
            {"a": {}},
        ):
            holder[name] = junk
            with contextlib.suppress(UserError):
                checks.validate(config.from_json(json.dumps(saved)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run/config.json is damaged: it is empty"),
        ("{", "run/config.json is damaged: it is no JSON"),
        ("[1]", "it holds a list, not an object"),
        ("null", "it holds a NoneType, not an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"model": 3}', "model is 3, but must be a section of keys"),
        ('{"model": {"width": "wide"}}', "model.width is 'wide', but must be a whole number"),
        ('{"model": {"width": true}}', "model.width is True, but must be a whole number"),
        ('{"model": {"width": 1.0}}', "model.width is 1.0, but must be a whole number"),
        ('{"data": {"flip": 1}}', "data.flip is 1, but must be true or false"),
        ('{"optimizer": {"eps": null}}', "optimizer.eps is None, but must be a number"),
        (
            '{"optimizer": {"epz": 1.0}}',
            r"there is no key optimizer.epz in this version \(did you mean optimizer.eps\?\)",
        ),
        ('{"seed": [0]}', r"seed is \[0\], but must be a whole number"),
        ('{"log": {"prompts": "a"}}', "log.prompts is 'a', but must be a list"),
        ('{"data": {"options": {"a": {"b": 1}}}}', "data.options is .* must be a section of keys"),
        ('{"data": {"options": {"a.b": 1}}}', "is damaged: "),
    ],
)
def test_a_damaged_file_names_itself_the_key_and_a_way_out(text, message):
    with pytest.raises(DamageError, match=message) as error:
        config.from_json(text, "run/config.json")
    assert str(error.value).startswith("run/config.json is damaged: ")
    assert str(error.value).endswith("the settings of a run also stand in its checkpoints.")


def test_a_seed_is_one_that_has_keys_of_its_own():
    keys = {tuple(jax.random.key_data(jax.random.key(seed)).tolist()) for seed in (0, 1, 2**31, 2**32 - 1)}
    assert len(keys) == 4  # the largest that is allowed among them
    for seed in (-1, 2**32, 2**64):
        with pytest.raises(UserError, match=r"^--config\.seed=.*: must not be negative, and at most 4,294,967,295"):
            checks.validate(config.typed(with_value(config.default(), "seed", seed)))


@pytest.mark.parametrize("key", ["model.learning_rate", "widht", "sample.prompts"])
def test_a_key_that_does_not_exist_is_not_taken_for_one(key):
    with pytest.raises(UserError, match=rf"there is no key {key}"):
        config.typed(with_value(config.default(), key, 1))


def test_a_config_without_effect_differs_in_nothing():
    """A run may go on where only keys that nothing reads are others."""
    shapes = config.typed(presets.shapes())
    old = helpers.change(shapes, moe__routing="dense", moe__num_experts=0)
    new = helpers.change(old, moe__group_size="64")
    assert config.difference(old, new) == []
    assert config.difference(shapes, new) != []
    assert config.difference(shapes, helpers.change(shapes, moe__first=0)) == ["moe.first: 1 -> 0"]
