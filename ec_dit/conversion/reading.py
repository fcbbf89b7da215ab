"""Where models come from: PixArt's published weights, a workdir, or our own safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ec_dit import config as config_lib
from ec_dit.config import RunConfig, checks
from ec_dit.config.data import DataSpec
from ec_dit.conversion.model import Model, Say, make_system, native_table
from ec_dit.core import export, hub, name_map, processes, settings
from ec_dit.core.download import Fetched
from ec_dit.core.errors import UserError
from ec_dit.core.tree import named_leaves, num_params
from ec_dit.data.encoding import Encoding
from ec_dit.data.layout import ENCODING
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.encoders import frozen, text
from ec_dit.flow import ddpm
from ec_dit.flow.processes import FlowSpec
from ec_dit.models.published import pixart
from ec_dit.models.spec import DiTSpec, ModelSpec, TextSpec
from ec_dit.runs.workdir import Workdir
from ec_dit.sampling.settings import SampleSpec

CONFIG_KEY = "ec_dit"  # in the config.json beside our safetensors
TOKENIZER = "tokenizer.model"
_INDEX = "model_index.json"  # of a pipeline
_TEXT_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}  # by their papers
_SIZE_CONDITIONS = "adaln_single.emb.resolution_embedder."
_IMAGE_TOKENS_AT_ONCE = 64 * 256  # of a batch of samples
# Schedulers whose weights predict the noise of every level; not LCM's, which are distilled for a few steps.
_SCHEDULERS = tuple(
    f"{name}Scheduler"
    for name in (
        "DPMSolverMultistep DPMSolverSinglestep DDIM DDPM PNDM EulerDiscrete EulerAncestralDiscrete HeunDiscrete UniPCMultistep"
    ).split()
)


def from_pixart(path: str, mesh: Mapping[str, int], text_length: int | None, say: Say) -> Model:
    """PixArt-alpha or -Sigma from a folder of diffusers', or its name: of the transformer, or of a whole pipeline.

    Of a pipeline the text encoder and the autoencoder are noted, so that sampling finds them.

    Raises:
        UserError: naming file, tensor or key, for what is no such model.
    """
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
    pipeline = _pipeline_of(folder)
    export.check(folder)
    files, found = hub.TensorFiles(source), hub.config(folder)
    if found.get("use_additional_conditions") is None:  # files of older diffusers do not say
        found["use_additional_conditions"] = any(name.startswith(_SIZE_CONDITIONS) for name in files.tensors)
    with hub.interpreted(str(files.config_path)):
        spec = pixart.spec_of(found, str(files.config_path))
        told = found.get(CONFIG_KEY, {})  # by ourselves, of a model that is not PixArt's
        config = config_lib.from_tree({**config_lib.to_tree(_config_of(spec)), **told})
    known = _TEXT_TOKENS.get(pipeline.get("_class_name", ""))
    length = text_length or known or min(_TEXT_TOKENS.values())
    if not text_length and not known:
        say(f"text tokens: {length}, PixArt-alpha's; PixArt-Sigma was trained with 300 (--text_length=300)")
    places, encoders = _find_encoders(folder.parent, fetched, say) if pipeline else ({}, {})
    config = settings.changed(config, {"name": name, "text.length": length, **places})
    with hub.interpreted(str(files.config_path)):
        checks.validate(config)
    config = settings.changed(config, settings.prefixed("mesh", mesh))
    system = make_system(config, None)
    abstract = system.abstract_params()["dit"]
    say(f"reading {num_params(abstract):,} parameters from {folder}")
    table = pixart.entries([name for name, _ in named_leaves(abstract)], spec)
    params = name_map.load(files, table, abstract, pixart.IGNORED)
    where = str(Path(path).absolute() if fetched is None else fetched.name)
    origin = {"from": "pixart", "path": where, "encoders": encoders}
    return Model(system, {"dit": params}, origin=origin)


def _find_encoders(pipeline: Path, fetched: Fetched | None, say: Say) -> tuple[dict[str, str], dict[str, str]]:
    """Finds the text encoder and the autoencoder of a pipeline, and says what prompts and pictures would miss.

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
    encoder = pipeline / "text_encoder"
    if encoder.is_dir():
        places["text.path"] = frozen.joined([place("text_encoder")])
        try:
            text.tokenizer_files(encoder.resolve())
        except UserError as error:
            say(f"note: without a tokenizer no prompt can be drawn: {error}")
            return places, noted
        try:
            noted |= frozen.noted(texts=[place("text_encoder")]) if processes.is_first() else {}
        except UserError as error:
            say(f"note: without a text encoder no prompt can be drawn: {error}")
    return places, noted


def _pipeline_of(folder: Path) -> dict[str, Any]:
    """The model_index.json of the pipeline that a transformer's folder lies in; empty where there is none.

    Raises:
        UserError: for another kind of pipeline, or one trained with another noise.
    """
    index = folder.parent / _INDEX
    if not index.is_file():
        return {}
    pipeline = hub.read_json(index)
    hub.fields(pipeline, str(index), _class_name=str)
    hub.supported(pipeline, str(index), _class_name=tuple(_TEXT_TOKENS))
    _check_noise(folder.parent / "scheduler" / "scheduler_config.json")
    return pipeline


def _check_noise(path: Path) -> None:
    """The levels of noise that a pipeline was trained with have to be ours."""
    if path.is_file():
        betas = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "trained_betas": None}
        kind = {
            "prediction_type": "epsilon",
            "num_train_timesteps": ddpm.LEVELS,
            "rescale_betas_zero_snr": (False, None),
        }
        found = hub.read_json(path)
        hub.fields(found, str(path), _class_name=str)
        hub.supported(found, str(path), _class_name=_SCHEDULERS, **betas, **kind)


def _config_of(spec: DiTSpec) -> RunConfig:
    """The default recipe with PixArt's noise and sampling, around a structure."""
    batch_size = max(1, _IMAGE_TOKENS_AT_ONCE // spec.image_tokens)
    return RunConfig(
        model=settings.narrow(ModelSpec, spec),
        text=TextSpec(encoder="cached", width=spec.text_width, lower=True),
        data=DataSpec(space="latents", size=spec.latent_size, channels=spec.channels, normalize="none"),
        flow=FlowSpec(path="ddpm", prediction="epsilon", mask_ratio=0.0),
        sample=SampleSpec(sampler="dpmpp_2m", steps=20, guidance=4.5, spacing="linspace", batch_size=batch_size),
    )


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
