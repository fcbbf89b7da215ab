"""docs/architecture.md, held by reading the sources: imports, who sees a ConfigDict, what array suffixes mean."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from ec_dit.core.axes import AXES

ROOT = Path(__file__).parents[1]
CORE_ONLY = ("cli",)
JUDGED_BY_TORCH = ("ec_dit.judges.mask2former", "ec_dit.judges.vqa")  # extras, and only where they are called
SUFFIXED = ("nn", "models", "flow", "encoders")


@cache
def picture() -> dict[str, int]:
    """Room -> level, 0 at the bottom, from the first code block of docs/architecture.md."""
    block = (ROOT / "docs/architecture.md").read_text().split("```")[1].strip().splitlines()
    return {room: level for level, line in enumerate(reversed(block)) for room in line.partition("|")[0].split()}


@cache
def modules() -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of every module of the package."""
    trees = {}
    for path in sorted((ROOT / "ec_dit").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return trees


def imports(tree: ast.Module) -> set[str]:
    """Dotted names of everything a module imports, at its top or inside a function; modules of ec_dit in full."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else node.module for name in names}
    return found


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def internal(module: str) -> set[str]:
    return {name for name in imports(modules()[module]) if name in modules() and name != "ec_dit"}


MODULES = [name for name in modules() if name != "ec_dit"]


def test_the_picture_shows_every_room_and_no_other():
    assert {room(module) for module in MODULES} == set(picture())


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    own, levels = room(module), picture()
    for name in internal(module):
        other = room(name)
        assert other == own or levels[other] < levels[own], f"{module} imports {name}, which is not below it"
        assert own not in CORE_ONLY or other == "core", f"{module} imports {name}, not core alone"


def test_no_cycles():
    try:
        list(TopologicalSorter({module: internal(module) - {module} for module in MODULES}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_config_dict_below_config():
    for module in MODULES:
        if picture()[room(module)] < picture()["config"]:
            assert not any(name.startswith("ml_collections") for name in imports(modules()[module])), module


def test_configs_import_config_and_presets_only():
    for path in (ROOT / "configs").glob("*.py"):
        names = {name for name in imports(ast.parse(path.read_text())) if name.startswith("ec_dit")}
        assert names <= {"ec_dit.config", "ec_dit.presets"}, path.name


def test_the_launcher_imports_little_and_nothing_imports_it():
    for path in (ROOT / "launch").glob("*.py"):
        names = {name for name in imports(ast.parse(path.read_text())) if name.startswith("ec_dit.")}
        assert {name.split(".")[1] for name in names} <= {"config", "cli", "core", "main"}, path.name
    for module in MODULES:
        assert not any(name.split(".")[0] == "launch" for name in imports(modules()[module])), module


def test_nothing_imports_tensorflow_or_torch():
    for module in MODULES:
        barred = r"(tensorflow)(\.|$)" if module in JUDGED_BY_TORCH else r"(tensorflow|torch)(\.|$)"
        assert not any(re.match(barred, name) for name in imports(modules()[module])), module


def names_of(tree: ast.Module) -> set[str]:
    """Identifiers that a module defines or uses."""
    fields = {ast.Name: "id", ast.arg: "arg", ast.Attribute: "attr", ast.keyword: "arg"}
    return {getattr(node, fields[type(node)]) or "" for node in ast.walk(tree) if type(node) in fields}


def einsum_letters(tree: ast.Module) -> set[str]:
    """Letters in the strings of einsum calls."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "einsum"]
    strings = [call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)]
    return {letter for string in strings for letter in string if letter.isalpha()}


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in SUFFIXED])
def test_suffixes_and_einsums_use_the_legend(module):
    for name in names_of(modules()[module]):
        suffix = re.fullmatch(r"_?[a-z][a-z0-9_]*_([A-Z][A-Za-z0-9]*)", name)
        unknown = {letter for letter in suffix[1].upper() if letter.isalpha()} - AXES.keys() if suffix else set()
        assert not unknown, f"{module}: {name} uses {sorted(unknown)}, not in core/axes.py"
    assert {letter.upper() for letter in einsum_letters(modules()[module])} <= AXES.keys()


def test_legend_is_in_use():
    used = {
        letter
        for tree in modules().values()
        for name in names_of(tree)
        for letter in name.rpartition("_")[2].upper()
        if re.search(r"_[A-Z][A-Z0-9]*$", name)
    }
    assert used >= AXES.keys()


LEFT_OVERS = re.compile(r"\b(TO[D]O|FIX[M]E|X[X]X)\b|(?<![\w.])/(tm[p]|wor[k])/|\bissu[e] #?\d")  # not itself


def test_nothing_is_left_over_in_sources_and_docs():
    kinds = (
        "*.md",
        "ec_dit/**/*.py",
        "configs/*.py",
        "docs/**/*.md",
        "launch/*.py",
        "launch/*.sh",
        "tests/**/*.py",
        "benchmarks/**/*.py",
    )
    for path in {path for kind in kinds for path in ROOT.glob(kind) if path.is_file()}:
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            assert not LEFT_OVERS.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_links_between_pages_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
