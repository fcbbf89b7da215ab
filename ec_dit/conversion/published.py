"""Published models in diffusers' layout, from a folder or a name: of the transformer, or of a whole pipeline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ec_dit import config as config_lib
from ec_dit.config import checks
from ec_dit.conversion.model import CONFIG_KEY, Model, Say, make_system
from ec_dit.core import export, hub, name_map, processes, settings
from ec_dit.core.download import Fetched
from ec_dit.core.errors import UserError
from ec_dit.core.tree import named_leaves, num_params
from ec_dit.encoders import frozen, text
from ec_dit.recipes.layouts import LAYOUTS, Layout, Scheduler

_INDEX = "model_index.json"  # of a pipeline
_NEAR = 0.02  # how far stored numbers that follow from the config may be off, in bfloat16 too


def from_published(kind: str, path: str, mesh: Mapping[str, int], text_length: int | None, say: Say) -> Model:
    """A model of a row of LAYOUTS.

    Of a pipeline the text encoders and the autoencoder are noted, so that sampling finds them.

    Raises:
        UserError: naming file, tensor or key, for what is no such model.
    """
    layout = LAYOUTS[kind]
    fetched = hub.named(path, pipeline=True)
    source = (hub.local(path) if fetched is None else fetched.path).absolute()
    name = hub.folder_of(source).name if fetched is None else fetched.name.repository.rpartition("/")[2]
    if (source / _INDEX).is_file():
        source = hub.local(source / "transformer")
    elif (source / "transformer" / hub.CONFIG).is_file():
        raise UserError(
            f"{source / _INDEX} is missing: it says what the pipeline is; download it, or give --path={source / 'transformer'}."
        )
    folder = hub.folder_of(source)
    pipeline, scheduler = _pipeline_of(folder, layout)
    export.check(folder)
    files, found = hub.TensorFiles(source), hub.config(folder)
    with hub.interpreted(str(files.config_path)):
        spec, moe = layout.read(found, files.tensors, str(files.config_path))
        told = found.get(CONFIG_KEY, {})  # by ourselves, of what the layout does not say
        recipe = config_lib.to_tree(layout.recipe(spec, moe, scheduler))
        config = config_lib.from_tree(_merged(recipe, told))
    known = layout.pipelines.get(pipeline.get("_class_name", ""))
    noted = told.get("text", {}).get("length") if isinstance(told.get("text"), dict) else None
    length = text_length or known or noted or min(layout.pipelines.values())
    if not text_length and not known and not noted:
        others = ", ".join(f"{name} {count}" for name, count in layout.pipelines.items())
        say(f"text tokens: {length}; pipelines have: {others} (--text_length)")
    places, encoders = _find_encoders(folder.parent, fetched, say) if pipeline else ({}, {})
    config = settings.changed(config, {"name": name, "text.length": length, **places})
    with hub.interpreted(str(files.config_path)):
        checks.validate(config)
    config = settings.changed(config, settings.prefixed("mesh", mesh))
    system = make_system(config, None)
    abstract = system.abstract_params()["dit"]
    unread = dict(layout.unread(spec))
    _check_unread(files, unread)
    say(f"reading {num_params(abstract):,} parameters from {folder}")
    table = layout.entries([name for name, _ in named_leaves(abstract)], spec)
    params = name_map.load(files, table, abstract, [*layout.ignored, *unread])
    where = str(Path(path).absolute() if fetched is None else fetched.name)
    return Model(system, {"dit": params}, origin={"from": kind, "path": where, "encoders": encoders})


def _merged(tree: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of one, in sections, over those of another."""
    return tree | {
        name: tree[name] | part if isinstance(part, dict) and name in tree else part for name, part in other.items()
    }


def _check_unread(files: hub.TensorFiles, unread: Mapping[str, np.ndarray]) -> None:
    """Positions that stand in a file have to be those that follow from its config.

    Raises:
        UserError: naming the tensor.
    """
    for name, expected in unread.items():
        if name.endswith("pos_embed") and name in files.tensors:
            found = files.read(name).astype(np.float32)
            if found.shape != expected.shape or not np.abs(found - expected).max() < _NEAR:
                raise UserError(
                    f"{files.tensors[name].file}: tensor {name} holds other positions than the sines and cosines of its "
                    "config.json, which alone are built here."
                )


def _find_encoders(pipeline: Path, fetched: Fetched | None, say: Say) -> tuple[dict[str, str], dict[str, str]]:
    """Finds the text encoders and the autoencoder of a pipeline, and says what prompts and pictures would miss.

    Args:
        fetched: what it was downloaded as; None for a folder of the user's.

    Returns:
        (where they lie, or their names with the commit, by config key; their hashes, by which sampling sees whether they are
        still the same: of the first process, which writes them).
    """
    places: dict[str, str] = {}
    noted: dict[str, str] = {}

    def place(part: str) -> str:
        return str((pipeline / part).resolve()) if fetched is None else fetched.part(part)

    if (pipeline / "vae").is_dir():
        autoencoder = places["data.autoencoder"] = place("vae")
        try:
            noted |= frozen.noted(autoencoder) if processes.is_first() else {}
        except UserError as error:
            say(f"note: without an autoencoder no picture can be drawn: {error}")
    encoders = [part for part in text.PIPELINE if (pipeline / part).is_dir()]
    if not encoders:
        return places, noted
    places["text.path"] = frozen.joined([place(part) for part in encoders])
    try:
        for part in encoders:
            text.tokenizer_files((pipeline / part).resolve())
    except UserError as error:
        say(f"note: without a tokenizer no prompt can be drawn: {error}")
        return places, noted
    try:
        noted |= frozen.noted(texts=[place(part) for part in encoders]) if processes.is_first() else {}
    except UserError as error:
        say(f"note: without a text encoder no prompt can be drawn: {error}")
    return places, noted


def _pipeline_of(folder: Path, layout: Layout) -> tuple[dict[str, Any], Scheduler | None]:
    """The model_index.json of the pipeline that a transformer's folder lies in, and its scheduler; nothing where there is none.

    Raises:
        UserError: for another kind of pipeline.
    """
    index = folder.parent / _INDEX
    if not index.is_file():
        return {}, None
    pipeline = hub.read_json(index)
    hub.fields(pipeline, str(index), _class_name=str)
    hub.supported(pipeline, str(index), _class_name=tuple(layout.pipelines))
    path = folder.parent / "scheduler" / "scheduler_config.json"
    return pipeline, (hub.read_json(path), str(path)) if path.is_file() else None
