"""How the preparation that left something in a folder differs from the one that comes now, in words."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from ec_dit.core import json_file
from ec_dit.core.differences import differences
from ec_dit.core.errors import UserError

PIECES, REFUSED = "pieces.json", "refused.json"
_SHOWN = 5  # names in a message
_OF_SOURCE = ("shards_sha256", "units")


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Units with faults, which were more than a share of the examples."""

    share: float
    units: list[int]


def read_refusal(base: epath.Path) -> Refusal | None:
    """Reads what the preparation in a folder was refused for."""
    path, advice = base / REFUSED, "Remove it, and the same command goes on with what is there."
    if not path.exists():
        return None
    return json_file.typed(json_file.read_sealed(path, advice), Refusal, str(path), advice)


def check_same(
    base: epath.Path, old: Mapping[str, Any], new: Mapping[str, Any], pieces: Sequence[str], done: Collection[int]
) -> None:
    """Says what differs from the plan by which the units `done` in the folder `base` were made.

    Nothing where the source alone was mended, and all that was made of it was refused and would be made again anyway.

    Raises:
        UserError: likewise.
    """
    before, now = ({key: value for key, value in plan.items() if key not in _OF_SOURCE} for plan in (old, new))
    settings = list(map(str, differences(before, now)))
    source: list[str] = []
    if old.get("shards_sha256") != new.get("shards_sha256"):
        source = _changed_pieces(base, pieces)
        settings += [] if source else [*map(str, differences({"units": old.get("units")}, {"units": new.get("units")}))]
    if source and not settings:
        again = read_refusal(base)
        if again is not None and set(done).issubset(again.units):
            return
        changes = "\n  ".join(source)
        raise UserError(
            f"{base} holds what an interrupted preparation made of a source that has changed since:\n  {changes}\n"
            "Put it back as it was to go on (what cannot be used may stay: --max_skipped_share says how much), or remove "
            "that folder to start from the beginning."
        )
    changes = "\n  ".join(settings + source)
    raise UserError(
        f"{base} holds what an interrupted preparation made with other settings:\n  {changes}\n"
        "Give the same ones to go on with it, or remove that folder to start from the beginning."
    )


def _changed_pieces(base: epath.Path, pieces: Sequence[str]) -> list[str]:
    """What of the source is no longer there, and what is new; nothing where it is the same."""
    advice = f"Remove {base} to start from the beginning."
    if not (base / PIECES).exists():
        return ["the files of the source are others"]
    found = json_file.read_sealed(base / PIECES, advice)
    before = json_file.typed(found, dict[str, list[str]], str(base / PIECES), advice)
    old, new = before.get("pieces", []), list(pieces)
    lines = []
    for words, some, others in (("no longer there", old, set(new)), ("new", new, set(old))):
        if names := [name for name in some if name not in others]:
            rest = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            lines.append(f"{words}: {', '.join(names[:_SHOWN])}{rest}")
    return lines or ([] if old == new else ["the files of the source come in another order"])
