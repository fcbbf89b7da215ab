"""What happened when, as JSON lines: a log for people, and all that a watcher remembers when it is started again."""

import contextlib
import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ec_dit.core.errors import UserError
from launch.clock import Clock


class Journal:
    """A file to which one watcher at a time adds lines, each with its time and an event.

    Args:
        path: the file; made where it is missing.
        say: prints a line for people, of every event.
        clock: tells when.

    Raises:
        UserError: if another watcher has it open.
    """

    def __init__(self, path: Path, say: Callable[[str], None], clock: Clock):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # no cause of the message: as one it would read as a trouble that passes by itself
            self._file.close()
            raise UserError(f"another watcher is at work here: {path} is locked.") from None
        self._say, self._clock = say, clock
        self._file.seek(0)
        self.events: list[dict[str, Any]] = []
        line = "\n"
        for line in self._file:
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry, dict) and {"time", "event"} <= entry.keys():  # what else stands there is not ours
                    self.events.append(entry)
        if not line.endswith("\n"):  # a killed watcher may leave half a line
            self._file.write("\n")

    def note(self, event: str, text: str = "", **facts: Any) -> None:
        """Adds an event: a word for programs, a text for people, and numbers."""
        now = self._clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        entry = {"time": now, "event": event, **({"text": text} if text else {}), **facts}
        self.events.append(entry)
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        numbers = "  ".join(f"{name} {value}" for name, value in facts.items())
        self._say("  ".join(part for part in (now, event, text, numbers) if part))

    def story(self, job: str) -> list[dict[str, Any]]:
        """The events since the newest watching began, if it was for `job`; none if it was for another."""
        starts = [i for i, entry in enumerate(self.events) if entry["event"] == "watching"]
        if not starts or self.events[starts[-1]].get("job") != job:
            return []
        return self.events[starts[-1] :]

    def last(self, name: str, default: Any) -> Any:
        """The newest value of a fact."""
        return next((entry[name] for entry in reversed(self.events) if name in entry), default)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
