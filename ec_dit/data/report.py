"""What a preparation kept and left out, as a table for people and as report.json."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

FORMAT = 1  # Of a data set's folder.


@dataclasses.dataclass(frozen=True)
class Report:
    """What a preparation kept and left out; stored as report.json.

    Attributes:
        source, options: what was prepared, and how.
        kept: records by split; a split that came out empty is left out.
        skipped: (split, id, reason) of every example left out.
        records_sha256: hash over every record's content, in the source's order.
        vocab_size: pieces of the tokenizer.
        libraries: versions that the bytes depend on.
        files: size in bytes of every other file of the folder.
        format: version of this layout.
    """

    source: str
    options: Mapping[str, Any]
    kept: Mapping[str, int]
    skipped: Sequence[tuple[str, str, str]]
    records_sha256: str
    vocab_size: int
    libraries: Mapping[str, str]
    files: Mapping[str, int]
    format: int = FORMAT

    def reasons(self) -> dict[str, int]:
        """How many examples were skipped for each reason (its part before the first colon), most frequent first."""
        return dict(Counter(reason.split(":")[0] for _, _, reason in self.skipped).most_common())

    def to_json(self) -> str:
        """Readable JSON: the skipped examples counted by reason, then listed."""
        fields = dataclasses.asdict(self)
        fields["skipped"] = {"reasons": self.reasons(), "examples": self.skipped}
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The inverse of to_json. Raises ValueError, KeyError or TypeError on anything else."""
        fields = json.loads(text)
        fields["skipped"] = [tuple(example) for example in fields["skipped"]["examples"]]
        return cls(**fields)

    def table(self) -> str:
        """Lines for people: kept by split, then skipped by reason."""
        rows = [(f"kept, {split}", count) for split, count in self.kept.items()]
        rows += [(f"skipped, {reason}", count) for reason, count in self.reasons().items()]
        rows += [("tokenizer pieces", self.vocab_size)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {count:>9,}" for name, count in rows)
