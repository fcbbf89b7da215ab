"""Icons of several artists from packages that are written here: what is drawn, named, mirrored and held out."""

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.data.records import Record
from ec_dit.preparation import registry
from ec_dit.preparation.source import Skipped, everything

pytestmark = pytest.mark.extra("icons")

STYLES = {"ink": "#000000", "warm": "#ff0000", "cold-v2": "#0000ff"}
CHARS = {"1f436": "dog-face", "1f469-1f3fb": "woman-light-skin-tone", "1f1eb-1f1f7": "flag-for-france"}


def square(colour, half="left"):
    """One half of a picture of 16 x 16."""
    return f'<path fill="{colour}" d="M{0 if half == "left" else 8} 0h8v16h-8z"/>'


def package(root, name, icons, **more):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "icons.json").write_text(json.dumps({"prefix": name, "icons": icons, **more}))
    return folder


def three(root, things=("dog-face", "flag-for-france", "red-apple", "woman-light-skin-tone")):
    """Three packages of the same things, one of which names code points."""
    for name, colour in STYLES.items():
        icons = {thing: {"body": f"{square(colour)}<desc>{thing}</desc>"} for thing in things}
        folder = package(root, name, icons, width=16, height=16)
        (folder / "info.json").write_text(json.dumps({"license": {"title": f"licence of {name}"}}))
    (root / "warm" / "chars.json").write_text(json.dumps(CHARS))
    return root


def records(root, **options):
    found = list(everything(registry.make_source("icons", {"path": str(root), "image_size": 16, **options})))
    return {each.id: each for each in found if isinstance(each, Record)}, [
        each for each in found if isinstance(each, Skipped)
    ]


def pixels(record):
    return np.asarray(Image.open(io.BytesIO(record.image() if callable(record.image) else record.image)))


def test_every_thing_in_every_hand(tmp_path):
    found, skipped = records(three(tmp_path))
    assert not skipped and len(found) == 12
    apple = found["cold-v2:red-apple"]
    assert apple.captions == ("red apple, cold v2 style",)
    assert apple.meta == {"thing": "red-apple", "style": "cold-v2", "license": "licence of cold-v2"}
    expected = np.full((16, 16, 3), 255)
    expected[:, :8] = (0, 0, 255)
    np.testing.assert_array_equal(pixels(apple), expected)
    assert {id_ for id_, record in found.items() if record.flip} == {
        f"{style}:{thing}" for style in STYLES for thing in ("dog-face", "woman-light-skin-tone")
    }  # not the flag; of the apple no package tells


def test_styles_may_be_chosen(tmp_path):
    found, _ = records(three(tmp_path), styles=("ink", "warm"))
    assert {record.meta["style"] for record in found.values()} == {"ink", "warm"}


def test_the_order_of_two_tones_is_not_mirrored(tmp_path):
    thing = "women-holding-hands-light-skin-tone-dark-skin-tone"
    folder = package(tmp_path, "ink", {thing: {"body": square("#000")}})
    (folder / "chars.json").write_text(json.dumps({"1f469-1f3fb": thing}))
    found, _ = records(tmp_path)
    assert not found[f"ink:{thing}"].flip


def test_aliases_are_other_captions_and_hidden_icons_are_passed_over(tmp_path):
    icons = {"dog-face": {"body": square("#000")}, "old": {"body": square("#000"), "hidden": True}}
    aliases = {"puppy": {"parent": "dog-face"}, "god": {"parent": "dog-face", "hFlip": True}}
    aliases["gone"] = {"parent": "dog-face", "hidden": True}
    package(tmp_path, "ink", icons, aliases=aliases)
    found, _ = records(tmp_path)
    assert {id_: record.captions for id_, record in found.items()} == {
        "ink:dog-face": ("dog face, ink style", "puppy, ink style")
    }


def test_an_icon_that_is_no_square_is_drawn_whole_in_the_middle(tmp_path):
    package(tmp_path, "ink", {"pole": {"body": '<path d="M2 0h8v31h-8z"/>', "left": 2, "width": 8, "height": 31}})
    found, _ = records(tmp_path, image_size=31)
    dark = (pixels(found["ink:pole"]) < 128).all(-1)
    assert dark.any(1).all()  # from top to bottom
    assert np.flatnonzero(dark.any(0)).tolist() in (list(range(11, 20)), list(range(12, 20)), list(range(11, 19)))


def test_one_hand_of_a_thing_is_held_out_and_things_of_few_hands_are_not(tmp_path):
    things = [f"thing-{i}" for i in range(200)]
    three(tmp_path, things)
    package(tmp_path, "alone", {f"only-{i}": {"body": square("#000")} for i in range(50)})
    found, _ = records(tmp_path, held_out=0.3)
    held = [record.meta["thing"] for record in found.values() if record.split == "validation"]
    assert len(held) == len(set(held)) and 30 < len(held) < 90
    assert not any(thing.startswith("only") for thing in held)
    styles = {record.meta["style"] for record in found.values() if record.split == "validation"}
    assert styles == set(STYLES)
    assert not any(record.split == "validation" for record in records(tmp_path, held_out=0.0)[0].values())


