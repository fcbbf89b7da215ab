"""Where models go: a workdir, diffusers' layout, or our own safetensors."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ec_dit import config as config_lib
from ec_dit.config import RunConfig, specs
from ec_dit.conversion.model import CONFIG_KEY, Model, Say, native_table
from ec_dit.conversion.reading import TOKENIZER
from ec_dit.core import export, name_map, paths, processes, settings, sharding
from ec_dit.core.download import Name
from ec_dit.core.errors import UserError
from ec_dit.core.hub import flag_names
from ec_dit.core.tree import named_leaves, num_params
from ec_dit.data.captions import caption_facts
from ec_dit.data.layout import ENCODING
from ec_dit.encoders import frozen
from ec_dit.models import native
from ec_dit.recipes.layouts import LAYOUTS
from ec_dit.runs.workdir import Workdir

STEM = "diffusion_pytorch_model"  # of diffusers' weight files


def refuse_taken(path: str) -> None:
    """Every process has to ask, before the first one writes.

    Raises:
        UserError: if there is something at `path`.
    """
    folder = paths.at(path)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give another --out, or remove it.")
    processes.wait("the output folder is looked at")


def to_workdir(model: Model, path: str) -> None:
    """A workdir that sampling reads, and from which a run may start (train.init_from)."""
    workdir = Workdir(path)
    processes.check_shared(workdir.path, "an --out such as gs://BUCKET/DIR")
    workdir.fill(model.config(), model.system.tokenizer, model.data, model.origin, model.system.encoding)
    checkpointer = workdir.checkpointer(asynchronous=False)
    checkpointer.save(model.step, {"params": model.params}, {"config": config_lib.to_tree(model.config())})
    checkpointer.close()


def to_diffusers(model: Model, path: str, dtype: str, say: Say) -> None:
    """A folder that diffusers' transformer of its kind of blocks loads with from_pretrained.

    Raises:
        UserError: for a model that this transformer cannot hold.
    """
    config, spec = model.config(), specs.dit_spec(model.system.config)
    layout = next(layout for layout in LAYOUTS.values() if layout.block == config.model.block)
    found = layout.write(spec, config.moe)
    recipe = layout.recipe(spec, config.moe, None)
    if (config.flow.path, config.flow.prediction) != (recipe.flow.path, recipe.flow.prediction):
        say(
            f"note: this model was not trained with {layout.title}'s noise; diffusers will load it, but its pipelines draw "
            "nothing with it"
        )
    if unsaid := _unsaid(config, recipe):
        found[CONFIG_KEY] = unsaid
    if model.system.encoding is not None and config.data.normalize == "channel":
        mean_Z, std_Z = model.system.latent_scale
        say(
            f"note: its latents are z * {std_Z} + {mean_Z} in the autoencoder's scale; diffusers' pipelines do not do that"
        )
    if "tower" in model.params:
        say(f"the text tower stays behind: {layout.title}'s transformer has none")
    params = model.params["dit"]
    table = layout.entries([name for name, _ in named_leaves(params)], spec)
    unread = layout.unread(spec) if processes.is_first() else ((name, None) for name, _ in layout.unread(spec))
    tensors = itertools.chain(name_map.tensors(params, table), unread)
    _finish(path, export.write(path, STEM, _cast(tensors, dtype)), {}, found)


def _unsaid(config: RunConfig, recipe: RunConfig) -> dict[str, Any]:
    """What a model of this layout is otherwise not read back with: its noise, its sampling, how it reads captions."""
    ours, theirs = config_lib.to_tree(config), config_lib.to_tree(recipe)
    captions = dict.fromkeys((*caption_facts(config.text), "length"))
    parts = {"flow": ours["flow"], "sample": ours["sample"], "text": captions}
    changed = {
        part: {key: ours[part][key] for key in keys if ours[part][key] != theirs[part][key]}
        for part, keys in parts.items()
    }
    return {part: keys for part, keys in changed.items() if keys}


def to_safetensors(model: Model, path: str, dtype: str) -> None:
    """A folder with every tensor under our own name, and a config.json that builds the model again."""
    config = settings.changed(model.config(), dict.fromkeys(_places(model.config()), ""))
    tensors = name_map.tensors(model.params, native_table(model.system, model.params))
    digests = export.write(path, native.STEM, _cast(tensors, dtype))
    found = {
        "architectures": ["EC-DiT"],
        "parameters": num_params(model.params),
        CONFIG_KEY: config_lib.to_tree(config),
        "step": model.step,
        "data": {key: value for key, value in model.data.items() if key != "path"},
    }
    beside = {}
    if model.system.tokenizer is not None:
        beside[TOKENIZER] = model.system.tokenizer.model
    if model.system.encoding is not None:
        beside[ENCODING] = model.system.encoding.to_bytes()
    _finish(path, digests, beside, found)


def _places(config: RunConfig) -> Iterator[str]:
    """The keys that name folders of this machine; encoders' names at a hub hold elsewhere too."""
    yield "train.init_from"
    for key, named in (
        ("data.autoencoder", [config.data.autoencoder]),
        ("text.path", frozen.folders(config.text.path)),
    ):
        if not all(Name.parse(path) for path in named):
            yield key


def refuse_broken(model: Model) -> None:
    """Every process has to ask, before the first one writes.

    Raises:
        UserError: if parameters are not finite.
    """
    with jax.set_mesh(model.system.mesh):
        everywhere = sharding.replicated(model.system.mesh)
        finite = jax.jit(lambda params: jax.tree.map(lambda a: jnp.isfinite(a).all(), params), out_shardings=everywhere)
        broken = [name for name, sound in named_leaves(jax.device_get(finite(model.params))) if not sound]
    if broken:
        raise UserError(
            f"the parameters {flag_names(broken)} hold numbers that are not finite, and nothing is written: the run diverged, "
            f"and an earlier checkpoint may be sound (--step), or --noise is too large."
        )


def _cast(tensors: Iterator[tuple[str, Any]], dtype: str) -> Iterator[tuple[str, np.ndarray | None]]:
    for name, array in tensors:
        cast = None if array is None else np.asarray(array, jnp.dtype(dtype))
        if cast is not None and not np.isfinite(cast).all():
            raise UserError(f"{name} leaves the range of {dtype}: write it in float32 or bfloat16.")
        yield name, cast


def _finish(path: str, digests: dict[str, str], beside: dict[str, bytes], found: dict[str, Any]) -> None:
    """Writes the files beside the weights, config.json last."""
    if processes.is_first():
        export.finish(path, digests | export.write_files(path, beside), found)
    processes.wait("the model is written")
