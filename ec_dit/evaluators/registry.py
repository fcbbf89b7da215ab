"""The suites by name, and what a text of a config asks of them: "shapes", or "shapes:every=500,novel=true"."""

import importlib
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ec_dit import evaluators
from ec_dit.core import settings
from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.core.settings import key, shown
from ec_dit.evaluators.base import Suite

_NO_SUITES = ("asked", "base", "compared", "frechet", "matched", "prompted", "registry")  # what suites share
_BETWEEN_OPTIONS = re.compile(r",(?![^(\[]*[)\]])")  # a comma that is not within brackets


def names() -> list[str]:
    """Names the suites: the modules of this folder, none of which is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(evaluators.__path__) if module.name not in _NO_SUITES)


def parse(text: str, others: Mapping[str, str] = MappingProxyType({})) -> Suite:
    """Makes the suite that a text asks for.

    Args:
        text: its name, and, after a colon, options with commas between them: NAME:OPTION=VALUE,OPTION=VALUE.
        others: values of options that the text does not name, as texts; those that the suite has not are left out.

    Raises:
        UserError: no such suite or option, an option without a value or given twice, or a value that it must not have.
    """
    name, _, rest = text.partition(":")
    if name not in names():
        raise UserError(
            f"there is no suite {shown(name)}{did_you_mean(name, names())}; choose one of {', '.join(names())}"
        )
    kind: type[Suite] = importlib.import_module(f"{evaluators.__name__}.{name}").Suite
    known, given = settings.keys(kind), dict[str, Any]()
    for item in _BETWEEN_OPTIONS.split(rest) if rest.strip() else ():
        option, equals, value = (part.strip() for part in item.partition("="))
        if option not in known:
            hint = did_you_mean(option, known)
            raise UserError(f"suite {name} has no option {shown(option)}{hint}; it has {', '.join(known)}")
        if not equals:
            raise UserError(f"suite {name}: option {option} has no value; write {option}=VALUE")
        if option in given:
            raise UserError(f"suite {name}: option {option} is given twice")
        given[option] = _parsed(name, known[option], value)
    given |= {
        option: _parsed(name, known[option], value)
        for option, value in others.items()
        if option in known and option not in given
    }
    return settings.assemble(kind, {option: given.get(option, entry.default) for option, entry in known.items()})


def _parsed(suite: str, option: settings.Key, value: str) -> Any:
    try:
        parsed = option.parse(value)
    except ValueError as error:
        raise UserError(f"suite {suite}: option {error}") from error
    if problem := option.problem(parsed):
        raise UserError(f"suite {suite}: option {option.name}={value}: {problem}")
    return parsed


def split(text: str) -> list[str]:
    """Takes a list of suites apart: commas stand between suites as between options, and what has = alone is an option.

    'fid,shapes:novel=true,images_per_task=3' is 'fid' and 'shapes:novel=true,images_per_task=3'.
    """
    found: list[str] = []
    for item in _BETWEEN_OPTIONS.split(text):
        name, equals, _ = item.partition("=")
        if found and equals and ":" not in name:
            found[-1] += f",{item}"
        else:
            found.append(item.strip())
    return found


def parse_all(texts: Sequence[str], others: Mapping[str, str] = MappingProxyType({})) -> list[Suite]:
    """Makes the suites that texts ask for.

    Args:
        others: as `parse` has them.

    Raises:
        UserError: as `parse`, and where two would give figures of the same name.
    """
    suites = [parse(text, others) for text in texts]
    options = {option for suite in suites for option in settings.keys(type(suite))}
    if unused := sorted(others.keys() - options):
        raise UserError(
            f"none of {', '.join(suite.name for suite in suites)} has an option {', '.join(unused)}: leave it out"
        )
    labels = [suite.label for suite in suites]
    for label in labels:
        if labels.count(label) > 1:
            both = " and ".join(shown(text) for text, its in zip(texts, labels, strict=True) if its == label)
            raise UserError(f"{both} give figures of the same name, eval/{label}: leave one out")
    return suites


def _problem(texts: tuple[Any, ...]) -> str | None:
    if not all(isinstance(text, str) for text in texts):
        return "give texts, such as ('shapes',) or ('shapes:every=500,novel=true',)"
    try:
        parse_all(texts)
    except UserError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class EvalSpec:
    """The `eval` section."""

    suites: tuple[str, ...] = key(
        (),
        "what scores the model at the end, 'shapes', and on the way, 'shapes:every=500'",
        check=_problem,
        resumable=True,
    )
