"""Icons of several artists, drawn from packages of SVG: the same things in each one's hand, which captions name.

Reads the packages that Iconify publishes, one folder each: `npm install @iconify-json/noto @iconify-json/twemoji` leaves them in
node_modules/@iconify-json. Every package has a licence of its own, which is noted with each picture; nothing of them comes
with ec_dit. Validation holds out pairs of thing and artist, with all skin tones: the thing is trained in other hands, the hand on
other things. What comes out the same as a trained picture is not held out.
"""

import importlib
import io
import json
import math
import re
import xml.parsers.expat
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.core.terminal import printable
from ec_dit.data import images
from ec_dit.data.records import TRAIN, VALIDATION, Record
from ec_dit.preparation.drawing.base import DrawnSource
from ec_dit.preparation.drawing.emoji_names import is_living, rank
from ec_dit.preparation.finding.captions import may_mirror
from ec_dit.preparation.source import Kind, Skipped, ranges

_HANDS = 3  # that have drawn a thing, of which one may be held out
_OWN = ("#", "data:image/")  # what a picture may refer to: its parts, or what it holds; there is no file beside it
# Of elements within each other, and of noise: with some 300 the renderer ends the process, with very many it hardly ends.
_DEPTH, _OCTAVES = 64, 8
_TURNS = ("rotate", "hFlip", "vFlip")
# A square of any size: the renderer asks for the one that is wanted, and would round the sides of another shape.
_SVG = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="64" height="64"'
_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # and what Iconify takes where a package says nothing
_TONE = re.compile(r"-(?:medium-light|medium-dark|light|medium|dark)-skin-tone")
_INSTALL = "npm install @iconify-json/noto @iconify-json/twemoji @iconify-json/openmoji"


@dataclass(frozen=True)
class IconsOptions:
    """Which icons there are, and how they are drawn.

    Attributes:
        path: folder of Iconify's packages, such as node_modules/@iconify-json, each a folder with an icons.json.
        styles: names of the packages to read, such as ('noto', 'twemoji'); () takes all of them.
        held_out: of the things that three artists or more have drawn, the share of which one artist's, chosen by a hash, are for
            validation.
        image_size: side of the square images, in pixels.
    """

    path: str
    styles: tuple[str, ...] = ()
    held_out: float = 0.2
    image_size: int = 128

    def __post_init__(self) -> None:
        if not 8 <= self.image_size <= 1024:
            raise UserError(f"icons: image_size is {self.image_size}; it must be from 8 to 1024")
        if not 0 <= self.held_out <= 1:
            raise UserError(f"icons: held_out is {self.held_out}; it must be from 0 to 1")


@dataclass(frozen=True)
class _Icon:
    """A thing in one artist's hand; `svg` is all of the picture's text, `problem` why it is not drawn."""

    thing: str
    style: str
    license: str
    svg: str
    others: tuple[str, ...]  # names that it has beside `thing`
    problem: str | None = None

    @property
    def id(self) -> str:
        return f"{self.style}:{self.thing}"

    @property
    def bare(self) -> str:
        """The thing without skin tones."""
        return _TONE.sub("", self.thing)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(_words, (self.thing, *self.others)))


