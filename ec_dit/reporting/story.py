"""What a workdir tells of its run: settings, figures by step, pictures, checkpoints."""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ec_dit.config import RunConfig, listed, specs
from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.core.evenly import evenly
from ec_dit.models import sizes
from ec_dit.runs.workdir import Workdir
from ec_dit.train.checkpoint_folder import CheckpointFolder
from ec_dit.train.metrics import read_metrics

AXES = {
    "steps": "steps",
    "images": "training images",
    "FLOPs": "training FLOPs, by formula",
}  # what runs are compared over
_SHEETS = ("samples", "routes")  # pictures of a run, images/NAME_STEP.png


@dataclass(frozen=True)
class Story:
    """A run, read from its workdir.

    Attributes:
        name: for legends; no two of one report are alike.
        rows: figures of each step that has some, in order; as metrics.jsonl names them.
        costs: of each row, how far the run was by the names of AXES.
        grids: name, step and PNG of sample grids, and of maps of experts.
        checkpoints: steps.
        data: of the data set's preparation: source and options.
        sizes: parameters of the model, all and those that work on a token, and FLOPs of training on an image at the first step.
    """

    name: str
    path: str
    config: RunConfig
    rows: Sequence[Mapping[str, float]]
    costs: Sequence[Mapping[str, float]]
    grids: Sequence[tuple[str, int, bytes]]
    checkpoints: Sequence[int]
    data: Mapping[str, Any]
    sizes: Mapping[str, int]

    @property
    def settings(self) -> dict[str, Any]:
        """Gives the config's keys with dots, as JSON has their values."""
        return listed(self.config)

    def curve(self, figure: str, axis: str = "steps") -> list[tuple[float, float]]:
        """Gives a figure over an axis of AXES, where the run has it."""
        return [
            (cost[axis], row[figure])
            for row, cost in zip(self.rows, self.costs, strict=True)
            if row.get(figure) is not None
        ]

    def names(self, pattern: str) -> list[str]:
        """Lists the figures that a regular expression matches whole."""
        return sorted({name for row in self.rows for name in row if re.fullmatch(pattern, name)})

    def at(self, figure: str, axis: str, place: float) -> float | None:
        """Gives a figure at a place of an axis, on the straight line between its neighbours; None outside of its curve."""
        curve = self.curve(figure, axis)
        if not curve or not curve[0][0] <= place <= curve[-1][0]:
            return None
        after = min(bisect_right([x for x, _ in curve], place), len(curve) - 1)
        (x0, y0), (x1, y1) = curve[max(after - 1, 0)], curve[after]
        return y1 if x1 == x0 else y0 + (y1 - y0) * (place - x0) / (x1 - x0)


def read(workdirs: Sequence[str], grids: int = 6) -> list[Story]:
    """Reads runs.

    Args:
        grids: sample grids of each, and maps of experts, at most: the first, the last, and some between.

    Raises:
        UserError: a folder is no workdir, is given twice, or has no figures yet.
    """
    if repeated := [path for path in workdirs if workdirs.count(path) > 1]:
        raise UserError(f"--workdir: {repeated[0]} is given twice")
    return [_read(path, name, grids) for path, name in zip(workdirs, paths.short_names(workdirs), strict=True)]


def common_end(stories: Sequence[Story], figure: str, axis: str) -> float | None:
    """Gives the farthest place of an axis that all curves of a figure reach; None where one of the runs lacks it."""
    ends = [curve[-1][0] for story in stories if (curve := story.curve(figure, axis))]
    return min(ends) if len(ends) == len(stories) else None


def _read(path: str, name: str, grids: int) -> Story:
    workdir = Workdir(path)
    config = workdir.config()
    try:
        rows = [row for row in read_metrics(path) if row["step"] > 0]
    except FileNotFoundError:
        rows = []
    if not rows:
        raise UserError(
            f"{path} has no figures yet: metrics.jsonl is missing or empty. Train it for a few steps first."
        )
    spec, tower = specs.dit_spec(config), specs.tower_spec(config, workdir.tokenizer())

    def image_flops(step: int) -> int:
        factor = specs.computed_factor(specs.with_capacity(config, specs.capacity_at(config, step)))
        return sizes.train_flops_per_image(spec, specs.kept_tokens(config), config.text.length, factor, tower)

    counted = sizes.sizes(spec, config.moe.capacity_factor)
    batch, costs, done, flops = config.train.batch_size, list[dict[str, float]](), 0, 0.0
    for row in rows:
        step = int(row["step"])
        flops += (step - done) * batch * float(image_flops(done))
        costs.append({"steps": step, "images": step * batch, "FLOPs": flops})
        done = step
    return Story(
        name=name,
        path=path,
        config=config,
        rows=rows,
        costs=costs,
        grids=_grids(workdir, grids),
        checkpoints=sorted(CheckpointFolder(str(workdir.path / "checkpoints")).numbered()),
        data=workdir.data_report(),
        sizes={"all": counted.total, "activated": counted.activated, "flops": image_flops(0)},
    )


def _grids(workdir: Workdir, most: int) -> list[tuple[str, int, bytes]]:
    folder, found = workdir.path / "images", list[tuple[str, int, bytes]]()
    if most < 1 or not folder.is_dir():
        return found
    names = [path.name for path in folder.iterdir()]
    for sheet in _SHEETS:
        steps = sorted(int(match[1]) for name in names if (match := re.fullmatch(rf"{sheet}_(\d+)\.png", name)))
        places = [len(steps) - 1 - place for place in evenly(len(steps), most)]  # from the last one back
        for step in (steps[place] for place in reversed(places)):
            found.append((sheet, step, (folder / f"{sheet}_{step:07d}.png").read_bytes()))
    return found
