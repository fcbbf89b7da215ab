"""Where models come from: PixArt's published weights, a workdir, or our own safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ec_dit import checks
from ec_dit import config as config_lib
from ec_dit.conversion.model import Model, Say, abstract_params, make_system, native_table
from ec_dit.core import hub, name_map
from ec_dit.core.errors import UserError
from ec_dit.core.tree import named_leaves, num_params
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.models import pixart
from ec_dit.models.spec import DiTSpec
from ec_dit.workdir import Workdir

CONFIG_KEY = "ec_dit"  # in the config.json beside our safetensors
TOKENIZER = "tokenizer.model"
_PIPELINES = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}  # text tokens of each, by their papers
_TEXT_TOKENS = 120


def from_pixart(path: str, mesh: Mapping[str, int], text_length: int | None, say: Say) -> Model:
    """PixArt-alpha or -Sigma from a folder of diffusers': of the transformer, or of a whole pipeline.

    Of a pipeline the text encoder and the autoencoder are noted, so that sampling finds them.

    Raises:
        UserError: naming file, tensor or key, for what is no such model.
    """
    folder = hub.local(path)
    pipeline = {}
    if folder.is_dir() and (folder / "model_index.json").is_file():
        pipeline = hub.read_json(folder / "model_index.json")
        if (name := pipeline.get("_class_name")) not in _PIPELINES:
            raise UserError(f"{folder} is a pipeline of the kind {name}; supported: {', '.join(_PIPELINES)}.")
        folder = folder / "transformer"
    spec = pixart.spec_of(hub.config(folder), f"{folder / hub.CONFIG if folder.is_dir() else folder}")
    config = _config_of(spec)
    config.name = Path(path).resolve().name
    config.text.length = text_length or _PIPELINES.get(pipeline.get("_class_name", ""), _TEXT_TOKENS)
    for key, part in (("text.path", "text_encoder"), ("data.autoencoder", "vae")):
        if pipeline and (folder.parent / part).is_dir():
            section, _, name = key.partition(".")
            config[section][name] = str((folder.parent / part).resolve())
    config.mesh.update(mesh)
    checks.validate(config)
    system = make_system(config, None)
    abstract = abstract_params(system)["dit"]
    say(f"reading {num_params(abstract):,} parameters from {folder}")
    table = pixart.entries([name for name, _ in named_leaves(abstract)], spec)
    params = name_map.load(hub.TensorFiles(folder), table, abstract, pixart.IGNORED)
    return Model(system, {"dit": params}, origin={"from": "pixart", "path": str(Path(path).resolve())})


def _config_of(spec: DiTSpec) -> ConfigDict:
    """The recipe with which PixArt's weights were made and are sampled, around a structure."""
    c = config_lib.default()
    m = c.model
    m.update(width=spec.width, num_blocks=spec.num_blocks, num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads)
    m.update(head_dim=spec.head_dim, patch=spec.patch, modulation=spec.modulation, bias=spec.bias)
    m.update(position_scale=spec.position_scale, position_fit=spec.position_fit, size_embedding=spec.size_embedding)
    m.update(text_projection=spec.text_projection, learned_sigma=spec.out_channels != spec.channels)
    c.text.update(encoder="cached", width=spec.text_width, lower=True)
    c.data.update(space="latents", size=spec.latent_size, channels=spec.channels)
    c.flow.update(path="ddpm", prediction="epsilon", mask_ratio=0.0)
    c.sample.update(sampler="dpmpp_2m", steps=20, guidance=4.5, spacing="linspace")
    return c


def from_workdir(path: str, mesh: Mapping[str, int], *, ema: bool, step: int | None) -> Model:
    """The parameters of a run, as they were trained."""
    workdir = Workdir(path)
    config = workdir.config()
    config.mesh.update(mesh)
    system, params, at = workdir.load(config, ema=ema, step=step, exact=True)
    origin = {"from": "workdir", "path": str(workdir.path), "step": at, "ema": ema, "its_origin": workdir.origin()}
    return Model(system, params, at, workdir.data(), origin)


def from_safetensors(path: str, mesh: Mapping[str, int], say: Say) -> Model:
    """A model that `writing.to_safetensors` wrote.

    Raises:
        UserError: naming file, tensor or key, for what is none.
    """
    found = hub.config(path)
    if CONFIG_KEY not in found:
        raise UserError(
            f"{path}: its config.json has no {CONFIG_KEY!r}; these are no weights that ec_dit.convert wrote."
        )
    config = config_lib.from_json(json.dumps(found[CONFIG_KEY]))
    config.mesh.update(mesh)
    checks.validate(config)
    folder = hub.local(path)
    folder = folder if folder.is_dir() else folder.parent
    needs_tokenizer = config.text.encoder == "tower"
    system = make_system(config, Tokenizer.load(folder / TOKENIZER) if needs_tokenizer else None)
    abstract = abstract_params(system)
    say(f"reading {num_params(abstract):,} parameters from {path}")
    params = name_map.load(hub.TensorFiles(path), native_table(system, abstract), abstract)
    told: dict[str, Any] = {key: found.get(key, {}) for key in ("data", "origin")}
    return Model(system, params, int(found.get("step", 0)), told["data"], told["origin"])
