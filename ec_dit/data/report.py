"""What a preparation kept and left out, as a table for people and as report.json."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

FORMAT = 2  # Of a data set's folder.


@dataclasses.dataclass(frozen=True)
class Report:
    """What a preparation kept and left out; stored as report.json. Each skipped example is a line of skipped.jsonl.

    Attributes:
        source, options, filters: what was prepared, and how.
        kept: records by split; a split that came out empty is left out.
        shapes: of encoded pictures, how many there are of each shape, '32x24' being rows x columns of the latent, by split.
        skipped: how many examples were left out for each reason, most frequent first.
        vocab_size: pieces of the tokenizer; 0: the captions are encoded.
        libraries: versions that the bytes depend on.
        files: (size in bytes, SHA-256 of each 64 MiB) of every other file of the folder.
        format: version of this layout.
    """

    source: str
    options: Mapping[str, Any]
    filters: Mapping[str, Any]
    kept: Mapping[str, int]
    shapes: Mapping[str, Mapping[str, int]]
    skipped: Mapping[str, int]
    vocab_size: int
    libraries: Mapping[str, str]
    files: Mapping[str, tuple[int, tuple[str, ...]]]
    format: int = FORMAT

    def to_json(self) -> str:
        """Readable JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The inverse of to_json. Raises ValueError, KeyError, TypeError or AttributeError on anything else."""
        fields = json.loads(text)
        fields["files"] = {name: (int(size), tuple(digests)) for name, (size, digests) in fields["files"].items()}
        return cls(**fields)

    @property
    def bytes_per_image(self) -> float:
        """On disk, all files counted."""
        return sum(size for size, _ in self.files.values()) / max(1, sum(self.kept.values()))

    def table(self) -> str:
        """Lines for people: kept by split, then skipped by reason, then what it takes."""
        rows = [(f"kept, {split}", f"{count:,}") for split, count in self.kept.items()]
        rows += [(f"kept, {split}, {shape}", f"{n:,}") for split, of in self.shapes.items() for shape, n in of.items()]
        rows += [(f"skipped, {reason}", f"{count:,}") for reason, count in self.skipped.items()]
        rows += [("tokenizer pieces", f"{self.vocab_size:,}")] if self.vocab_size else []
        rows += [("GB per million images", f"{self.bytes_per_image / 1000:.2f}")]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value:>9}" for name, value in rows)
