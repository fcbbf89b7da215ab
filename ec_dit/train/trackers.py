"""Where a run's figures and pictures go beside its workdir: Weights & Biases, MLflow. A new one is a class and a row of TRACKERS.

The workdir stays the record. What a tracker's service refuses or loses ends nothing: the run says so once and goes on without it.
"""

import importlib.util
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from etils import epath
from PIL import Image

from ec_dit.core import digests, json_file, paths
from ec_dit.core.errors import UserError
from ec_dit.core.settings import shown

_IDS = "trackers.json"


class Tracker(Protocol):
    """What takes figures and pictures of steps."""

    @property
    def id(self) -> str:
        """Names the run at the tracker, so that it goes on there when training does."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes named numbers of a step."""
        ...

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Takes a picture of a step."""
        ...

    def close(self, *, failed: bool) -> None:
        """Sends what is left, and says how the run ended."""
        ...


class WandbTracker:
    """Weights & Biases, by its own variables (WANDB_MODE, WANDB_ENTITY, ...); figures lie over the step of training.

    Args:
        folder: for its files; '' leaves the choice to it.
        name, project: of the run.
        settings: of the config, by keys with dots.
        run_id: of the run that goes on; '' begins one.
    """

    def __init__(self, folder: str, name: str, project: str, settings: Mapping[str, Any], run_id: str = ""):
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=project,
            name=name,
            dir=folder or None,
            config=dict(settings),
            id=run_id or None,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Its own count of steps only rises; ours goes back to a checkpoint after a kill.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    @property
    def id(self) -> str:
        """Names the run."""
        return str(self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes named numbers of a step."""
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Takes a picture of a step."""
        self._run.log({"step": step, name: self._image(image)})

    def close(self, *, failed: bool) -> None:
        """Sends what is left."""
        self._run.finish(exit_code=int(failed))


class MlflowTracker:
    """MLflow, at MLFLOW_TRACKING_URI, or else in `mlflow.db` and `mlartifacts` of the workdir.

    Arguments as of WandbTracker; a project is an experiment.
    """

    def __init__(self, folder: str, name: str, project: str, settings: Mapping[str, Any], run_id: str = ""):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunStatus

        for quiet in ("mlflow", "alembic"):  # which tell of tables that they create
            logging.getLogger(quiet).setLevel(logging.WARNING)
        self._metric, self._status = Metric, RunStatus
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (f"sqlite:///{folder}/mlflow.db" if folder else "")
        if not uri:
            raise ValueError("the workdir is in a bucket, where it cannot write: set MLFLOW_TRACKING_URI")
        self._client = MlflowClient(uri)
        if run_id:
            self._client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))
            self._id = run_id
            return
        found = self._client.get_experiment_by_name(project)
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else f"file:{folder}/mlartifacts"
        experiment = found.experiment_id if found else self._client.create_experiment(project, place)
        self._id = self._client.create_run(experiment, run_name=name).info.run_id
        texts = [Param(key, str(value)[:500]) for key, value in settings.items()]
        for start in range(0, len(texts), 100):  # a call takes so many
            self._client.log_batch(self._id, params=texts[start : start + 100])

    @property
    def id(self) -> str:
        """Names the run."""
        return self._id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes named numbers of a step."""
        now = int(1000 * time.time())
        numbers = [self._metric(_mlflow_name(key), float(value), now, step) for key, value in values.items()]
        for start in range(0, len(numbers), 1000):
            self._client.log_batch(self._id, metrics=numbers[start : start + 1000])

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Takes a picture of a step."""
        self._client.log_image(self._id, image, key=name, step=step)

    def close(self, *, failed: bool) -> None:
        """Says how the run ended."""
        status = self._status.FAILED if failed else self._status.FINISHED
        self._client.set_terminated(self._id, self._status.to_string(status))


TRACKERS: dict[str, Callable[..., Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


class Trackers:
    """Several trackers as one; what raises is told and left out from then on.

    Args:
        say: prints a line.
    """

    def __init__(self, trackers: Mapping[str, Tracker], say: Callable[[str], None]):
        self._trackers, self._say = dict(trackers), say

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Passes named numbers of a step on."""
        self._each(lambda tracker: tracker.scalars(step, values))

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Passes a picture of a step on."""
        self._each(lambda tracker: tracker.image(step, name, image))

    def close(self, *, failed: bool) -> None:
        """Closes all of them."""
        self._each(lambda tracker: tracker.close(failed=failed))
        self._trackers.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # noqa: BLE001 - whatever a service's client raises
                del self._trackers[name]
                self._say(
                    f"warning: {name} takes no more of this run ({_first_line(error)}); the workdir has everything"
                )


def check_names(names: tuple[Any, ...]) -> str | None:
    """Tells what is wrong with names of trackers; None where nothing is."""
    if not all(isinstance(name, str) for name in names):
        return f"give names, out of {', '.join(TRACKERS)}"
    unknown = [name for name in names if name not in TRACKERS]
    return f"there is no tracker {shown(unknown[0])}; choose from {', '.join(TRACKERS)}" if unknown else None


def start(
    names: Sequence[str],
    workdir: epath.Path,
    *,
    name: str,
    project: str,
    settings: Mapping[str, Any],
    say: Callable[[str], None],
) -> Trackers:
    """Begins a run at each tracker, or goes on with the one whose id trackers.json of the workdir keeps.

    Args:
        names: of TRACKERS.
        name, project, settings: as WandbTracker has them.

    Raises:
        UserError: a package is not installed, or a tracker cannot be reached now.
    """
    folder = "" if paths.is_remote(workdir) else str(workdir)
    made, ids = dict[str, Tracker](), _known(workdir / _IDS)
    for each in names:
        if importlib.util.find_spec(each) is None:
            raise UserError(f"--config.log.trackers: {each} is not installed: pip install 'ec-dit[{each}]'")
        try:
            made[each] = TRACKERS[each](folder, name, project, settings, ids.get(each, ""))
        except Exception as error:  # whatever a service's client raises
            raise UserError(f"--config.log.trackers: {each} cannot begin: {_first_line(error)}") from error
        ids[each] = made[each].id
        digests.replace(workdir / _IDS, (json.dumps(ids, indent=2) + "\n").encode())
    return Trackers(made, say)


def _known(path: epath.Path) -> dict[str, str]:
    """The ids of the run at trackers, from before; of a file that is damaged none, as others begin then."""
    try:
        return json_file.typed(json_file.read(path), dict[str, str], str(path), "") if path.exists() else {}
    except json_file.DamageError:
        return {}


def _mlflow_name(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", ":", name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
