"""The time by which commands wait and note what happened; tests bring a clock of their own."""

import datetime as dt
import time


class Clock:
    """The system's clock."""

    def now(self) -> dt.datetime:
        """Returns the time of day, in UTC."""
        return dt.datetime.now(dt.UTC)

    def monotonic(self) -> float:
        """Returns seconds since some moment, which never jump."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)
