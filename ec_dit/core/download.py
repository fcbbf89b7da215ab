"""Published weights by name: OWNER/NAME[/FOLDER][@REVISION] at Hugging Face, fetched into huggingface_hub's cache.

Where a folder is asked for, a name does as well; a folder that is there wins over a name. Only what is read here is fetched:
config.json, safetensors files, tokenizers and image processors, never pickles. A revision that was fetched goes by its commit
from then on, so that what was made with it names the very files.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ec_dit.core.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

STEMS = ("model", "diffusion_pytorch_model")  # of the weight files of transformers and of diffusers
WEIGHTS = tuple(f"{stem}{end}" for stem in STEMS for end in (".safetensors", ".safetensors.index.json"))
_SHARDS = tuple(f"{stem}-*-of-*.safetensors" for stem in STEMS)
TOKENIZERS = (
    *("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
)
PROCESSOR = "preprocessor_config.json"  # how pictures become what a vision model reads
_OURS = ("digests.json", "tokenizer.model", "encoding.safetensors")  # beside models that ec_dit.convert wrote
_FOLDER = ("config.json", *WEIGHTS, *_SHARDS, *TOKENIZERS, PROCESSOR, *_OURS)
_TEXTS = ("", "_2", "_3")  # ends of the names of a pipeline's text encoders and tokenizers
_PIPELINE = ("transformer", "vae", *(f"text_encoder{end}" for end in _TEXTS))
_WORD = r"[A-Za-z0-9_][\w.-]*"
_NAME = re.compile(rf"(?P<repository>{_WORD}/{_WORD})(?P<inside>(/{_WORD})*)(@(?P<revision>[\w./-]+))?", re.ASCII)
_INSTALL = "pip install 'ec-dit[hub]'"


@dataclass(frozen=True)
class Name:
    """What a name stands for.

    Attributes:
        repository: OWNER/NAME.
        inside: a folder in it, or a file of weights; '' for all of it.
        revision: a branch, a tag or a commit; '' for the newest.
    """

    repository: str
    inside: str = ""
    revision: str = ""

    def __str__(self) -> str:
        inside, revision = self.inside and f"/{self.inside}", self.revision and f"@{self.revision}"
        return f"{self.repository}{inside}{revision}"

    @classmethod
    def parse(cls, text: str) -> "Name | None":
        """Reads a name; None for anything else, and for a file or folder that is there."""
        found = _NAME.fullmatch(text)
        if found is None or Path(text).exists():
            return None
        return cls(found["repository"], found["inside"].strip("/"), found["revision"] or "")


@dataclass(frozen=True)
class Fetched:
    """What a name led to.

    Attributes:
        name: with the commit as its revision.
        path: of the folder or file in the cache.
    """

    name: Name
    path: Path

    def part(self, folder: str) -> str:
        """Gives the name of a folder of the pipeline that it is, or is the transformer of."""
        return str(replace(self.name, inside=str(_pipeline_of(PurePosixPath(self.name.inside)) / folder)))


@functools.cache  # one commit for as long as the process lives
def fetch(name: Name, *, pipeline: bool = False) -> Fetched:
    """Brings what a name stands for into the cache, unless it is there.

    Args:
        pipeline: with the transformer, text encoder, tokenizer, autoencoder and scheduler of a pipeline.

    Raises:
        UserError: without huggingface_hub, network or permission; for what is not there, or holds no weights as they are read
            here.
    """
    try:
        from huggingface_hub import HfApi, constants, errors, snapshot_download
    except ImportError:
        raise UserError(
            f"there is no file or folder {name}; to download what has that name at Hugging Face, run: {_INSTALL}"
        ) from None
    patterns = list(_patterns(name.inside, pipeline=pipeline))
    try:
        root = Path(snapshot_download(name.repository, revision=name.revision or None, allow_patterns=patterns))
    except (OSError, ValueError, errors.HTTPError) as error:
        if getattr(error, "errno", None) is not None:  # of a disk
            raise
        raise UserError(_told(name, error, constants.ENDPOINT, str(constants.HF_HUB_CACHE))) from None
    fetched = Fetched(replace(name, revision=root.name), root / name.inside)
    folder = fetched.path if fetched.path.is_dir() else fetched.path.parent
    if not any(any(folder.glob(pattern)) for pattern in _weights(fetched, pipeline=pipeline)):
        raise UserError(_lacking(fetched, HfApi()))
    return fetched


def _weights(fetched: Fetched, *, pipeline: bool) -> Iterator[str]:
    """Patterns of which one at least should lead somewhere."""
    if fetched.path.suffix == ".safetensors":
        yield fetched.path.name
        return
    yield from WEIGHTS
    if pipeline:
        yield from (f"transformer/{weights}" for weights in WEIGHTS)


def _patterns(inside: str, *, pipeline: bool) -> Iterator[str]:
    """Which files of a repository are fetched, as patterns of their paths."""
    place = PurePosixPath(inside)
    if place.suffix == ".safetensors":
        yield inside
        place = place.parent
    folders = {place: _FOLDER}
    if place.name.startswith("text_encoder"):  # in a pipeline its tokenizer lies beside it
        folders[place.with_name(place.name.replace("text_encoder", "tokenizer", 1))] = TOKENIZERS
        folders[place.with_name("processor")] = TOKENIZERS  # of models that see pictures too
    if pipeline:
        whole = _pipeline_of(place)
        yield from (str(whole / name) for name in ("model_index.json", "scheduler/scheduler_config.json"))
        folders |= {whole / part: _FOLDER for part in _PIPELINE}
        folders |= {whole / part: TOKENIZERS for part in (*(f"tokenizer{end}" for end in _TEXTS), "processor")}
    for folder, names in folders.items():
        yield from (str(folder / name) for name in names)


def _pipeline_of(place: PurePosixPath) -> PurePosixPath:
    """The folder of a pipeline, from itself or from its transformer's or a file in that."""
    place = place.parent if place.suffix == ".safetensors" else place
    return place.parent if place.name == "transformer" else place


