"""Suites are found by the names of modules, and the text of a config is compared with the options that they declare."""

import pytest

from ec_dit.core.errors import UserError
from ec_dit.evaluators import registry
from tests import helpers
from tests.evaluators.more import add_suites


@pytest.fixture(autouse=True)
def more(monkeypatch):
    add_suites(monkeypatch)


def test_every_module_of_the_room_is_a_suite():
    assert {"distance", "emoji_only", "shapes"} <= set(registry.names())
    assert not {"base", "registry"} & set(registry.names())
    for name in registry.names():
        suite = registry.parse(name)
        assert (suite.label, suite.every) == (name, 0)


def test_options_are_read_as_their_types():
    suite = registry.parse("shapes: every = 500 , novel=yes,images_per_task=3")
    assert (suite.every, suite.novel, suite.images_per_task, suite.label) == (500, True, 3, "shapes_novel")
    assert registry.parse("shapes:") == registry.parse("shapes")
    suite = registry.parse("distance:weights=(1,0.5,0),images=3,split=novel")  # commas within brackets are the value's
    assert (suite.weights, suite.images, suite.label) == ((1, 0.5, 0), 3, "distance_novel")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shape", r"no suite 'shape' \(did you mean shapes\?\); choose one of .*distance, .*shapes"),
        ("base", r"no suite 'base'"),
        ("", r"no suite ''; choose one of"),
        (
            "shapes:evry=5",
            r"shapes has no option 'evry' \(did you mean every\?\); it has every, ema, images_per_task, novel",
        ),
        ("distance:novel=true", r"distance has no option 'novel'"),
        ("shapes:every", r"option every has no value; write every=VALUE"),
        ("shapes:every=5,every=6", r"option every is given twice"),
        ("shapes:every=often", r"option every=often: must be a whole number"),
        ("shapes:every=-1", r"option every=-1: must not be negative"),
        ("shapes:images_per_task=0", r"option images_per_task=0: must be at least 1"),
        ("shapes:novel=maybe", r"option novel=maybe: must be true or false"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(UserError, match=message):
        registry.parse(text)


def test_two_suites_with_figures_of_one_name_are_refused():
    assert [s.label for s in registry.parse_all(["shapes", "shapes:novel=1"])] == ["shapes", "shapes_novel"]
    with pytest.raises(UserError, match=r"^'shapes' and 'shapes:every=5' give figures of the same name, eval/shapes:"):
        registry.parse_all(["shapes", "distance", "shapes:every=5"])


@pytest.mark.parametrize(
    ("suites", "message"),
    [
        (("shapes:evry=5",), r"^--config.eval.suites=\('shapes:evry=5',\): suite shapes has no option 'evry'"),
        ((5,), r"^--config.eval.suites=\(5,\): give texts, such as \('shapes',\)"),
        (
            ("distance", "shapes"),
            r"--config.eval.suites=.*: suite shapes scores models trained on the shapes data, not on",
        ),
    ],
)
def test_a_config_is_checked_with_its_suites(suites, message):
    with pytest.raises(UserError, match=message):
        helpers.tiny_config("dense", data__source="emoji", eval__suites=suites)


def test_a_data_set_given_by_its_path_may_fit_any_suite():
    assert helpers.tiny_config("dense", data__source="", eval__suites=("shapes",)).eval.suites == ("shapes",)
