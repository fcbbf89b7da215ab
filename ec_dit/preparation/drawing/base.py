"""What sources that draw their pictures have in common."""

from collections.abc import Mapping


class DrawnSource:
    """A source that was never published anywhere: validation is a split of its own, and nothing lies beside the examples."""

    holds_out = False

    def published(self) -> Mapping[str, str]:
        """Tells what became of the splits it was published with, by their names; of one that has none, nothing."""
        return {}

    def unread(self) -> Mapping[str, int]:
        """Counts nothing: it is drawn."""
        return {}
