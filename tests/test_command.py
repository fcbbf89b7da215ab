"""ec-dit COMMAND, and the configs that it finds by name wherever it is called."""

import importlib
from pathlib import Path

import pytest

from ec_dit import __main__ as command
from ec_dit.config import overrides
from ec_dit.core.errors import UserError

ROOT = Path(__file__).parents[1]


def entry_points():
    """Modules that define `main(argv)`, read from the sources."""
    files = [*(ROOT / "ec_dit").glob("[!_]*.py"), *(ROOT / "launch").glob("*.py")]
    return {f"{file.parent.name}.{file.stem}" for file in files if "\ndef main(argv" in file.read_text()}


def test_every_entry_point_is_a_command():
    assert entry_points() == {module for module, _ in command.COMMANDS.values()}


def test_help_has_a_line_for_each_command(capsys):
    assert command.main(["ec-dit", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (module, _) in command.COMMANDS.items():
        assert [line.split()[0] for line in lines if line.endswith(f"python -m {module}")] == [name]


@pytest.mark.parametrize("name", command.COMMANDS)
def test_a_command_has_the_help_of_its_module(name, capsys):
    assert command.main(["ec-dit", name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert importlib.import_module(command.COMMANDS[name][0]).main(["program", "--help"]) == 0
    assert shown == capsys.readouterr().out != ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ec-dit: a command is needed"),
        (["trian"], "ec-dit: there is no command 'trian' (did you mean train?)"),
        (["train", "--config=m_64"], "main: there is no config file m_64 (did you mean m_64e?)"),
        (["watch", "--config=m_64", "--project=p", "--zone=z"], "watch: there is no config file m_64 (did you mean"),
    ],
)
def test_mistakes_end_in_one_message(arguments, message, capsys):
    assert command.main(["ec-dit", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith(message) and told.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "file", "argument"),
    [
        ("m_64e", "m_64e.py", ""),
        ("3xl_16e:smoke", "3xl_16e.py", "smoke"),
        ("from_run:runs/a:b", "from_run.py", "runs/a:b"),
    ],
)
def test_configs_of_the_package_are_found_from_anywhere(name, file, argument, tmp_path, monkeypatch):
    (tmp_path / "m_64e").mkdir()  # a workdir, say
    monkeypatch.chdir(tmp_path)
    path, rest = overrides.locate(name)
    assert path.samefile(ROOT / "configs" / file) and rest == argument


def test_a_file_of_the_name_is_the_file(tmp_path, monkeypatch):
    (tmp_path / "m_64e.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert overrides.locate("m_64e.py:smoke") == (Path("m_64e.py"), "smoke")
    assert overrides.locate("m_64e")[0].samefile(ROOT / "configs" / "m_64e.py")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("configs/m_64e.py", r"^there is no config file configs/m_64e\.py \(did you mean m_64e\?\)"),  # outside a clone
        ("m64e:smoke", r"^there is no config file m64e \(did you mean m_64e\?\)"),
        ("qqq", r"^there is no config file qqq; the package has 3xl_16e, .*, xxl_8e\.$"),
    ],
)
def test_wrong_names_are_answered_with_the_nearest(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        overrides.locate(name)
