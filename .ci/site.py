"""What mkdocs cannot do by itself: the table of every config key, written from their declarations when the site is built."""

import html
from typing import Any

from ec_dit.config import KEYS
from ec_dit.core.settings import Key, shown

_PLACE = "<!-- keys -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Writes the tables into the page that has a place for them."""
    return markdown.replace(_PLACE, tables()) if _PLACE in markdown else markdown


def tables() -> str:
    """Makes a table for each section, in the order of the config."""
    lines: list[str] = []
    section = None
    for key in KEYS.values():
        if (own := key.name.rpartition(".")[0]) != section:
            section = own
            lines += ["", f"## {section}" if section else "", "", "| key | default | meaning |", "|---|---|---|"]
        lines.append(f"| `{key.name}` | {_code(shown(key.default))} | {_meaning(key)} |")
    return "\n".join(lines)


def _meaning(key: Key) -> str:
    parts = (html.escape(part, quote=False) for part in (key.facts.meaning, *key.limits))
    return "; ".join(parts).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")
