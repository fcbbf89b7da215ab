"""Where numbers go: JSON lines and TensorBoard files in the workdir. Pictures go to TensorBoard and PNG files."""

import contextlib
import json
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from etils import epath
from PIL import Image

from ec_dit.core import digests, paths, processes
from ec_dit.data import images
from ec_dit.train.mirror import Mirror
from ec_dit.train.tensorboard import Event, SessionLog, masked_crc32c, summary
from ec_dit.train.trackers import Trackers

_LINES = "metrics.jsonl"


class MetricWriter:
    """Writes scalars to `metrics.jsonl` (one object a line: step, time, values) and to TensorBoard.

    Both are written when a method returns, by the thread that calls it, so that what fails does so there. A resumed run
    appends to `metrics.jsonl`, where steps that the interrupted one had done beyond its checkpoint then stand twice:
    `read_metrics` gives each once. TensorBoard is told to leave them out, and given again what is known of the step before
    them: it then shows what the other files hold, of which a kill may have come between. In a bucket, files are replaced every
    half a minute.

    Args:
        first_step: the last step done before the run goes on.
        writes: False in all processes of a run but one, where nothing is written.
        trackers: gets everything too, where this process writes; closed with it.

    Raises:
        OSError: by all methods, where the disk is full.
    """

    def __init__(self, workdir: str, first_step: int = 0, writes: bool = True, trackers: Trackers | None = None):
        self._writes, self._trackers = writes, trackers or Trackers({}, print)
        self._recorded: set[str] = set()
        self._mirror: Mirror | None = None
        self._open = contextlib.ExitStack()
        if not writes:
            return
        place = paths.at(workdir)
        place.mkdir(parents=True, exist_ok=True)
        self._folder = Path(place)
        if paths.is_remote(workdir):
            self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
            if (place / _LINES).exists():
                (self._folder / _LINES).write_bytes((place / _LINES).read_bytes())
            self._mirror = self._open.enter_context(Mirror(self._folder, place))
        self._lines = self._open.enter_context(_File(self._folder / _LINES))
        lines = (self._folder / _LINES).read_bytes()
        if lines[-1:] not in (b"", b"\n"):  # of a process that was killed
            self._lines.write(b"\n")
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._board = self._open.enter_context(_File(self._folder / "tensorboard" / name))
        self._event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._event(
            Event(step=max(1, first_step), session_log=start)
        )  # TensorBoard drops what it has from that step on
        if first_step:
            self._show_again(first_step, lines, place / "images")

    def _show_again(self, step: int, lines: bytes, pictures: epath.Path) -> None:
        values: dict[str, float] = {}
        for row in _rows(lines):
            if row["step"] < step:
                values.clear()  # what stands before is of an attempt that was given up
            elif row["step"] == step:
                values.update({name: value for name, value in row.items() if isinstance(value, int | float)})
        clock = values.pop("time", time.time())
        values.pop("step", None)
        self._show(step, values, clock)
        self._recorded |= values.keys()
        ending = f"_{step:07d}.png"
        for path in pictures.iterdir() if pictures.is_dir() else ():
            if path.name.endswith(ending):
                with contextlib.suppress(images.ImageError):  # a damaged one is as good as none
                    self._show_picture(step, path.name.removesuffix(ending), images.decode(path.read_bytes()))
                    self._recorded.add(path.name.removesuffix(ending))

    def recorded(self, name: str) -> bool:
        """Whether a number or a picture of the step from which the run goes on is there already; every process asks."""
        return not processes.everywhere(not self._writes or name not in self._recorded)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records named numbers of a step."""
        if not self._writes:
            return
        now = time.time()
        self._lines.write(json.dumps({"step": step, "time": round(now, 3), **values}).encode() + b"\n")
        self._show(step, values, now)
        self._trackers.scalars(step, values)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Records a picture, also as `images/<name>_<step>.png`."""
        if not self._writes:
            return
        folder = self._folder / "images"
        folder.mkdir(parents=True, exist_ok=True)
        digests.replace(epath.Path(folder / f"{name}_{step:07d}.png"), images.encode_png(image))
        self._show_picture(step, name, image)
        self._trackers.image(step, name, image)

    def _show(self, step: int, values: Mapping[str, float], clock: float) -> None:
        points = summary.Summary()
        for name, value in values.items():
            points.MergeFrom(summary.scalar(name, value))
        self._event(Event(step=step, wall_time=clock, summary=points))

    def _show_picture(self, step: int, name: str, image: Image.Image) -> None:
        picture = summary.image(name, np.asarray(image.convert("RGB")), dataformats="HWC")
        self._event(Event(step=step, wall_time=time.time(), summary=picture))

    def sync(self) -> None:
        """Returns when what was written is in the workdir: a checkpoint that is there promises the metrics before it."""
        if self._mirror is not None:
            self._mirror.copy()

    def check(self) -> None:
        """Raises what ended the copying to a bucket, if something did."""
        if self._mirror is not None:
            self._mirror.check()

    def _event(self, event: Event) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._board.write(
            length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
        )

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._trackers.close(failed=kind is not None)
        self._open.__exit__(kind, error, trace)


class _File:
    """A file that is appended to, without a buffer: what could not be written is not tried again when it is closed."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Writes all of the data, or raises OSError."""
        while data:
            data = data[self._file.write(data) :]

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def read_metrics(workdir: str) -> Iterator[dict[str, float]]:
    """Yields what `metrics.jsonl` of a workdir says of each step, in order: of a step that was done twice, the later values.

    Progress lines, validation and so on of one step come as one dict. A line that a kill cut short is left out.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    steps: dict[int, dict[str, float]] = {}
    for values in _rows((paths.at(workdir) / _LINES).read_bytes()):
        steps.setdefault(int(values["step"]), {}).update(values)
    for step in sorted(steps):
        yield steps[step]


def _rows(lines: bytes) -> Iterator[dict[str, float]]:
    """The lines that are whole, of which each has its step."""
    for line in lines.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(line)
            if isinstance(values, dict) and type(values.get("step")) is int:
                yield values