def test_a_hand_is_held_out_with_all_skin_tones(tmp_path):
    tones = ("", "-light-skin-tone", "-medium-dark-skin-tone", "-dark-skin-tone-light-skin-tone")
    three(tmp_path, [f"figure-{i}{tone}" for i in range(60) for tone in tones])
    found, _ = records(tmp_path, held_out=0.5)
    held = {}
    for record in found.values():
        if record.split == "validation":
            bare = "-".join(record.meta["thing"].split("-")[:2])
            held.setdefault(bare, set()).add(record.meta["style"])
    assert 10 < len(held) < 50 and all(len(styles) == 1 for styles in held.values())
    assert sum(record.split == "validation" for record in found.values()) == len(tones) * len(held)


def test_what_is_drawn_like_a_trained_picture_is_not_held_out(tmp_path):
    things = [f"thing-{i}" for i in range(60)]
    for name, colour in STYLES.items():
        package(tmp_path, name, {thing: {"body": square(colour)} for thing in things})
    found, _ = records(tmp_path, held_out=0.5)
    assert {record.split for record in found.values()} == {"train"}


def test_neighbours_are_of_several_hands(tmp_path):
    found, _ = records(three(tmp_path, [f"thing-{i}" for i in range(100)]))
    styles = [record.meta["style"] for record in found.values()]
    assert sum(a == b for a, b in itertools.pairwise(styles)) < 0.5 * len(styles)


def test_the_same_ones_are_held_out_whatever_else_is_there(tmp_path):
    things = [f"thing-{i}" for i in range(60)]
    one, _ = records(three(tmp_path / "a", things))
    more, _ = records(three(tmp_path / "b", (*things, *(f"new-{i}" for i in range(60)))))
    assert {id_: more[id_].split for id_ in one} == {id_: record.split for id_, record in one.items()}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('<image href="/etc/hostname"/>', "names a file beside it"),
        ('<use xlink:href="other.svg#a"/>', "names a file beside it"),
        ("<path", "it is no XML"),
        ("<rect/>" * 2 + "</g>", "it is no XML"),
        ("<g>" * 300 + "</g>" * 300, "too deep within each other"),
        ('<filter id="a"><feTurbulence numOctaves="100000"/></filter>', "noise is too fine"),
        ('<filter id="a"><feTurbulence numOctaves="x"/></filter>', "no number of octaves"),
        ("", "nothing is to be seen"),
        (square("#ffffff"), "nothing is to be seen on white"),
    ],
)
def test_what_cannot_be_drawn_is_named(tmp_path, body, words):
    package(tmp_path, "ink", {"bad": {"body": body}, "good": {"body": square("#000")}})
    found, skipped = records(tmp_path)
    assert list(found) == ["ink:good"]
    assert [each.id for each in skipped] == ["ink:bad"] and words in skipped[0].reason


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("bad", {"rotate": 1}, "kept turned"),
        ("bad", {"width": 0}, "has no size"),
        ("bad", {"height": float("nan")}, "has no size"),
        ("", {}, "name is no word"),
        ("a\u202eb", {}, "name is no word"),
    ],
)
def test_odd_icons_are_named(tmp_path, name, more, words):
    package(tmp_path, "ink", {name: {"body": square("#000"), **more}})
    found, skipped = records(tmp_path)
    assert not found and words in skipped[0].reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot read"),
        ("[]", "not one of Iconify's packages"),
        ('{"icons": {"a": {}}}', "not one of Iconify's packages"),
        ('{"icons": {"a": {"body": "", "width": "x"}}}', "not one of Iconify's packages"),
    ],
)
def test_a_damaged_package_is_named(tmp_path, text, words):
    (tmp_path / "ink").mkdir()
    (tmp_path / "ink" / "icons.json").write_text(text)
    with pytest.raises(UserError, match=rf"icons: .*ink/icons.json.*{words}|{words} .*ink/icons.json"):
        records(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("info.json", "[1]"),
        ("info.json", '{"license": "MIT"}'),
        ("chars.json", '["x"]'),
        ("chars.json", '{"zz": "a"}'),
        ("icons.json", "[" * 100_000),
    ],
)
def test_damaged_files_beside_it_are_named(tmp_path, file, text):
    folder = package(tmp_path, "ink", {"a": {"body": square("#000")}})
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=r"^icons: "):
        records(tmp_path)


def test_wrong_options_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist; get packages by: npm install"):
        records(tmp_path / "none")
    with pytest.raises(UserError, match=r"has an icons\.json; get packages by: npm install"):
        records(tmp_path)
    three(tmp_path)
    with pytest.raises(UserError, match="has no package wram; there is cold-v2, ink, warm"):
        records(tmp_path, styles=("wram",))
    for option, value in (("image_size", 4), ("held_out", 1.5)):
        with pytest.raises(UserError, match=f"icons: {option} is {value}"):
            records(tmp_path, **{option: value})


def test_without_the_renderer_the_extra_is_named(tmp_path, monkeypatch):
    import importlib

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    from ec_dit.preparation.sources.drawn.icons import IconsOptions, IconsSource

    with pytest.raises(UserError, match=r"pip install 'ec_dit\[icons\]'"):
        IconsSource(IconsOptions(str(tmp_path)))
