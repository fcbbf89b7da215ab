"""The sources by name. Each lives in a module of its own, imported only when it is asked for."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.data.records import Source

_SOURCES = {
    "shapes": ("ec_dit.data.sources.shapes", "ShapesSource", "ShapesOptions"),
    "emoji": ("ec_dit.data.sources.emoji", "EmojiSource", "EmojiOptions"),
    "folder": ("ec_dit.data.sources.folder", "FolderSource", "FolderOptions"),
}
NAMES = tuple(_SOURCES)


def make_source(name: str, options: Mapping[str, Any]) -> Source:
    """Builds the source `name`; `options` holds fields of its options class, the rest keep their defaults.

    Raises:
        UserError: no such source or option, an option that is needed and missing, or a value the source refuses.
    """
    if name not in _SOURCES:
        raise UserError(f"there is no source {name!r}{did_you_mean(name, NAMES)}; choose one of {', '.join(NAMES)}")
    module_name, source_name, options_name = _SOURCES[name]
    module = importlib.import_module(module_name)
    options_class = getattr(module, options_name)
    fields = {field.name: field for field in dataclasses.fields(options_class)}
    for key in options:
        if key not in fields:
            raise UserError(
                f"source {name} has no option {key!r}{did_you_mean(key, fields)}; it has {', '.join(fields)}"
            )
    for key, field in fields.items():
        if field.default is field.default_factory is dataclasses.MISSING and key not in options:
            raise UserError(f"source {name} needs the option {key!r}")
    return getattr(module, source_name)(options_class(**options))
