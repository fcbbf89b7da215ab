"""Two scores of one suite: how far they are apart, and whether that is more than chance makes of it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ec_dit.core import json_file, paths
from ec_dit.core.differences import differences
from ec_dit.core.errors import UserError
from ec_dit.judges.bootstrap import standard_error

_SURE = 2.0  # standard errors
_AGAIN = "Score again, which writes it anew."


@dataclass(frozen=True)
class Scored:
    """A score as its files have it: eval_NAME.json, and eval_NAME.jsonl beside it where there are rows."""

    path: str
    whole: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, path: str) -> "Scored":
        """Reads a score.

        Raises:
            UserError: there is none, or it is damaged.
        """
        file = paths.at(path)
        if not file.is_file():
            raise UserError(f"there is no score {file}: give the eval_NAME.json of a suite.")
        whole = json_file.read(file, _AGAIN)
        with json_file.whole(str(file), _AGAIN):
            json_file.typed(whole["suite"], str, str(file), _AGAIN)
            json_file.typed(whole["score"], float, str(file), _AGAIN)
            json_file.typed(whole.get("standard_error"), float | None, str(file), _AGAIN)  # type: ignore[arg-type]
            json_file.typed(whole.get("choices", {}), dict[str, Any], str(file), _AGAIN)
        beside = file.parent / f"{Path(file).stem}.jsonl"
        rows = beside.read_text().splitlines() if beside.exists() else []
        with json_file.whole(str(beside), _AGAIN):
            parsed = [json.loads(row) for row in rows]
            _by_prompt(parsed)
            return cls(str(file), whole, parsed)


def compared(one: Scored, other: Scored) -> str:
    """Tells people how far `one` is above `other`, how sure that is, and what else differs between them.

    Raises:
        UserError: they are of different suites.
    """
    a, b = one.whole, other.whole
    if a["suite"] != b["suite"]:
        raise UserError(f"{one.path} is of suite {a['suite']}, {other.path} of {b['suite']}: they do not compare.")
    apart = a["score"] - b["score"]
    error, how = _paired(one, other)
    if math.isnan(error):
        errors = [whole.get("standard_error") for whole in (a, b)]
        known = [float(each) for each in errors if each is not None]
        error, how = (
            (math.hypot(*known), "two samples") if len(known) == 2 else (math.nan, "no standard error is known")
        )
    lines = [f"{a['suite']}: {a['score']:.5g} here, {b['score']:.5g} in {other.path}"]
    verdict = "not known"
    if not math.isnan(error):
        verdict = "more than chance" if abs(apart) > _SURE * error else "no more than chance may do"
    lines.append(f"difference {apart:+.5g} +- {error:.2g} ({how}): {verdict}")
    unlike = list(differences(dict(b.get("choices") or {}), dict(a.get("choices") or {})))
    lines += [f"  {difference}" for difference in unlike]
    return "\n".join(lines)


def _paired(one: Scored, other: Scored) -> tuple[float, str]:
    """The standard error of the difference by the prompts that both have, and how many; NaN where they are not the same ones."""
    means, theirs = _by_prompt(one.rows), _by_prompt(other.rows)
    if not means or means.keys() != theirs.keys():
        return math.nan, ""
    apart = [means[key][0] - theirs[key][0] for key in means]
    groups = [group for _, group in means.values()]
    return standard_error(apart, [str(key) for key in means], groups), f"paired by {len(apart):,} prompts"


def _by_prompt(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[float, str]]:
    """(id, prompt) -> (mean value of its pictures, group)."""
    values: dict[tuple[str, str], list[float]] = {}
    groups = {}
    for row in rows:
        key = str(row["id"]), str(row.get("prompt", ""))
        values.setdefault(key, []).append(float(row["value"]))
        groups[key] = str(row.get("group", ""))
    return {key: (sum(found) / len(found), groups[key]) for key, found in values.items()}
