"""What stands beside drawn pictures: the settings they depend on, and the record of the files that are a call's own."""

import contextlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ec_dit.core import paths
from ec_dit.data import images
from ec_dit.data.sheet import contact_sheet
from ec_dit.runs import own_files
from ec_dit.sampling.settings import SampleSettings
from ec_dit.system.model import System

_RECORD, _SHEET = "settings.json", "sheet.png"
_OURS = re.compile(r"\d{5,}_\d{4,}\.png|sheet\.png")
_ON_SHEET = 64  # pictures on the contact sheet, at most


class PictureFolder:
    """Pictures 00000_0000.png by the prompt's number and an index, a contact sheet, and settings.json, which lists them.

    Args:
        path: of the folder, on a disk or in a bucket.
        texts: prompts by their numbers; of empty ones there are no pictures. One that comes twice is drawn once, and its
            pictures stand under both numbers.
        count: pictures of each prompt.

    Attributes:
        jobs: (text, index) of every picture to draw.
        told: a line for people on what was written.
    """

    def __init__(self, path: str, texts: Sequence[str], count: int):
        self.path = paths.at(path)
        self._texts, self._count = texts, count
        self._numbers: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            if text:
                self._numbers.setdefault(text, []).append(number)
        self.jobs = [(text, index) for text in self._numbers for index in range(count)]
        self._sheet: list[np.ndarray] = []
        self._record: dict[str, Any] = {}

    @property
    def _files(self) -> list[str]:
        numbers = sorted(number for where in self._numbers.values() for number in where)
        return [*(_name(number, index) for number in numbers for index in range(self._count)), _SHEET]

    def numbers_of(self, holds: Callable[[str], bool]) -> list[int]:
        """The numbers of the prompts of which something holds."""
        return sorted(number for text, numbers in self._numbers.items() if holds(text) for number in numbers)

    def check(self) -> list[str]:
        """The files that the record of an earlier call lists, which this one replaces.

        Raises:
            UserError: it is no folder, or has files under names of this call's that no record lists.
        """
        return own_files.of_earlier_call(self.path, _RECORD, _OURS, set(self._files).__contains__)

    @contextlib.contextmanager
    def writing(self, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """A context for `write`: before it the pictures of an earlier call are removed, after it the sheet is written.

        Args:
            facts: what the pictures depend on, for the record, which is there from the beginning: a call that is
                interrupted owns what it leaves.

        Yields:
            the record, to which may be added what is known at the end.
        """
        old = self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        for name in old:
            (self.path / name).unlink(missing_ok=True)
        self._record = {"prompts": list(self._texts), "num": self._count, **facts, "files": self._files}
        self._write_record(finished=False)
        yield self._record
        columns = min(8, self._count) if len(self._numbers) > 1 else 8
        captions = [text for text, _ in self.jobs[: len(self._sheet)]]
        sheet = contact_sheet(self._sheet, captions, columns, smooth=True)
        (self.path / _SHEET).write_bytes(images.encode_png(sheet))
        self._write_record(finished=True)

    def write(self, text: str, index: int, image: np.ndarray) -> None:
        """A picture, uint8 (rows, columns, 3), under every number of its text."""
        data = images.encode_png(images.to_pil(image))
        for number in self._numbers[text]:
            (self.path / _name(number, index)).write_bytes(data)
        if len(self._sheet) < _ON_SHEET:
            self._sheet.append(image)

    @property
    def told(self) -> str:
        """What is in the folder."""
        total, drawn = len(self._files) - 1, len(self.jobs)
        copies = f" ({total - drawn} are copies, of prompts that come twice)" if total > drawn else ""
        shown = "all" if drawn <= _ON_SHEET else f"the first {_ON_SHEET}"
        return f"{total} images{copies} in {self.path}, {shown} together in {self.path / _SHEET}"

    def _write_record(self, *, finished: bool) -> None:
        text = json.dumps({**self._record, "finished": finished}, indent=2)
        (self.path / _RECORD).write_text(text + "\n", encoding="utf-8")


def _name(number: int, index: int) -> str:
    return f"{number:05d}_{index:04d}.png"


def describe(system: System, settings: SampleSettings) -> dict[str, Any]:
    """Lists every setting an image depends on, and the versions and devices that made it, for the files beside it."""
    matched = {} if settings.capacity == "fixed" else {"capacity": settings.capacity, "room": settings.room}
    return {
        "dtype": str(system.dtype),
        "path": system.config.flow.path,
        "prediction": settings.prediction,
        "devices": f"{system.mesh.size} x {jax.devices()[0].device_kind}",
        "mesh": dict(system.mesh.shape),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax")},
        "sampler": settings.sampler,
        "steps": settings.steps,
        "nfe": settings.evaluations,
        "guidance": settings.guidance,
        "guidance_norm": settings.guidance_norm,
        "guidance_interval": list(settings.guidance_interval),
        "time_shift": settings.time_shift,
        "final_time": settings.final_time,
        "spacing": settings.spacing,
        "batch_size": settings.batch_size,
        "capacity_factor": settings.routing.capacity_factor,
        "group_size": settings.routing.group_size,
        "paired_group_size": settings.paired_routing.group_size,
        **matched,
    }
