"""The config of a command line: --config=NAME[:ARG] or FILE.py[:ARG], and --config.key=value behind it."""

import importlib.util
import inspect
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ec_dit import config as config_lib
from ec_dit.config import FREE, KEYS, RunConfig, checks
from ec_dit.config.data import SYNTHETIC
from ec_dit.core import paths, settings
from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.preparation import registry

Change = tuple[str, str | None]  # a dotted key and what was written for it; None where nothing was

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_NUMBER = re.compile(r"-[\d.]")
_OPTIONS = "data.options"


def split(argv: Sequence[str]) -> tuple[list[str], list[Change]]:
    """(the arguments that are flags, the overrides of a config's keys in their order); `--` ends both.

    An override may be --config.key=value, --config.key value, or of a switch --config.key and --noconfig.key.
    """
    rest: list[str] = []
    changes: list[Change] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*rest, word, *left], changes
        match = _OVERRIDE.fullmatch(word)
        if match is None:
            rest.append(word)
            continue
        no, key, value = match.groups()
        if no:
            value = "false" if value is None else f"no{key}={value}"
        elif value is None and left and (not left[0].startswith("-") or _NUMBER.match(left[0])):
            value = left.pop(0)
        changes.append((key, value))
    return rest, changes


def keys_help() -> str:
    """Describes every key of a config as --help shows it."""
    lines = ["", "", "keys of the config, which --config starts from and --config.KEY=VALUE changes:"]
    for known in KEYS.values():
        lines.append(f"  {known.name}: {known.facts.meaning}")
        lines.append(f"    (default: {'; '.join([settings.shown(known.default), *known.limits])})")
    return "\n".join(lines)


def read(name: str | None, changes: Sequence[Change]) -> RunConfig:
    """The config of a file with overrides, checked.

    Args:
        name: NAME, FILE.py, or one of them with :ARG behind it, as --config has it.

    Raises:
        UserError: if the file does not load, a key does not exist, or a value is not what its key takes.
    """
    if not name:
        raise UserError("--config=FILE is needed, or a name of the package's own, for example --config=shapes")
    path, argument = locate(name)
    start = config_lib.typed(load(path, argument), f"{path}: ")
    config = apply(start, changes)
    checks.validate(config)
    checks.check_use(start, RunConfig())
    checks.check_use(config, start)
    return config


def packaged() -> dict[str, Path]:
    """Finds the config files that come with the package, by name: configs/ of a clone, ec_dit/configs where it is installed."""
    package = Path(__file__).parents[1]
    folder = package / "configs"
    if not folder.is_dir():
        folder = package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def locate(name: str) -> tuple[Path, str]:
    """(the file, its argument) of NAME, a config of the package's own, or FILE.py, each perhaps with :ARG behind it.

    Raises:
        UserError: if there is no such file; names the nearest.
    """
    file, _, argument = name.partition(":")
    own = packaged()
    if file in own:
        return own[file], argument
    path = paths.home_expanded(file)
    if path.is_dir():
        raise UserError(f"--config={name}: {path} is a folder; choose a file in it.")
    if not path.is_file():
        nearest = did_you_mean(str(path), map(str, path.parent.glob("*.py"))) or did_you_mean(path.stem, own)
        raise UserError(f"there is no config file {path}{nearest or '; the package has ' + ', '.join(own)}.")
    return path, argument


def load(path: Path, argument: str = "") -> ConfigDict:
    """What `get_config(argument)` of a config file returns.

    Raises:
        UserError: if the file does not load, or defines no `get_config(arg)` that returns one; names the line.
    """
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no config file: it is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, "get_config", None)
        if not callable(make):
            raise UserError(f"{path} is no config file: it defines no function get_config(arg).")
        takes_one = bool(inspect.signature(make).parameters)
        if argument and not takes_one:
            raise UserError(f"{path} takes no argument, so not ':{argument}': its get_config has no parameter.")
        config = make(argument) if takes_one else make()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a file of the user's may raise
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no config file that loads: {what}{_line(error, path)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path} is no config file: get_config(arg) returns {type(config).__name__}, not a ConfigDict.")
    return config


def _line(error: BaseException, path: Path) -> str:
    """' (line N)', the last of the config file that an error passed; nothing where Python's own message tells it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == path.absolute()]
    return f" (line {lines[-1]})" if lines and not isinstance(error, SyntaxError) else ""


def apply(config: RunConfig, changes: Sequence[Change]) -> RunConfig:
    """Sets the keys that a command line overrides.

    Raises:
        UserError: naming the nearest key, or what the key takes.
    """
    given: dict[str, str | None] = dict(changes)  # of a key that is given twice, the later value, as of any flag
    values = settings.flatten(config)
    source, options = config.data.source, []
    for name, text in given.items():
        section, _, last = name.rpartition(".")
        if (name not in KEYS or name in FREE) and section not in FREE:
            raise UserError(_unknown(name))
        if text is None and not (name in KEYS and KEYS[name].kind is bool):
            raise UserError(f"--config.{name} has no value; write --config.{name}=VALUE.")
        if section == _OPTIONS:
            options.append((last, text))  # they depend on the source, which may be given behind them
        elif section in FREE:
            values[section] = {**values[section], last: text}
        else:
            try:
                values[name] = KEYS[name].parse("true" if text is None else text)
            except ValueError as error:
                raise UserError(f"--config.{error}.") from error
    if values["data.source"] != source:
        values[_OPTIONS] = {}  # they were those of the file's source
    if options:
        values[_OPTIONS] = {**values[_OPTIONS], **_options(values["data.source"], options)}
    return settings.assemble(RunConfig, values)


def _options(source: str, options: Sequence[Change]) -> dict[str, Any]:
    if source in ("", SYNTHETIC):
        raise UserError(
            f"--config.data.options.{options[0][0]}: options are those of a source, and --config.data.source is {source!r}."
        )
    return registry.parse_options(source, [f"{name}={text}" for name, text in options])


def _unknown(key: str) -> str:
    """Says which keys there are instead."""
    known = sorted(name for name in KEYS if name not in FREE)
    keys = [name for name in known if name.startswith(f"{key}.")]
    if keys or key in FREE:
        listed = f"Its keys: {', '.join(name.removeprefix(f'{key}.') for name in keys)}. " if keys else ""
        return f"--config.{key} is a section. {listed}Write --config.{keys[0] if keys else f'{key}.NAME'}=VALUE."
    section = key.rpartition(".")[0]
    siblings = [name.removeprefix(f"{section}.") for name in known if name.rpartition(".")[0] == section]
    also = f" Keys of {section}: {', '.join(siblings)}." if section and siblings else ""
    hint = did_you_mean(f"--config.{key}", [f"--config.{name}" for name in known], cutoff=0.0)
    return f"unknown key --config.{key}{hint}.{also}"
