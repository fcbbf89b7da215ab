"""The config of a command line: --config=FILE.py[:ARG], and --config.key=value behind it."""

import ast
import importlib.util
import inspect
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ec_dit import checks
from ec_dit import config as config_lib
from ec_dit.core import paths
from ec_dit.core.errors import UserError, did_you_mean, shortened
from ec_dit.data import registry

Change = tuple[str, str | None]  # a dotted key and what was written for it; None where nothing was

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_NUMBER = re.compile(r"-[\d.]")
_YES, _NO = ("true", "t", "1", "yes"), ("false", "f", "0", "no")


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


def read(name: str | None, changes: Sequence[Change]) -> ConfigDict:
    """The config of a file with overrides, valid and locked: no key can be added to it by mistake.

    Args:
        name: FILE.py, or FILE.py:ARG, as --config has it.

    Raises:
        UserError: if the file does not load, a key does not exist, or a value is not what its key takes.
    """
    if not name:
        raise UserError("--config=FILE is needed, for example --config=configs/shapes.py")
    path, argument = locate(name)
    start = load(path, argument)
    checks.check_keys(start, f"{path}: ")
    config = start.copy_and_resolve_references()
    apply(config, changes)
    checks.validate(config)
    checks.check_use(start, config_lib.default())
    checks.check_use(config, start)
    return config.lock()


def locate(name: str) -> tuple[Path, str]:
    """(the file, its argument) of FILE.py or FILE.py:ARG.

    Raises:
        UserError: if there is no such file; names the nearest.
    """
    file, _, argument = name.partition(":")
    path = paths.home_expanded(file)
    if path.is_dir():
        raise UserError(f"--config={name}: {path} is a folder; choose a file in it.")
    if not path.is_file():
        raise UserError(f"there is no config file {path}{did_you_mean(str(path), map(str, path.parent.glob('*.py')))}.")
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


def apply(config: ConfigDict, changes: Sequence[Change]) -> None:
    """Sets the keys that a command line overrides.

    Raises:
        UserError: naming the nearest key, or what the key takes.
    """
    given: dict[str, str | None] = dict(changes)  # of a key that is given twice, the later value, as of any flag
    known, options, source = config_lib.flatten(config_lib.default()), [], config.data.source
    for key, text in given.items():
        section, _, name = key.rpartition(".")
        if key not in known and section not in config_lib.FREE:
            raise UserError(_unknown(key, known))
        if text is None and not isinstance(known.get(key), bool):
            raise UserError(f"--config.{key} has no value; write --config.{key}=VALUE.")
        if section == "data.options":
            options.append((name, text))  # they depend on the source, which may be given behind them
        elif section in config_lib.FREE:
            _put(config_lib.get(config, section), name, text)
        else:
            config_lib.put(config, key, _value(key, "true" if text is None else text, known[key]))
    if config.data.source != source:
        config.data.options = ConfigDict()  # they were those of the file's source
    if options:
        _set_options(config, options)


def _set_options(config: ConfigDict, options: Sequence[Change]) -> None:
    source = config.data.source
    if source in ("", "synthetic"):
        raise UserError(
            f"--config.data.options.{options[0][0]}: options are those of a source, and --config.data.source is {source!r}."
        )
    for name, value in registry.parse_options(source, [f"{name}={text}" for name, text in options]).items():
        _put(config.data.options, name, value)


def _put(section: ConfigDict, name: str, value: Any) -> None:
    """Sets a key of a section that may hold any, whatever was there."""
    with section.ignore_type():
        section[name] = value


def _unknown(key: str, known: dict[str, Any]) -> str:
    """Says which keys there are instead."""
    keys = [name for name in known if name.startswith(f"{key}.")]
    if keys or key in config_lib.FREE:
        listed = f"Its keys: {', '.join(name.removeprefix(f'{key}.') for name in keys)}. " if keys else ""
        return f"--config.{key} is a section. {listed}Write --config.{keys[0] if keys else f'{key}.NAME'}=VALUE."
    section = key.rpartition(".")[0]
    siblings = [name.removeprefix(f"{section}.") for name in known if name.rpartition(".")[0] == section]
    also = f" Keys of {section}: {', '.join(siblings)}." if section and siblings else ""
    hint = did_you_mean(f"--config.{key}", [f"--config.{name}" for name in known], cutoff=0.0)
    return f"unknown key --config.{key}{hint}.{also}"


def _value(key: str, text: str, like: Any) -> Any:
    """What a text stands for, of the kind that the key's default is of.

    Raises:
        UserError: naming the key, if it stands for nothing of that kind.
    """
    try:
        if isinstance(like, bool):
            return (text.lower() in _YES, text.lower() in _NO).index(True) == 0
        if isinstance(like, int):
            return int(text, 16 if text.lower().startswith("0x") else 10)
        if isinstance(like, float):
            return float(text)
        return _tuple(text) if isinstance(like, tuple) else text
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:  # what literal_eval may raise
        raise UserError(f"--config.{key}={shortened(text)}: must be {config_lib.TYPES[type(like)]}.") from error


def _tuple(text: str) -> tuple[Any, ...]:
    """A Python list or tuple; a single item, where there is neither comma nor bracket."""
    if not text.strip():
        return ()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if set(text) & set(",([{"):
            raise
        value = text
    if isinstance(value, dict | set):
        raise TypeError(text)
    return tuple(value) if isinstance(value, list | tuple) else (value,)
