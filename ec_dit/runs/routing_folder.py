"""The folder that `python -m ec_dit.routing` writes: what lies in it, and which files there are its own."""

import io
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ec_dit.core import json_file, paths
from ec_dit.core.errors import DamageError, UserError
from ec_dit.maps.collection import Collection

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
        paths.check_can_write(self.path, "--out")
        if not self.path.exists():
            return []
        there, own = set(paths.sizes(self.path)), list[str]()
        if _RECORD in there:
            try:
                listed = json_file.read(self.path / _RECORD).get("files")
            except DamageError:
                listed = None
            if isinstance(listed, list) and all(isinstance(each, str) and _OURS.fullmatch(each) for each in listed):
                own = [_RECORD, *listed]
        foreign = sorted(name for name in there - set(own) if name == _RECORD or _OURS.fullmatch(name))
        if foreign:
            raise UserError(
                f"--out={self.path} holds {foreign[0]}, which no record of an earlier call there lists, and which would be "
                "written over: give another folder"
            )
        return sorted(there & set(own))

    def write(self, found: Collection, facts: Mapping[str, Any]) -> list[str]:
        """Writes everything; gives the names of the files."""
        for name in self.check():
            (self.path / name).unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        plots = self._drawn(found) if self._plots else {}
        files = [_ARRAYS, *plots]
        record = {**facts, **found.told(), "files": files}
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

    def _drawn(self, found: Collection) -> dict[str, bytes]:
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
        plots[_EXPERTS] = drawing.experts(found.images, found.gate_NLYXE, blocks, found.lifts())
        return {name: drawing.png(figure) for name, figure in plots.items()}
