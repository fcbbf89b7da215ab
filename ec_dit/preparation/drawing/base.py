"""What sources that draw their pictures have in common."""

from collections.abc import Mapping, Sequence

from ec_dit.data.records import TRAIN, VALIDATION
from ec_dit.preparation.source import Shard


class DrawnSource:
    """A source that was never published anywhere: validation is a split of its own, and nothing lies beside the examples."""

    holds_out = False
    _shards: Sequence[Shard]

    def splits(self) -> tuple[str, ...]:
        """Lists the splits, 'train' first."""
        return TRAIN, VALIDATION

    def shards(self) -> Sequence[Shard]:
        """Lists stretches of the pictures."""
        return self._shards

    def published(self) -> Mapping[str, str]:
        """Tells what became of the splits it was published with, by their names; of one that has none, nothing."""
        return {}

    def unread(self) -> Mapping[str, int]:
        """Counts nothing: it is drawn."""
        return {}
