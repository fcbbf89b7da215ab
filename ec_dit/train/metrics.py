"""Where numbers go: JSON lines and TensorBoard files in the workdir. Pictures go to TensorBoard and PNG files."""

import contextlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from ec_dit.core import paths
from ec_dit.data import images
from ec_dit.train.mirror import Mirror

_LINES = "metrics.jsonl"


class MetricWriter:
    """Writes scalars to `metrics.jsonl` (one object a line: step, time, values) and to TensorBoard.

    A resumed run appends; lines of steps that the interrupted run had written beyond its last checkpoint stand twice, and
    the later one counts. In a bucket, files are replaced every half a minute.

    Args:
        writes: False in all processes of a run but one, where nothing is written.
    """

    def __init__(self, workdir: str, writes: bool = True):
        self._writes = writes
        self._open = contextlib.ExitStack()
        if not writes:
            return
        place = paths.at(workdir)
        place.mkdir(parents=True, exist_ok=True)
        folder = Path(place)
        if paths.is_remote(workdir):
            folder = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
            if (place / _LINES).exists():
                (folder / _LINES).write_bytes((place / _LINES).read_bytes())
            self._open.enter_context(Mirror(folder, place))
        self._folder = folder
        self._lines = self._open.enter_context((folder / _LINES).open("a", encoding="utf-8"))
        if (folder / _LINES).read_bytes()[-1:] not in (b"", b"\n"):  # of a process that was killed
            self._lines.write("\n")
        self._board = self._open.enter_context(SummaryWriter(str(folder / "tensorboard"), flush_secs=30))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records named numbers of a step."""
        if not self._writes:
            return
        self._lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Records a picture, also as `images/<name>_<step>.png`."""
        if not self._writes:
            return
        folder = self._folder / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}_{step:07d}.png").write_bytes(images.encode_png(image))
        self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
