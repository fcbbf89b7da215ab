"""What a preparation kept and left out, as a table for people and as report.json."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from ec_dit.core import json_file
from ec_dit.core.errors import UserError
from ec_dit.data.layout import FORMAT, REPORT


@dataclasses.dataclass(frozen=True)
class Report:
    """What a preparation kept and left out; stored as report.json. Each skipped example is a line of skipped.jsonl.

    Attributes:
        source, options, filters: what was prepared, and how.
        kept: records by split; a split that came out empty is left out.
        shapes: of encoded pictures, how many there are of each shape, '32x24' being rows x columns of the latent, by split.
        skipped: how many examples, and files, were left out for each reason, most frequent first.
        vocab_size: pieces of the tokenizer; 0: the captions are encoded.
        libraries: versions that the bytes depend on.
        files: (size in bytes, SHA-256 of each 64 MiB) of every other file of the folder.
        format: version of this layout.
        lost: how many examples the files among `skipped` hold, by reason.
        guessed: whether some of those files could not tell, and count as many as others hold.
        remarks: what was noticed of examples, or files, that were read all the same, and how often.
        published: what became of the splits that the source was published with.
        unread: what lies beside the examples and was not read: how many of each kind, '.xyz' or 'link'.
        cut: of encoded captions, 'length' in tokens that they are cut at, how many 'captions' there are, how many are 'cut'.
        mark: digest of all that its files depend on, but for the content of the source.
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
    lost: Mapping[str, int] = dataclasses.field(default_factory=dict)
    guessed: bool = False
    remarks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unread: Mapping[str, int] = dataclasses.field(default_factory=dict)
    cut: Mapping[str, int] = dataclasses.field(default_factory=dict)
    mark: str = ""

    def to_json(self) -> str:
        """Writes readable JSON, with a digest of itself."""
        return json.dumps(json_file.seal(dataclasses.asdict(self)), indent=1) + "\n"  # ASCII: a path may be no text

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: str = "the report", advice: str = "") -> "Report":
        """Reads what to_json wrote; one without a digest, or with fewer fields, is of an earlier version.

        Args:
            where: it comes from, and `advice` on what to do, for the message.

        Raises:
            UserError: for anything else.
        """
        return json_file.typed(json_file.unseal(found, where, advice), cls, where, advice)

    @property
    def bytes_per_image(self) -> float:
        """Bytes on disk, all files counted."""
        return sum(size for size, _ in self.files.values()) / max(1, sum(self.kept.values()))

    def table(self) -> str:
        """Lays it out for people: kept by split, then skipped by reason, what was noticed and not read, then what it takes."""
        rows = [(f"kept, {split}", f"{count:,}") for split, count in self.kept.items()]
        rows += [
            (f"kept, {split}, {shape}", f"{n:,}")
            for split, counts in self.shapes.items()
            for shape, n in counts.items()
        ]
        rows += [(f"skipped, {reason}", f"{count:,}") for reason, count in self.skipped.items()]
        about = "about " if self.guessed else ""
        rows += [(f"lost with these files, {reason}", f"{about}{count:,}") for reason, count in self.lost.items()]
        rows += [(f"read all the same, {reason}", f"{count:,}") for reason, count in self.remarks.items()]
        if self.cut.get("cut"):
            rows.append((f"captions cut at {self.cut['length']} tokens", f"{self.cut['cut']:,}"))
        rows += [("tokenizer pieces", f"{self.vocab_size:,}")] if self.vocab_size else []
        rows += [("GB per million images", f"{self.bytes_per_image / 1000:.2f}")]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value:>9}" for name, value in rows]
        if self.published:
            became = ", ".join(f"{name} {what}" for name, what in self.published.items())
            lines.append(f"published splits: {became}")
        return "\n".join([*lines, *([f"not read: {listed(self.unread)}"] if self.unread else [])])


def read_report(folder: epath.Path) -> Report:
    """Reads the report of the data set in a folder.

    Raises:
        UserError: it is damaged, or of another layout.
    """
    path = folder / REPORT
    # Without it nobody knows what may be replaced.
    advice = f"Remove {folder} and prepare the data set again, or prepare it somewhere else."
    found = json_file.read(path, advice)
    if type(version := found.get("format")) is int and version != FORMAT:
        raise UserError(
            f"{folder} has layout {version}, this version reads layout {FORMAT}; prepare it again with --overwrite"
        )
    return Report.from_json(found, str(path), advice)


def listed(counts: Mapping[str, int]) -> str:
    """Words counts: '6 x .xyz, 1 x link'."""
    return ", ".join(f"{count:,} x {name}" for name, count in counts.items())
