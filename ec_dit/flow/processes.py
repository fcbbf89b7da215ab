"""The processes by name, and the `flow` section of a config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ec_dit.core.settings import key, narrow, only
from ec_dit.flow.ddpm import Ddpm
from ec_dit.flow.process import Prediction, Process
from ec_dit.flow.rectified import RectifiedFlow

PROCESSES: Mapping[str, type[Process]] = {"rectified": RectifiedFlow, "ddpm": Ddpm}
_RECTIFIED = only("flow.path", "rectified")


@dataclass(frozen=True)
class FlowSpec:
    """The `flow` section: how data become noise in training, and what the network learns of it."""

    path: str = key(
        "rectified",
        "rectified: straight lines from data to noise (the paper's); ddpm: 1000 levels of noise (PixArt)",
        choices=lambda: tuple(PROCESSES),
        params="meaning",
    )
    prediction: Prediction = key(
        "velocity",
        "velocity (the paper's); data: the clean image, a velocity in the loss; ddpm: epsilon",
        params="meaning",
    )
    time_mean: float = key(
        0.0, "t = sigmoid(u), u ~ N(mean, std); 0 = data, 1 = noise. ddpm draws levels evenly", use=_RECTIFIED
    )
    time_std: float = key(1.0, "of u", above=0, use=_RECTIFIED)
    mask_ratio: float = key(0.5, "share of image tokens dropped in training", at_least=0, below=1)
    caption_dropout: float = key(
        0.1, "share of captions replaced by the empty one, for classifier-free guidance", at_least=0, below=1
    )


def make_process(spec: FlowSpec, *more: Any) -> Process:
    """Makes the process of a flow, with those fields of the section, and of `more` dataclasses, that it has."""
    return narrow(PROCESSES[spec.path], spec, *more)