class IconsSource(DrawnSource):
    """Draws the icons of several packages. Implements source.Source."""

    name = "icons"
    libraries: tuple[str, ...] = ("resvg-py",)

    def __init__(self, options: IconsOptions):
        try:
            self._draw = importlib.import_module("resvg_py").svg_to_bytes
        except ImportError as error:
            raise UserError(
                "icons: the package that draws SVG is not installed; run: pip install 'ec_dit[icons]'"
            ) from error
        self.options = options
        packages = _packages(options.path, options.styles)
        icons = [icon for folder in packages for icon in _read(folder)]
        held = _held_out(icons, options.held_out)
        self._living = _living(packages)
        placed = [(VALIDATION if icon.id in held else TRAIN, icon) for icon in icons]
        # By splits, as `splits` has them, and mixed: neighbours are neither of one hand nor of one thing.
        self._icons = sorted(placed, key=lambda item: (item[0], rank(item[1].id)))
        self._shards = ranges(len(icons), entries=[icon.id for _, icon in self._icons])

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Draws the icons of one stretch."""
        start, _, end = self._shards[shard].name.partition("-")
        for split, icon in self._icons[int(start) : int(end)]:
            try:
                image = self._picture(icon)
            except ValueError as error:
                yield Skipped(icon.id, f"cannot be drawn: {printable(str(error))}", split)
                continue
            one = len(_TONE.findall(icon.thing)) < 2  # the order of two tones says who stands where
            flip = one and icon.thing in self._living and all(map(may_mirror, icon.names))
            captions = tuple(f"{name}, {_words(icon.style)} style" for name in icon.names)
            meta = {"thing": icon.thing, "style": icon.style, "license": icon.license}
            yield Record(icon.id, images.encode_png(image), captions, (), split, flip, meta)

    def _picture(self, icon: _Icon) -> Image.Image:
        """The icon on white. ValueError where it is no SVG, empty, or not whole in itself."""
        if problem := icon.problem or _problem(icon.svg):
            raise ValueError(problem)
        side = self.options.image_size
        drawn = self._draw(svg_string=icon.svg, width=side, height=side, background="white", skip_system_fonts=True)
        image = Image.open(io.BytesIO(drawn)).convert("RGB")
        if ImageChops.invert(image).getbbox() is None:
            raise ValueError("nothing is to be seen on white")
        return image


SOURCE = Kind(IconsSource, IconsOptions)


def _packages(path: str, styles: Sequence[str]) -> list[Path]:
    """The folders to read, in the order of their names.

    Raises:
        UserError: if there is none, or not one that is named.
    """
    root = Path(paths.at(path))
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise UserError(
            f"icons: {root} {state}; get packages by: {_INSTALL}, and pass --path=node_modules/@iconify-json"
        )
    there = {folder.name: folder for folder in sorted(root.iterdir()) if (folder / "icons.json").is_file()}
    if missing := [style for style in styles if style not in there]:
        raise UserError(f"icons: {root} has no package {', '.join(missing)}; there is {', '.join(there) or 'none'}")
    if not there:
        raise UserError(f"icons: no folder of {root} has an icons.json; get packages by: {_INSTALL}")
    return [folder for name, folder in there.items() if name in styles or not styles]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"icons: cannot read {file}: {printable(str(error))}") from error


def _read(folder: Path) -> Iterator[_Icon]:
    """The icons of a package that are shown.

    Raises:
        UserError: for a file that is not Iconify's.
    """
    found, info = _json(folder / "icons.json"), folder / "info.json"
    told = _json(info) if info.is_file() else {}
    try:
        license_ = str((told.get("license") or {}).get("title", "unknown"))
        others: dict[str, list[str]] = defaultdict(list)
        for name, alias in found.get("aliases", {}).items():
            if not alias.get("hidden") and set(alias) <= {"parent", "hidden"}:
                others[alias["parent"]].append(name)
        for name, icon in found["icons"].items():
            if icon.get("hidden"):
                continue
            box = [float(icon.get(side, found.get(side, usual))) for side, usual in _BOX.items()]
            svg = f'<svg {_SVG} viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
            problem = None
            if any(icon.get(turn) for turn in _TURNS):
                problem = "it is kept turned"
            elif not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
                problem = "it has no size"
            elif not all(each.isprintable() and _words(each).strip() for each in (name, *others[name])):
                problem = "its name is no word"
            yield _Icon(printable(name), folder.name, license_, svg, tuple(sorted(others[name])), problem)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"icons: {folder / 'icons.json'} is not one of Iconify's packages: {error!r}") from error


def _problem(svg: str) -> str | None:
    """Why the renderer is not given a picture."""
    depth, found = 0, list[str]()
    parser = xml.parsers.expat.ParserCreate()

    def start(name: str, attributes: Mapping[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEPTH:
            found.append("its elements lie too deep within each other")
        links = [value for key, value in attributes.items() if key.rpartition(":")[2] == "href"]
        if not all(value.strip().startswith(_OWN) for value in links):
            found.append("it names a file beside it")
        if name.endswith("feTurbulence") and not attributes.get("numOctaves", "1").isdecimal():
            found.append("its noise has no number of octaves")
        elif name.endswith("feTurbulence") and int(attributes.get("numOctaves", "1")) > _OCTAVES:
            found.append("its noise is too fine")

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        parser.Parse(svg.encode(errors="replace"), True)
    except xml.parsers.expat.ExpatError as error:
        return f"it is no XML: {error}"
    return found[0] if found else None


def _held_out(icons: Sequence[_Icon], share: float) -> set[str]:
    """Ids of the icons for validation: of some things all that one hand drew, where at least two others drew them."""
    hands: dict[str, set[str]] = defaultdict(set)
    for icon in icons:
        hands[icon.bare].add(icon.style)
    chosen = {
        thing: min(styles, key=lambda style: rank(f"{style}:{thing}"))
        for thing, styles in hands.items()
        if len(styles) >= _HANDS and rank(thing) < share * 2**64
    }
    held = [icon for icon in icons if chosen.get(icon.bare) == icon.style]
    ids = {icon.id for icon in held}
    # Some artists draw several things alike, and two hands one.
    trained = {icon.svg for icon in icons if icon.id not in ids}
    return {icon.id for icon in held if icon.svg not in trained}


def _living(packages: Sequence[Path]) -> frozenset[str]:
    """Names of people, animals, plants and food, of which mirror images are true: by code points that some packages list."""
    found = set()
    for file in (folder / "chars.json" for folder in packages):
        if file.is_file():
            try:
                found |= {str(name) for code, name in _json(file).items() if is_living(int(code.split("-")[0], 16))}
            except (ValueError, AttributeError) as error:
                raise UserError(f"icons: {file} is not one of Iconify's: {error!r}") from error
    return frozenset(found)


def _words(name: str) -> str:
    return name.replace("-", " ")
