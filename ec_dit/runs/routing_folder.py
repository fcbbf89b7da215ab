"""The folder that `python -m ec_dit.routing` writes: what lies in it, and which files there are its own."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ec_dit.core import paths
from ec_dit.maps.collection import Collection
from ec_dit.maps.figures import Lift
from ec_dit.runs import own_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RECORD, _ARRAYS, _MAPS, _CURVES, _EXPERTS = "routing.json", "routing.npz", "routing.png", "curves.png", "experts.png"
_OURS = re.compile(r"routing\.npz|routing(_\d{5})?\.png|curves\.png|experts\.png")
_PICTURES = 16  # maps of single pictures, at most


class RoutingFolder:
    """Where the files go; those that the record of an earlier call lists are replaced, others left alone.

    Args:
        path: on a disk or in a bucket.
        plots: draws them, which takes matplotlib.
    """

    def __init__(self, path: str, *, plots: bool = True):
        self.path, self._plots = paths.at(path), plots

    def check(self) -> list[str]:
        """Lists the files of an earlier call.

        Raises:
            UserError: the folder cannot be written, or holds a file of a name of these that no record lists.
        """
        return own_files.of_earlier_call(self.path, _RECORD, _OURS, lambda name: bool(_OURS.fullmatch(name)))

    def write(self, found: Collection, facts: Mapping[str, Any]) -> list[str]:
        """Writes everything; gives the names of the files."""
        for name in self.check():
            (self.path / name).unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        lifts = found.lifts()
        plots = self._drawn(found, lifts) if self._plots else {}
        files = [_ARRAYS, *plots]
        record = {**facts, **found.told(lifts), "files": files}
        # The record first, so that a call that is interrupted owns what it leaves.
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (self.path / _RECORD).write_text(text + "\n", encoding="utf-8")
        packed = io.BytesIO()
        arrays: dict[str, Any] = dict(found.arrays())
        np.savez_compressed(packed, **arrays)
        (self.path / _ARRAYS).write_bytes(packed.getvalue())
        for name, data in plots.items():
            (self.path / name).write_bytes(data)
        return [_RECORD, *files]

    def _drawn(self, found: Collection, lifts: Sequence[Lift]) -> dict[str, bytes]:
        """All plots by name, as PNG."""
        from ec_dit.maps import drawing

        counts, number = found.count_NLUYX, len(found.images)
        blocks, times = found.block_L.tolist(), found.time_U.tolist()
        plots: dict[str, Figure] = {}
        if number > 1:
            mean = np.mean(np.stack(found.images), 0).round().astype(np.uint8)
            plots[_MAPS] = drawing.maps(f"mean of {number} pictures", mean, counts.mean(0), blocks, times)
        for place in range(min(number, _PICTURES)):
            name = _MAPS if number == 1 else f"routing_{place:05d}.png"
            plots[name] = drawing.maps(found.prompts[place], found.images[place], counts[place], blocks, times)
        plots[_CURVES] = drawing.curves(found.spreads(), blocks, times)
        plots[_EXPERTS] = drawing.experts(found.images, found.gate_NLYXE, blocks, lifts)
        return {name: drawing.png(figure) for name, figure in plots.items()}
