"""What reaches a terminal: text without control characters of others, whatever encoding it has, and progress."""

import contextlib
import io
import sys
import time
import unicodedata
from typing import Any


def printable(name: str) -> str:
    """A name that prints on one line: bytes that are not UTF-8 and control characters are written as escapes."""
    return name if name.isprintable() else "".join(map(_escaped, name))


def printable_lines(text: str) -> str:
    """A text whose lines are printable; its own newlines and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # How Python holds a byte that is not UTF-8.
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape").decode()
    return character


def accept_any_text() -> None:
    """Lets standard output and errors write what their encoding lacks as escapes, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Progress(contextlib.AbstractContextManager["Progress"]):
    """Counts what is done, on standard error: on a terminal a bar; elsewhere a line now and then, and one at the end.

    Args:
        name: of the work.
        total: how much there is to do; None where that is not known.
        unit: what is counted, in the plural.
        shown: False counts in silence.
        every: seconds from line to line.

    Attributes:
        count: what is done.
        total: may change on the way.
    """

    def __init__(self, name: str, total: int | None, unit: str, *, shown: bool = True, every: float = 60):
        self.count, self.total = 0, total
        self._name, self._unit, self._shown, self._every = printable(name), unit, shown, every
        self._start = self._told = time.monotonic()
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(desc=self._name, total=total, unit=f" {unit}")

    def update(self, count: int = 1) -> None:
        """So much more is done."""
        self.count += count
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(count)
        elif time.monotonic() - self._told >= self._every:
            self._tell()

    def reach(self, count: int, total: int) -> None:
        """So much of a total is done by now."""
        self.total = total
        self.update(count - self.count)

    def _tell(self) -> None:
        self._told = time.monotonic()
        if not self._shown:
            return
        seconds = self._told - self._start
        of = "" if self.total is None else f" of {self.total:,}"
        rate = self.count / seconds if seconds > 0 else 0.0
        left = (
            f", {_clock((self.total - self.count) / rate)} left"
            if rate and self.total and self.total > self.count
            else ""
        )
        line = f"{self._name}: {self.count:,}{of} {self._unit} in {_clock(seconds)}, {rate:.3g} a second{left}"
        print(line, file=sys.stderr, flush=True)

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._tell()


def _clock(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
