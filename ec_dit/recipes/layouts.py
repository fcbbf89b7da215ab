"""Published models that are read and written in diffusers' layout, a row each: structure, tensors and the recipe around it."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ec_dit.config import RunConfig
from ec_dit.config.data import DataSpec
from ec_dit.core import settings
from ec_dit.core.name_map import Table
from ec_dit.data.captions import CAPTION
from ec_dit.flow.processes import FlowSpec
from ec_dit.models.published import nucleus, pixart, sd3
from ec_dit.models.sparse_spec import MoESpec
from ec_dit.models.spec import BlockKind, DiTSpec, ModelSpec
from ec_dit.models.text_spec import TextSpec
from ec_dit.recipes import schedulers
from ec_dit.sampling.settings import SampleSpec

Scheduler = tuple[Mapping[str, Any], str]  # what a scheduler_config.json holds, and where it is
_IMAGE_TOKENS_AT_ONCE = 64 * 256  # of a batch of samples
# What Nucleus-Image's pipeline gives its text encoder in place of a prompt.
_NUCLEUS_CHAT = (
    "<|im_start|>system\nYou are an image generation assistant. Follow the user's prompt literally. Pay careful attention to "
    "spatial layout: objects described as on the left must appear on the left, on the right on the right. Match exact object "
    f"counts and assign colors to the correct objects.<|im_end|>\n<|im_start|>user\n{CAPTION}<|im_end|>\n<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class Layout:
    """A kind of published model.

    Attributes:
        title: its name.
        block: of models that are written so.
        read: (config.json, names of the tensors, where) -> structure and routing.
        write: the inverse, without names.
        entries: where our parameters stand.
        unread: tensors beside them, which are written and not read.
        ignored: starts of the names of further tensors that are not read.
        pipelines: class of a pipeline -> tokens of a caption.
        recipe: (structure, routing, the pipeline's scheduler) -> what it is trained and sampled with.
    """

    title: str
    block: BlockKind
    read: Callable[[Mapping[str, Any], Collection[str], str], tuple[DiTSpec, MoESpec]]
    write: Callable[[DiTSpec, MoESpec], dict[str, Any]]
    entries: Callable[[Iterable[str], DiTSpec], Table]
    unread: Callable[[DiTSpec], Iterator[tuple[str, np.ndarray]]]
    ignored: Collection[str]
    pipelines: Mapping[str, int]
    recipe: Callable[[DiTSpec, MoESpec, Scheduler | None], RunConfig]


def _around(
    spec: DiTSpec, moe: MoESpec, text: Mapping[str, Any], flow: Mapping[str, Any], sample: Mapping[str, Any]
) -> RunConfig:
    """The default recipe with other text, noise and sampling, around a structure."""
    return RunConfig(
        model=settings.narrow(ModelSpec, spec),
        moe=moe,
        text=TextSpec(encoder="cached", width=spec.text_width, pooled_width=spec.pooled_width, **text),
        data=DataSpec(space="latents", size=spec.latent_size, channels=spec.channels, normalize="none"),
        flow=FlowSpec(mask_ratio=0.0, **flow),
        sample=SampleSpec(batch_size=max(1, _IMAGE_TOKENS_AT_ONCE // spec.image_tokens), **sample),
    )


def _pixart(spec: DiTSpec, moe: MoESpec, scheduler: Scheduler | None) -> RunConfig:
    if scheduler is not None:
        schedulers.check_ddpm(*scheduler)
    sample = {"sampler": "dpmpp_2m", "steps": 20, "guidance": 4.5, "spacing": "linspace"}
    return _around(spec, moe, {"lower": True}, {"path": "ddpm", "prediction": "epsilon"}, sample)


def _sd3(spec: DiTSpec, moe: MoESpec, scheduler: Scheduler | None) -> RunConfig:
    found, where = scheduler or ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "SD3's scheduler")
    times = schedulers.flow_match(found, where, spec.image_tokens, sigmas_given=False)
    return _around(spec, moe, {"padding": "read"}, {}, {"sampler": "euler", "steps": 28, "guidance": 7.0, **times})


def _nucleus(spec: DiTSpec, moe: MoESpec, scheduler: Scheduler | None) -> RunConfig:
    found, where = scheduler or ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "Nucleus-Image's scheduler")
    times = schedulers.flow_match(found, where, spec.image_tokens, sigmas_given=True)
    sample = {"sampler": "euler", "steps": 50, "guidance": 4.0, "guidance_norm": "token", "group_size": "image"}
    return _around(spec, moe, {"template": _NUCLEUS_CHAT, "layer": 7}, {}, {**sample, **times})


LAYOUTS: dict[str, Layout] = {
    "pixart": Layout(
        "PixArt",
        "cross_attention",
        pixart.read,
        pixart.write,
        pixart.entries,
        lambda _: iter(()),
        pixart.IGNORED,
        {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300},  # by their papers
        _pixart,
    ),
    "nucleus": Layout(
        "Nucleus-Image",
        "joint_kv",
        lambda found, _, where: nucleus.read(found, where),
        nucleus.write,
        nucleus.entries,
        nucleus.unread,
        (),
        {"NucleusMoEImagePipeline": 256},
        _nucleus,
    ),
    "sd3": Layout(
        "Stable Diffusion 3",
        "mmdit",
        lambda found, _, where: sd3.read(found, where),
        sd3.write,
        sd3.entries,
        sd3.unread,
        (),
        {"StableDiffusion3Pipeline": 77 + 256},  # CLIP's, and its pipeline's of T5
        _sd3,
    ),
}


PUBLISHED: dict[str, tuple[str, Mapping[str, Any]]] = {"nucleus_image": ("nucleus", nucleus.IMAGE)}
PUBLISHED |= {"sd3_medium": ("sd3", sd3.MEDIUM)}  # name -> its layout, its config.json


def recipe_of(name: str) -> RunConfig:
    """Gives the recipe of a published model, by its name in PUBLISHED."""
    kind, found = PUBLISHED[name]
    layout = LAYOUTS[kind]
    recipe = layout.recipe(*layout.read(found, (), f"{name}'s config.json"), None)
    return settings.changed(recipe, {"name": name, "text.length": min(layout.pipelines.values())})
