"""Where models come from: a workdir, or our own safetensors; published ones: `published.py`."""

from collections.abc import Mapping
from typing import Any

from ec_dit import config as config_lib
from ec_dit.config import RunConfig, checks
from ec_dit.conversion.model import CONFIG_KEY, Model, Say, make_system, native_table
from ec_dit.core import export, hub, name_map, settings
from ec_dit.core.errors import UserError
from ec_dit.core.tree import num_params
from ec_dit.data.encoding import Encoding
from ec_dit.data.layout import ENCODING
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.runs.workdir import Workdir

TOKENIZER = "tokenizer.model"


def _home(config: RunConfig) -> dict[str, Any]:
    """What the devices that convert change for themselves, and what is to be written as it was."""
    return {"mesh": config.mesh, "attention": config.model.attention}


def from_workdir(path: str, mesh: Mapping[str, int], *, ema: bool, step: int | None) -> Model:
    """The parameters of a run, as they were trained."""
    workdir = Workdir(path)
    config = workdir.config()
    checks.validate(config)
    home = _home(config)
    config = settings.changed(config, settings.prefixed("mesh", mesh))
    system, params, at = workdir.load(config, ema=ema, step=step, exact=True)
    origin = {"from": "workdir", "path": str(workdir.path), "step": at, "ema": ema, "its_origin": workdir.origin()}
    origin["encoders"] = workdir.noted_encoders()
    return Model(system, params, at, workdir.data(), origin, **home)


def from_safetensors(path: str, mesh: Mapping[str, int], say: Say) -> Model:
    """A model that `writing.to_safetensors` wrote, from its folder or the name of one that was published.

    Raises:
        UserError: naming file, tensor or key, for what is none.
    """
    export.check(path)
    found = hub.config(path)
    if CONFIG_KEY not in found:
        raise UserError(
            f"{path}: its config.json has no {CONFIG_KEY!r}; these are no weights that ec_dit.convert wrote."
        )
    folder = hub.folder_of(hub.local(path))
    where = str(folder / hub.CONFIG)
    with hub.interpreted(where):
        config = config_lib.from_tree(found[CONFIG_KEY])
        checks.validate(config)
    home = _home(config)
    config = settings.changed(config, settings.prefixed("mesh", mesh))
    step, data = hub.fields(found, where, step=0, data={}).values()
    needs_tokenizer = config.text.encoder == "tower"
    tokenizer = Tokenizer.load(folder / TOKENIZER) if needs_tokenizer else None
    encoding = None
    if (folder / ENCODING).is_file():
        encoding = Encoding.from_bytes((folder / ENCODING).read_bytes(), str(folder / ENCODING))
    system = make_system(config, tokenizer, encoding)
    abstract = system.abstract_params()
    say(f"reading {num_params(abstract):,} parameters from {path}")
    params = name_map.load(hub.TensorFiles(path), native_table(system, abstract), abstract)
    origin = {"from": "safetensors", "path": hub.pinned(path)}
    return Model(system, params, step, data, origin, **home)
