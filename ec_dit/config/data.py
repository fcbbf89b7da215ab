"""The `data` section of a config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ec_dit.core.settings import SIZE, key, only, unless
from ec_dit.preparation import registry

SYNTHETIC = "synthetic"
_LATENTS, _PREPARED = only("data.space", "latents"), unless("data.source", SYNTHETIC)


@dataclass(frozen=True)
class DataSpec:
    """The `data` section: what is trained on, and how it enters."""

    source: str = key(
        "",
        "what data.path must hold, '' = whatever it does; synthetic: random latents, to measure speed",
        choices=lambda: (*registry.KINDS, SYNTHETIC, ""),
    )
    path: str = key(
        "",
        "prepared data set (python -m ec_dit.prepare); made by itself for shapes, emoji and icons where it is missing",
        use=_PREPARED,
        resumable=True,
    )
    space: Literal["latents", "pixels"] = key(
        "latents", "what the model denoises: pixels, or latents of an autoencoder", params="shape"
    )
    size: int = key(
        32,
        "rows and columns of what the model denoises: pixels, or latent pixels (image / 8)",
        at_least=1,
        at_most=SIZE,
    )
    channels: int = key(4, "Z: 3 for pixels, 4 or 16 for latents", at_least=1, at_most=SIZE, params="shape")
    autoencoder: str = key(
        "",
        "folder of the published autoencoder of the latents: what sampling draws pictures with",
        use=_LATENTS,
        resumable=True,
    )
    normalize: Literal["channel", "none"] = key(
        "channel",
        "latents: mean 0 and deviation 1 of each channel, as measured over the data set",
        use=_LATENTS,
        params="meaning",
    )
    posterior: Literal["sample", "mean"] = key(
        "sample", "latents: drawn anew each time from what the autoencoder gives, or its mean", use=_LATENTS
    )
    crop: Literal["center", "random"] = key("center", "of pixels", use=only("data.space", "pixels"))
    flip: bool = key(
        True, "mirror images whose caption allows it; of latents, where the mirror image's are stored", use=_PREPARED
    )
    workers: int = key(
        0,
        "loader processes; 0 loads in the trainer's own",
        at_least=0,
        at_most=1024,
        use=_PREPARED,
        resumable=True,
    )
    options: Mapping[str, Any] = key({}, "of the source, where the trainer prepares the data itself")
