"""Pages of HTML from files of the package, by Jinja, which escapes every text that is put in."""

import functools
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


@functools.cache
def template(package: str, name: str) -> "Template":
    """Reads a page with places for texts; one that nothing is given for is an error. Needs Jinja, of the extras."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(resources.files(package).joinpath(name).read_text("utf-8"))
