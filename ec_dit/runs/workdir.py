"""What a workdir holds, and who may write to it: enough to resume, sample and evaluate without the data set.

config.json, tokenizer.model or encoding.safetensors, data.json (the data set's report and fingerprint), digests.json (of those
before it), checkpoints/, metrics.jsonl, tensorboard/, images/, eval_*, eval/ (pictures that were scored); conversion.json, of a
model that was converted.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from ec_dit import cli
from ec_dit import config as config_lib
from ec_dit.config import RunConfig
from ec_dit.core import json_file, paths, processes, settings
from ec_dit.core.differences import differences
from ec_dit.core.digests import DigestedFiles
from ec_dit.core.errors import DamageError, UserError
from ec_dit.core.tree import named_leaves
from ec_dit.data import dataset as datasets
from ec_dit.data.dataset import Dataset
from ec_dit.data.encoding import Encoding
from ec_dit.data.layout import ENCODING as _ENCODING
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.system import layout
from ec_dit.system.model import System, make_system
from ec_dit.train.checkpoint import Checkpointer
from ec_dit.train.checkpoint_folder import CheckpointFolder
from ec_dit.train.state import TrainState

_Options = TypeVar("_Options")
_CONFIG, _TOKENIZER, _DATA, _CHECKPOINTS = "config.json", "tokenizer.model", "data.json", "checkpoints"
_ORIGIN = "conversion.json"
_SECTIONS = {"model", "moe", "data", "optimizer", "train"}  # of every run's config, and of no other program's


class Workdir:
    """A folder, local or on gs://."""

    def __init__(self, path: str):
        self.path = paths.at(path)
        paths.check_is_text(self.path, "a run")
        self._files = DigestedFiles(self.path, "start the run (or its conversion) again, which writes it anew")

    def claim(self, config: RunConfig, dataset: Dataset | None) -> None:
        """Makes the folder this run's, or checks that it already is; every process checks, the first one writes.

        What a checkpoint records of its run is compared, not the files beside it: those may be lost, and are written anew.

        Raises:
            UserError: naming every setting, or the data, that differ from the run that started here; or files of others that
                have the names of a run's; or a folder that the processes do not share.
        """
        # Before its first checkpoint a run has nothing that other settings could spoil.
        if (record := self._checkpoints().newest_record()) is not None:
            moved = self._moved(record, dataset) if dataset is not None else []
            where = f"the newest checkpoint in {self.path / _CHECKPOINTS}"
            with json_file.whole(where):
                old = config_lib.from_tree(record["config"])
            self.check(old, config, moved)
        processes.check_same(config_lib.to_json(config), "the config")
        processes.check_shared(self.path, "a --workdir such as gs://BUCKET/DIR")
        if dataset is None:
            self.fill(config, None, {})
            return
        report = {key: value for key, value in json.loads(dataset.report.to_json()).items() if key != "files"}
        data = {"path": str(dataset.path), "fingerprint": dataset.fingerprint, "report": report}
        tokenizer = None if dataset.tokenizer_path is None else Tokenizer.load(dataset.tokenizer_path)
        self.fill(config, tokenizer, data, encoding=dataset.encoding)

    def _moved(self, record: Mapping[str, Any], dataset: Dataset) -> list[str]:
        """How the data differ from those of a checkpoint's record."""
        known = record.get("data", {}).get("fingerprint")  # of converted parameters there is none
        if known is None or known == dataset.fingerprint:
            return []
        with contextlib.suppress(UserError):  # files that are lost say nothing more
            lines = [f"records of the data set: {self.data().get('path')} -> {dataset.path} (not the same content)"]
            if (made := self.encoding()) and dataset.encoding:
                lines += made.difference(dataset.encoding)
            return lines
        return [f"records of the data set: others than those at {dataset.path}"]

    def has_begun(self) -> bool:
        """Whether there is a checkpoint of a run.

        Raises:
            DamageError: if no checkpoint says what it is.
        """
        return self._checkpoints().newest_record() is not None

    def _checkpoints(self) -> CheckpointFolder:
        return CheckpointFolder(str(self.path / _CHECKPOINTS))

    def fill(
        self,
        config: RunConfig,
        tokenizer: Tokenizer | None,
        data: Mapping[str, Any],
        origin: Mapping[str, Any] = MappingProxyType({}),
        encoding: Encoding | None = None,
    ) -> None:
        """Writes what is known before the first checkpoint; every process calls it.

        Args:
            data: of data.json; nothing is written where it is empty.
            origin: of conversion.json, likewise.

        Raises:
            UserError: naming files of others that it would replace or remove.
        """
        contents = {
            _CONFIG: f"{config_lib.to_json(config)}\n".encode(),  # first: by it a run knows what a kill left as its own
            _DATA: _text(data) if data else None,
            _ORIGIN: _text(origin) if origin else None,
            _TOKENIZER: None if tokenizer is None else tokenizer.model,
            _ENCODING: None if encoding is None else encoding.to_bytes(),
        }
        with processes.told_by_first():
            if processes.is_first():
                if foreign := self._files.foreign(contents, ours=self._is_ours()):
                    raise UserError(
                        f"{self.path} holds {', '.join(foreign)}, which no run wrote: this one would replace or remove what is "
                        f"there. Choose another folder, or move these files away."
                    )
                self._files.write(contents)
        processes.wait("the workdir is written")

    def _is_ours(self) -> bool:
        """Whether a run began here that left no list of its files."""
        if self.has_begun():
            return True
        try:
            return json_file.read(self.path / _CONFIG).keys() >= _SECTIONS
        except (OSError, UserError):
            return False

    def check(self, old: RunConfig, new: RunConfig, also: Sequence[str] = ()) -> None:
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

    def config(self) -> RunConfig:
        """The config of the run.

        Raises:
            UserError: if nothing was trained here.
        """
        wrong = f"{self.path} is no workdir of a run ({{}}). Train one there, or check the path."
        if (content := self._files.read(_CONFIG)) is None:
            raise UserError(wrong.format(f"no {_CONFIG}"))
        where = str(self.path / _CONFIG)
        if not json_file.parse(content, where, self._files.advice).keys() & _SECTIONS:
            raise UserError(wrong.format(f"its {_CONFIG} is another program's"))
        return config_lib.from_json(content, where, self._files.advice)

    def tokenizer(self) -> Tokenizer | None:
        """Of the data the run trains on; None where text comes from a cache."""
        if (content := self._files.read(_TOKENIZER)) is None:
            return None
        try:
            return Tokenizer(content)
        except UserError as error:
            raise json_file.damaged(str(self.path / _TOKENIZER), str(error), self._files.advice) from error

    def encoding(self) -> Encoding | None:
        """How the latents and embeddings were made that the run trains on; None of a run on pictures, or on none."""
        content = self._files.read(_ENCODING)
        return None if content is None else Encoding.from_bytes(content, str(self.path / _ENCODING), self._files.advice)

    def data_report(self) -> dict[str, Any]:
        """The report of the data set's preparation; empty for synthetic data."""
        report = self.data().get("report", {})
        return json_file.typed(report, dict[str, Any], str(self.path / _DATA), self._files.advice)

    def data_options(self, kind: type[_Options]) -> _Options:
        """The options with which the source made the data set.

        Raises:
            DamageError: where they are not those of this `kind`.
        """
        where, advice = str(self.path / _DATA), self._files.advice
        with json_file.whole(where, advice):
            return json_file.typed(self.data_report()["options"], kind, where, advice)

    def dataset(self) -> Dataset:
        """Opens the data set of the run.

        Raises:
            UserError: there is none, it is not where it was, or another one is there.
        """
        data = self.data()
        if not data:
            raise UserError(f"the run in {self.path} has no data set: it trained on synthetic data, or was converted.")
        found = datasets.open(json_file.typed(data.get("path"), str, str(self.path / _DATA), self._files.advice))
        if found.fingerprint != data.get("fingerprint"):
            raise UserError(f"the data set at {found.path} is not the one that the run in {self.path} was trained on.")
        return found

    def checkpointer(self, **options: Any) -> Checkpointer:
        """The run's checkpoints; options as Checkpointer has them."""
        return Checkpointer(str(self.path / _CHECKPOINTS), **options)

    def load(
        self,
        config: RunConfig,
        *,
        ema: bool = True,
        step: int | None = None,
        exact: bool = False,
        say: Callable[[str], None] = cli.say,
    ) -> tuple[System, Any, int]:
        """(system, parameters on its mesh, step) of the newest or the given checkpoint; no other arrays are read.

        A run may be training here meanwhile, and delete old checkpoints.

        Args:
            config: of the run, its sampling keys and mesh changed as wished.
            ema: the moving average instead of the raw parameters; of converted weights there is but one kind.
            step: None = the newest that is not damaged.
            exact: float32 on the config's mesh, not in the dtype and layout of sampling.
            say: prints a line for people.

        Raises:
            UserError: if there is no such checkpoint, or it is damaged.
        """
        system = self.system(config) if exact else layout.for_sampling(self.system(config))
        return system, *self.params(system, ema=ema, step=step, exact=exact, say=say)

    def system(self, config: RunConfig) -> System:
        """Makes the run's model on its mesh; arguments and errors as of `load`."""
        config = settings.changed(config, {"model.attention": "xla"})  # the same function, on whatever devices are here
        return make_system(config, self.tokenizer(), encoding=self.encoding(), noted=self.noted_encoders())

    def params(
        self,
        system: System,
        *,
        ema: bool = True,
        step: int | None = None,
        exact: bool = False,
        say: Callable[[str], None] = cli.say,
    ) -> tuple[Any, int]:
        """(parameters on the mesh of `system`, step); arguments and errors as of `load`."""
        checkpoints = self.checkpointer(read_only=True)
        if step is not None:
            try:
                return self._params(checkpoints, step, system, ema=ema, exact=exact), step
            except DamageError as error:
                raise DamageError(f"{error} Leave --step out: then the newest that is whole is used.") from error
        read = functools.partial(self._params, checkpoints, system=system, ema=ema, exact=exact)
        if (found := checkpoints.newest(read, say)) is None:
            raise UserError(f"{self.path} has no finished checkpoint yet.")
        return found

    def check_start(self, system: System) -> None:
        """Compares what the run's parameters are of with another run that is to start from them; reads no arrays.

        Raises:
            UserError: if they are of another model, naming the keys, another tokenizer or other frozen encoders.
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
        theirs = settings.replaced(self.config(), system.config, "mesh", "model.attention")
        held, here = (_shapes(each) for each in (make_system(theirs, own, encoding=self.encoding()), system))
        if arrays := list(differences(held, here)):
            lines = config_lib.difference(theirs, system.config, "shape")
            raise UserError(
                f"--config.train.init_from={self.path} holds another model: {len(arrays)} arrays differ, such as {arrays[0]}, "
                "since\n  " + "\n  ".join(lines) + "\nSet these keys as they are there, or start from other parameters."
            )
        if self._checkpoints().newest_record() is None:
            raise UserError(f"--config.train.init_from={self.path}: there is no finished checkpoint in it.")

    def start(self, system: System, step: int | None = None) -> tuple[Any, int]:
        """Reads parameters, for another run to start from that `check_start` passed, laid out as `system` has them.

        Args:
            step: None = the newest that is not damaged.

        Returns:
            the parameters, and their step.

        Raises:
            UserError: if there are none.
        """
        checkpoints = self.checkpointer(read_only=True)
        read = functools.partial(self._params, checkpoints, system=system, ema=True, exact=True)
        if step is not None:
            return read(step), step
        if (found := checkpoints.newest(read, cli.say)) is None:
            raise UserError(f"--config.train.init_from={self.path}: there is no finished checkpoint in it.")
        return found

    def _params(self, checkpoints: Checkpointer, step: int, system: System, *, ema: bool, exact: bool) -> Any:
        params = system.abstract_params()
        params = params if exact else system.sampling_params(params)
        state = TrainState(step=None, key=None, params=params, ema=params, opt_state=None)  # type: ignore[arg-type]
        wanted = "ema" if ema and "ema" in checkpoints.fields(step) else "params"
        return getattr(checkpoints.restore(step, state, only=(wanted,)), wanted)

    def data(self) -> dict[str, Any]:
        """What is known of the data set; empty for synthetic data."""
        return self._read(_DATA)

    def origin(self) -> dict[str, Any]:
        """Where converted parameters come from; empty for those of a run."""
        return self._read(_ORIGIN)

    def noted_encoders(self) -> dict[str, str]:
        """The hashes of the encoders' folders when the parameters were converted; empty where nothing was noted."""
        found = self.origin().get("encoders", {})
        return json_file.typed(found, dict[str, str], str(self.path / _ORIGIN), self._files.advice)

    def _read(self, name: str) -> dict[str, Any]:
        content = self._files.read(name)
        return {} if content is None else json_file.parse(content, str(self.path / name), self._files.advice)


def _shapes(system: System) -> dict[str, tuple[int, ...]]:
    """Of the parameters, by name."""
    return {name: leaf.shape for name, leaf in named_leaves(system.shapes())}


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(content), indent=2) + "\n").encode()
