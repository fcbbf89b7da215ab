"""How pictures are sampled: the `sample` section of a config, and what is made of it for pictures of one shape."""

from dataclasses import dataclass
from typing import Literal

from ec_dit.core.settings import COUNT, SIZE, key, only, unless
from ec_dit.flow.ddpm import Spacing
from ec_dit.flow.process import Grid, Prediction, Process
from ec_dit.nn.routing.spec import IMAGE, CombineKind, RoutingSpec
from ec_dit.sampling.guidance import GuidanceNorm
from ec_dit.sampling.samplers import SAMPLERS, Sampler, count_evaluations

Layout = Literal["auto", "copied", "fsdp", "mesh"]
PAIR = "pair"  # the size of a routing group: conditional and unconditional tokens of one image
_SPARSE = unless("moe.routing", "dense")


def _group_size(value: str) -> str | None:
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 12 else 0
    return None if value in (IMAGE, PAIR) or 1 <= number <= COUNT else f"give a number of tokens, or {IMAGE} or {PAIR}"


def _interval(value: tuple[float, ...]) -> str | None:
    good = len(value) == 2 and all(isinstance(t, int | float) and not isinstance(t, bool) for t in value)
    return None if good and 0 <= value[0] < value[1] <= 1 else "give two times, 0 <= low < high <= 1"


@dataclass(frozen=True)
class SampleSpec:
    """The `sample` section."""

    steps: int = key(50, "of the sampler", at_least=1, at_most=SIZE, resumable=True)
    sampler: str = key(
        "heun",
        "rectified flow: any; ddpm: ddim (on straight lines the same as euler), dpmpp_2m",
        choices=lambda: tuple(SAMPLERS),
        resumable=True,
    )
    spacing: Spacing = key(
        "linspace", "which of ddpm's levels sampling visits", use=only("flow.path", "ddpm"), resumable=True
    )
    guidance: float = key(3.0, "classifier-free guidance scale; 1 = off", at_least=0, resumable=True)
    guidance_interval: tuple[float, float] = key(
        (0.0, 1.0), "times t at which guidance acts", check=_interval, resumable=True
    )
    time_shift: float = key(
        1.0,
        "> 1 spends more steps near noise (SD3, eq. 23)",
        above=0,
        use=only("flow.path", "rectified"),
        resumable=True,
    )
    time_shift_rise: float = key(
        0.0,
        "by how much the logarithm of time_shift grows with each token that an image has more than the config's (schedulers "
        "with a dynamic shift)",
        at_least=-1,
        at_most=1,
        use=only("flow.path", "rectified"),
        resumable=True,
    )
    final_time: float = key(
        0.0,
        "where, before the shift, the last step to data begins (SD3's pipeline: 0.003); 0 = all steps are alike",
        at_least=0,
        below=1,
        use=only("flow.path", "rectified"),
        resumable=True,
    )
    guidance_norm: GuidanceNorm = key(
        "none",
        "token: the guided prediction of every token gets the length of the conditional one (Nucleus-Image)",
        resumable=True,
    )
    group_size: str = key(
        PAIR,
        "pair: conditional and unconditional tokens of one image; image: each by itself; or a number",
        check=_group_size,
        use=_SPARSE,
        resumable=True,
    )
    capacity: Literal["fixed", "matched"] = key(
        "fixed",
        "of experts: fixed, as many tokens of every image; or matched to training (moe.record): those that score above its "
        "running thresholds, as far as there is room",
        use=only("moe.routing", "expert_choice"),
        resumable=True,
    )
    room: float = key(
        2.0,
        "what an expert may take of an image over its even share, where thresholds decide how much; all of them together take no "
        "more than the even shares",
        at_least=1,
        at_most=SIZE,
        use=_SPARSE,
        resumable=True,
    )
    capacity_factor: float = key(0.0, "0 = as in training", at_least=0, at_most=SIZE, use=_SPARSE, resumable=True)
    layout: Layout = key(
        "auto",
        "of the model on several devices: copied = dense weights on each, experts in as many parts as pays; fsdp = all weights "
        "in parts; mesh = as in training; auto = copied where memory allows, else fsdp",
        resumable=True,
    )
    combine: CombineKind | Literal["auto"] = key(
        "auto",
        "how outputs of experts return to tokens, as moe.combine; auto = one_hot on TPUs, else as in training",
        use=_SPARSE,
        resumable=True,
    )
    chunks: int = key(
        4,
        "as moe.chunks",
        at_least=1,
        at_most=64,
        use=_SPARSE,
        resumable=True,
    )
    batch_size: int = key(
        64,
        "images sampled at once; fixed, padded, so that it cannot change an image",
        at_least=1,
        at_most=100_000,
        resumable=True,
    )


@dataclass(frozen=True, kw_only=True)
class SampleSettings(SampleSpec):
    """How images of one shape are made.

    Attributes:
        process: that the network was trained in.
        prediction: what its output means.
        routing: for one image alone.
        paired_routing: for it and its unconditional copy.
    """

    process: Process
    prediction: Prediction
    routing: RoutingSpec
    paired_routing: RoutingSpec

    @property
    def integrator(self) -> Sampler:
        """The sampler itself."""
        return SAMPLERS[self.sampler]

    @property
    def grid(self) -> Grid:
        """The times of the steps."""
        return self.process.grid(self.steps)

    @property
    def evaluations(self) -> int:
        """NFE per image; a guided evaluation counts twice."""
        return count_evaluations(self.grid.times, self.integrator, self.guidance, self.guidance_interval)
