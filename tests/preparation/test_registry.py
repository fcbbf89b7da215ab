import dataclasses
from pathlib import Path

import pytest

from ec_dit.core.errors import UserError
from ec_dit.preparation import registry
from ec_dit.preparation.source import Kind, everything


def test_every_module_of_the_folder_is_a_source_of_its_name():
    folder = Path(registry.__file__).parent / "sources"
    for kind, names in (("drawn", registry.DRAWN), ("found", registry.FOUND)):
        assert sorted(names) == sorted(path.stem for path in (folder / kind).glob("[!_]*.py"))
    for name in registry.KINDS:
        kind = registry._kind(name)
        assert kind.make.name == name
        assert dataclasses.is_dataclass(kind.options) and kind.options.__dataclass_params__.frozen


def test_makes_sources_with_their_options():
    source = registry.make_source("shapes", {"train": 3, "seed": 5})
    assert source.name == "shapes" and source.options.seed == 5
    assert sum(item.split == "train" for item in everything(source)) == 3


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
    folder = registry.parse_options("folder", ["flip=false", "validation_share=0", "path=a=b"])
    assert folder == {"flip": False, "validation_share": 0.0, "path": "a=b"}
    assert type(folder["validation_share"]) is float
    assert registry.parse_options("folder", ["path=7", "flip=True"]) == {"path": "7", "flip": True}
    texts = ["validation=null", "path=~/sets", "id_field=7", 'captions=["a=0.8", "b"]']
    tfds = registry.parse_options("tfds:x", texts)
    assert tfds == {"validation": None, "path": "~/sets", "id_field": "7", "captions": ("a=0.8", "b")}


@dataclasses.dataclass(frozen=True)
class Optional:
    share: float | None = None
    count: int | None = 1
    names: tuple[str, ...] | None = None


def test_options_that_may_be_none(monkeypatch):
    monkeypatch.setattr(registry, "_kind", lambda name: Kind(None, Optional))
    parsed = registry.parse_options("any", ["share=1", "count=2", 'names=["a"]'])
    assert parsed == {"share": 1.0, "count": 2, "names": ("a",)} and type(parsed["share"]) is float
    for text in ("share=null", "count=None"):
        assert list(registry.parse_options("any", [text]).values()) == [None]
    for text in ("share=much", "count=2.5", "count=true", "names=a"):
        with pytest.raises(UserError, match=text):
            registry.parse_options("any", [text])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("shapes", "cels=3", "no option 'cels' .did you mean cells"),
        ("shapes", "cells", "option 'cells' has no value; write cells=VALUE"),
        ("shapes", "cells=many", "cells=many of source shapes is no int; write for example 4"),
        ("shapes", "cells=2.5", "is no int"),
        ("shapes", f"cells={10**400}", "is no int"),
        ("shapes", f"object_size=[{10**400}, 1]", "is no tuple.float, float."),
        ("shapes", "cells=", "is no int"),
        ("shapes", "object_size=[0.5]", "is no tuple.float, float.; write for example .0.86, 0.86."),
        ("shapes", "shapes=circle", "is no tuple.str, "),
        ("shapes", "shapes=[1, 2]", "is no tuple.str, "),
        ("folder", "flip=1", "is no bool"),
        (
            "parquet",
            "captions=txt",
            r"no tuple.str, ....; write for example ..caption",
        ),
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
        (
            "shaeps",
            {},
            "no source 'shaeps' .did you mean shapes.*emoji, icons, shapes, coco, folder, parquet, tfds:NAME, webdataset",
        ),
        ("shapes", {"sed": 1}, "no option 'sed' .did you mean seed"),
        ("folder", {}, "needs the option 'path'"),
        ("coco", {"path": "x"}, "needs the option 'annotations'"),
        ("tfds", {}, "needs the option 'dataset'"),
        ("tfds:x", {"dataset": "y"}, "is to read 'x' and 'y'; name one"),
        ("tfds:x", {"pth": "y"}, "source tfds has no option 'pth' .did you mean path"),
        ("shapes:x", {}, "no source 'shapes:x' .did you mean shapes"),
    ],
)
def test_mistakes_name_the_nearest(name, options, message):
    with pytest.raises(UserError, match=message):
        registry.make_source(name, options)
