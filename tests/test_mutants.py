"""benchmarks/mutants.toml keeps up with the code: the mutants run for half an hour, but whether they fit shows in a second."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks/mutants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mutant_changes_its_file_to_another_program(mutants, capsys):
    unfit = []
    for mutant in mutants.load():
        text = (ROOT / mutant.file).read_text()
        read = (lambda code: ast.dump(ast.parse(code))) if mutant.file.endswith(".py") else str.strip
        try:
            changed = read(mutant.apply(text))
        except (SystemExit, SyntaxError) as error:
            unfit.append(f"{mutant.file}: {mutant.name}: {error} {capsys.readouterr().err}")
            continue
        if changed == read(text):
            unfit.append(f"{mutant.file}: {mutant.name}: the same program")
    assert not unfit


def test_what_a_mutant_should_be_noticed_by_is_there(mutants):
    for mutant in mutants.load():
        for argument in mutant.tests:
            if argument.startswith("tests/"):
                file, _, test = argument.partition("::")
                assert (ROOT / file).is_file(), (mutant.name, file)
                assert f"def {test.partition('[')[0]}" in (ROOT / file).read_text(), (mutant.name, argument)


def test_an_edit_that_does_not_fit_ends_the_program(mutants, capsys):
    unfit = mutants.Mutant("a name", "a.py", (("twice", "once"),), ())
    for text in ("twice twice", ""):
        with pytest.raises(SystemExit) as ended:
            unfit.apply(text)
        assert ended.value.code == 2
        assert "a name: a.py" in capsys.readouterr().err
