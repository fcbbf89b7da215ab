import pytest

from ec_dit.core.errors import UserError
from ec_dit.data import registry


def test_makes_sources_with_their_options():
    source = registry.make_source("shapes", {"train": 3, "seed": 5})
    assert source.name == "shapes" and source.options.seed == 5
    assert len(list(source.records("train"))) == 3


def test_options_from_text_take_the_type_of_their_field():
    texts = ["cells=3", "object_size=[0.5, 0.75]", 'shapes=("star", "heart")', 'colors=["red","pink","blue"]']
    options = registry.parse_options("shapes", [*texts, "placement=free", 'ground="plain"'])
    assert options == {
        "cells": 3,
        "object_size": (0.5, 0.75),
        "shapes": ("star", "heart"),
        "colors": ("red", "pink", "blue"),
        "placement": "free",
        "ground": "plain",
    }
    assert registry.make_source("shapes", options).options.colors == ("red", "pink", "blue")
    folder = registry.parse_options("folder", ["flip=false", "validation_share=0", "image_size=None", "path=a=b"])
    assert folder == {"flip": False, "validation_share": 0.0, "image_size": None, "path": "a=b"}
    assert type(folder["validation_share"]) is float
    assert registry.parse_options("folder", ["path=7", "flip=True"]) == {"path": "7", "flip": True}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("shapes", "cels=3", "no option 'cels' .did you mean cells"),
        ("shapes", "cells", "option 'cells' has no value; write cells=VALUE"),
        ("shapes", "cells=many", "cells=many of source shapes is no int; write for example 4"),
        ("shapes", "cells=2.5", "is no int"),
        ("shapes", "cells=", "is no int"),
        ("shapes", "object_size=[0.5]", "is no tuple.float, float.; write for example .0.86, 0.86."),
        ("shapes", "shapes=circle", "is no tuple.str, "),
        ("shapes", "shapes=[1, 2]", "is no tuple.str, "),
        ("folder", "flip=1", "is no bool"),
        ("folder", "image_size=big", r"is no int \| None"),
        ("shaeps", "cells=3", "no source 'shaeps'"),
    ],
)
def test_options_from_text_that_do_not_fit(name, text, message):
    with pytest.raises(UserError, match=message):
        registry.parse_options(name, [text])


def test_an_option_given_twice():
    with pytest.raises(UserError, match="option 'cells' is given twice"):
        registry.parse_options("shapes", ["cells=3", "cells=4"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shaeps", {}, "no source 'shaeps' .did you mean shapes.*shapes, emoji, folder"),
        ("shapes", {"sed": 1}, "no option 'sed' .did you mean seed"),
        ("folder", {}, "needs the option 'path'"),
    ],
)
def test_mistakes_name_the_nearest(name, options, message):
    with pytest.raises(UserError, match=message):
        registry.make_source(name, options)