def _told(name: Name, error: Exception, endpoint: str, cache: str) -> str:
    """What to do about what huggingface_hub raised."""
    from huggingface_hub import errors

    missing = f"there is no file or folder {name}"
    repository = name.repository
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{missing}, and {repository} at {endpoint} is gated: accept its terms at {endpoint}/{repository}, then log in with "
            "hf auth login, or set HF_TOKEN."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{missing}, and at {endpoint} no repository {repository} that you may read: check the spelling; for a private one "
            "log in with hf auth login, or set HF_TOKEN."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} at {endpoint} has no revision {name.revision!r}: give a branch, a tag or a commit after the @."
    if isinstance(error, errors.HFValidationError):
        return f"{missing}, and it is no name of a repository: {error}"
    revision = f" --revision {name.revision}" if name.revision else ""
    instead = f"or download it elsewhere (hf download {repository}{revision} --local-dir FOLDER) and give the folder."
    if _is_offline():
        return (
            f"{missing}, and with HF_HUB_OFFLINE only what the cache {cache} holds is used, which lacks {name} or a part of it: "
            f"unset HF_HUB_OFFLINE once, {instead}"
        )
    return (
        f"{missing}, and what has that name could not be downloaded from {endpoint} ({_cause(error)}): connect to the network, "
        f"or set HF_ENDPOINT to a mirror, {instead}"
    )


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _cause(error: BaseException) -> str:
    """The first reason that an exception gives, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _lacking(fetched: Fetched, api: "HfApi") -> str:
    """What a repository has instead of weights as they are read here."""
    from huggingface_hub import errors

    name, inside = fetched.name, fetched.name.inside
    where = f"{replace(name, inside='')} at Hugging Face"
    try:
        files = [PurePosixPath(path) for path in api.list_repo_files(name.repository, revision=name.revision)]
    except (OSError, errors.HTTPError):
        files = []
    place = PurePosixPath(inside)
    here = sorted(path.name for path in files if path.parent == place)
    weights = [path for path in here if path.endswith(".safetensors")]
    pickles = [path for path in here if path.endswith((".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5"))]
    below = sorted(
        {str(path.parent) for path in files if path.suffix == ".safetensors" and place in path.parent.parents}
    )
    if weights:
        return f"{where} has weights under other names; give the file's own: {inside and inside + '/'}{', '.join(weights[:4])}"
    if below:
        return f"{name} holds no weights itself; did you mean a folder in it: {', '.join(below)}?"
    if pickles:
        return (
            f"{name} has only {pickles[0]}: weights are read from safetensors, since a pickle may run any program. Look for a "
            f"revision that has them (NAME@REVISION), or load them once with transformers or diffusers and write them with "
            "save_pretrained(FOLDER)."
        )
    return f"{where} has no weights{f' in {inside}' if inside else ''}: check the name."
