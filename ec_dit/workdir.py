"""What a workdir holds, and who may write to it: enough to resume, sample and evaluate without the data set.

config.json, tokenizer.model or encoding.safetensors, data.json (the data set's report and fingerprint), checkpoints/,
metrics.jsonl, tensorboard/, images/, eval_*.json; conversion.json, of a model that was converted.
"""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from ec_dit import config as config_lib
from ec_dit.build import System, make_system
from ec_dit.core import paths, processes
from ec_dit.core.errors import UserError
from ec_dit.data.dataset import Dataset
from ec_dit.data.encoding import FILE as _ENCODING
from ec_dit.data.encoding import Encoding
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.train.checkpoint import Checkpointer, abstract_like

_CONFIG, _TOKENIZER, _DATA, _CHECKPOINTS = "config.json", "tokenizer.model", "data.json", "checkpoints"
_ORIGIN = "conversion.json"


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
        if self.has_begun():
            started, moved = self.data(), []
            if dataset is not None and started.get("fingerprint") != dataset.fingerprint:
                moved = [f"records of the data set: {started.get('path')} -> {dataset.path} (not the same content)"]
                if (made := self.encoding()) and dataset.encoding:
                    moved += made.difference(dataset.encoding)
            self.check(self.config(), config, moved)
        processes.check_same(config_lib.to_json(config), "the config")
        processes.check_shared(self.path, "a --workdir such as gs://BUCKET/DIR")
        if dataset is None:
            self.fill(config, None, {})
            return
        report = {key: value for key, value in json.loads(dataset.report.to_json()).items() if key != "files"}
        data = {"path": str(dataset.path), "fingerprint": dataset.fingerprint, "report": report}
        tokenizer = None if dataset.tokenizer_path is None else Tokenizer.load(dataset.tokenizer_path)
        self.fill(config, tokenizer, data, encoding=dataset.encoding)

    def has_begun(self) -> bool:
        """Whether there is a checkpoint of a run."""
        saved = (self.path / _CHECKPOINTS).glob("*")
        return (self.path / _CONFIG).exists() and any(entry.name.isdigit() for entry in saved)

    def fill(
        self,
        config: ConfigDict,
        tokenizer: Tokenizer | None,
        data: Mapping[str, Any],
        origin: Mapping[str, Any] = MappingProxyType({}),
        encoding: Encoding | None = None,
    ) -> None:
        """Writes what is known before the first checkpoint; every process calls it.

        Args:
            data: of data.json; nothing is written where it is empty.
            origin: of conversion.json, likewise.
        """
        if processes.is_first():
            self.path.mkdir(parents=True, exist_ok=True)
            for name, found in ((_DATA, data), (_ORIGIN, origin)):
                if found:
                    self._write(name, json.dumps(dict(found), indent=2))
            for name, content in (
                (_TOKENIZER, tokenizer and tokenizer.model),
                (_ENCODING, encoding and encoding.to_bytes()),
            ):
                if content:
                    (self.path / name).write_bytes(content)
                else:  # of an earlier run that did not get far
                    (self.path / name).unlink(missing_ok=True)
            self._write(_CONFIG, config_lib.to_json(config))  # last: a folder with a config is complete
        processes.wait("the workdir is written")

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
        return config_lib.from_json((self.path / _CONFIG).read_text(), str(self.path / _CONFIG))

    def tokenizer(self) -> Tokenizer | None:
        """Of the data the run trains on; None where text comes from a cache."""
        path = self.path / _TOKENIZER
        return Tokenizer(path.read_bytes()) if path.exists() else None

    def encoding(self) -> Encoding | None:
        """How the latents and embeddings were made that the run trains on; None of a run on pictures, or on none."""
        path = self.path / _ENCODING
        return Encoding.from_bytes(path.read_bytes(), str(path)) if path.exists() else None

    def data_report(self) -> dict[str, Any]:
        """The report of the data set's preparation; empty for synthetic data."""
        return self.data().get("report", {})

    def checkpointer(self, **options: Any) -> Checkpointer:
        """The run's checkpoints; options as Checkpointer has them."""
        return Checkpointer(str(self.path / _CHECKPOINTS), **options)

    def load(
        self, config: ConfigDict, *, ema: bool = True, step: int | None = None, exact: bool = False
    ) -> tuple[System, Any, int]:
        """(system, parameters on its mesh, step) of the newest or the given checkpoint; no other arrays are read.

        Args:
            config: of the run, its sampling keys and mesh changed as wished.
            ema: the moving average instead of the raw parameters; of converted weights there is but one kind.
            exact: float32, not the dtype in which sampling holds them.

        Raises:
            UserError: if there is no such checkpoint.
        """
        config.model.attention = "xla"  # the same function, on whatever devices are here
        system = make_system(config, self.tokenizer(), encoding=self.encoding())
        checkpoints = self.checkpointer(read_only=True)
        step = checkpoints.latest() if step is None else step
        if step is None:
            raise UserError(f"{self.path} has no finished checkpoint yet.")
        params = self._params(checkpoints, step, system, ema=ema, exact=exact)
        checkpoints.close()
        return system, params, step

    def start(self, system: System) -> Any:
        """The newest parameters, for another run of the same structure to start from, laid out as `system` has them.

        Raises:
            UserError: if there are none, or they are of another model, another tokenizer or other frozen encoders.
        """
        own, given = self.tokenizer(), system.tokenizer
        if own is not None and given is not None and own.model != given.model:
            raise UserError(
                f"--config.train.init_from={self.path}: its tokenizer is not the data set's. Prepare the data with "
                f"--tokenizer={self.path / _TOKENIZER}."
            )
        if (made := self.encoding()) and system.encoding and (apart := made.difference(system.encoding)):
            raise UserError(
                f"--config.train.init_from={self.path}: its parameters were trained on data encoded otherwise:\n  "
                + "\n  ".join(apart)
            )
        checkpoints = self.checkpointer(read_only=True)
        if (step := checkpoints.latest()) is None:
            raise UserError(f"--config.train.init_from={self.path}: there is no finished checkpoint in it.")
        params = self._params(checkpoints, step, system, ema=True, exact=True)
        checkpoints.close()
        return params

    def _params(self, checkpoints: Checkpointer, step: int, system: System, *, ema: bool, exact: bool) -> Any:
        state = abstract_like(*system.abstract_state(system.optimizer()))
        wanted = "ema" if ema and "ema" in checkpoints.fields(step) else "params"
        if not exact:
            state = state._replace(**{wanted: system.sampling_params(getattr(state, wanted))})
        return getattr(checkpoints.restore(step, state, only=(wanted,)), wanted)

    def write_eval(self, name: str, figures: dict[str, Any]) -> None:
        """Writes eval_<name>.json."""
        self._write(f"eval_{name}.json", json.dumps(figures, indent=2))

    def data(self) -> dict[str, Any]:
        """What is known of the data set; empty for synthetic data."""
        return self._read(_DATA)

    def origin(self) -> dict[str, Any]:
        """Where converted parameters come from; empty for those of a run."""
        return self._read(_ORIGIN)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else {}

    def _write(self, name: str, text: str) -> None:
        if paths.is_remote(self.path):
            (self.path / name).write_text(text + "\n")  # objects in a bucket appear whole
            return
        temporary = self.path / f"{name}.tmp"
        temporary.write_text(text + "\n")
        temporary.replace(self.path / name)
