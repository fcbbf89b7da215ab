"""What a workdir holds, and who may write to it: enough to resume, sample and evaluate without the data set.

config.json, tokenizer.model, data.json (the data set's report and fingerprint), checkpoints/, metrics.jsonl,
tensorboard/, images/, eval_*.json.
"""

import json
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ec_dit import config as config_lib
from ec_dit.build import System, make_system
from ec_dit.core import paths, processes
from ec_dit.core.errors import UserError
from ec_dit.data.dataset import Dataset
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.train.checkpoint import Checkpointer, abstract_like

_CONFIG, _TOKENIZER, _DATA, _CHECKPOINTS = "config.json", "tokenizer.model", "data.json", "checkpoints"


class Workdir:
    """A folder, local or on gs://."""

    def __init__(self, path: str):
        self.path = paths.at(path)

    def claim(self, config: ConfigDict, dataset: Dataset | None) -> None:
        """Makes the folder this run's, or checks that it already is; every process checks, the first one writes.

        Raises:
            UserError: naming every setting, or the data, that differ from the run that started here; or a folder that the
                processes do not share.
        """
        # Before its first checkpoint a run has nothing that other settings could spoil.
        if (self.path / _CONFIG).exists() and any(p.name.isdigit() for p in (self.path / _CHECKPOINTS).glob("*")):
            started, moved = self._data(), []
            if dataset is not None and started.get("fingerprint") != dataset.fingerprint:
                moved = [f"records of the data set: {started.get('path')} -> {dataset.path} (not the same content)"]
            self.check(self.config(), config, moved)
        processes.check_same(config_lib.to_json(config), "the config")
        processes.check_shared(self.path, "a --workdir such as gs://BUCKET/DIR")
        if processes.is_first():
            self._write_claim(config, dataset)
        processes.wait("the workdir is written")

    def _write_claim(self, config: ConfigDict, dataset: Dataset | None) -> None:
        if dataset is not None:
            report = json.loads(dataset.report.to_json())
            data = {"path": str(dataset.path), "fingerprint": dataset.fingerprint, "report": report}
            self._write(_DATA, json.dumps(data, indent=2))
            (self.path / _TOKENIZER).write_bytes(dataset.tokenizer_path.read_bytes())
        self._write(_CONFIG, config_lib.to_json(config))  # last: a folder with a config is complete

    def check(self, old: ConfigDict, new: ConfigDict, also: Sequence[str] = ()) -> None:
        """Refuses to go on with other settings.

        Args:
            also: other differences, one a line.

        Raises:
            UserError: naming every setting that differs.
        """
        if changed := [*config_lib.difference(old, new), *also]:
            raise UserError(
                f"{self.path} belongs to a run with other settings:\n  " + "\n  ".join(changed) + "\n"
                "Give this run another --workdir, or the same settings as before."
            )

    def config(self) -> ConfigDict:
        """The config of the run.

        Raises:
            UserError: if nothing was trained here.
        """
        if not (self.path / _CONFIG).exists():
            raise UserError(f"{self.path} is no workdir of a run (no {_CONFIG}). Train one, or check --workdir.")
        return config_lib.from_json((self.path / _CONFIG).read_text())

    def tokenizer(self) -> Tokenizer | None:
        """Of the data the run trains on; None where text comes from a cache."""
        path = self.path / _TOKENIZER
        return Tokenizer(path.read_bytes()) if path.exists() else None

    def data_report(self) -> dict[str, Any]:
        """The report of the data set's preparation; empty for synthetic data."""
        return self._data().get("report", {})

    def checkpointer(self, **options: Any) -> Checkpointer:
        """The run's checkpoints; options as Checkpointer has them."""
        return Checkpointer(str(self.path / _CHECKPOINTS), **options)

    def load(self, config: ConfigDict, *, ema: bool = True, step: int | None = None) -> tuple[System, Any, int]:
        """(system, parameters on its mesh, step) of the newest or the given checkpoint; no other arrays are read.

        Args:
            config: of the run, its sampling keys and mesh changed as wished.
            ema: the moving average instead of the raw parameters.

        Raises:
            UserError: if there is no such checkpoint.
        """
        config.model.attention = "xla"  # the same function, on whatever devices are here
        system = make_system(config, self.tokenizer())
        checkpoints = self.checkpointer(read_only=True)
        step = checkpoints.latest() if step is None else step
        if step is None:
            raise UserError(f"{self.path} has no finished checkpoint yet.")
        state = abstract_like(*system.abstract_state(system.optimizer()))
        wanted = "ema" if ema else "params"
        state = state._replace(**{wanted: system.sampling_params(getattr(state, wanted))})
        state = checkpoints.restore(step, state, only=(wanted,))
        checkpoints.close()
        return system, getattr(state, wanted), step

    def write_eval(self, name: str, figures: dict[str, Any]) -> None:
        """Writes eval_<name>.json."""
        self._write(f"eval_{name}.json", json.dumps(figures, indent=2))

    def _data(self) -> dict[str, Any]:
        path = self.path / _DATA
        return json.loads(path.read_text()) if path.exists() else {}

    def _write(self, name: str, text: str) -> None:
        if paths.is_remote(self.path):
            (self.path / name).write_text(text + "\n")  # objects in a bucket appear whole
            return
        temporary = self.path / f"{name}.tmp"
        temporary.write_text(text + "\n")
        temporary.replace(self.path / name)
