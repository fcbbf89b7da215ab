"""Prompts to pictures: a system with what reads its prompts and what turns its latents into pictures."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from ec_dit.config import specs
from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.data.batch import Text
from ec_dit.encoders import frozen
from ec_dit.encoders.autoencoder import Autoencoder, Identity
from ec_dit.sampling.generator import Generator
from ec_dit.sampling.settings import SampleSettings
from ec_dit.system import layout
from ec_dit.system.captions import Captions
from ec_dit.system.model import System

Encode = Callable[[Sequence[str]], Text]


class Painter:
    """Makes generators of pictures.

    Args:
        encode: captions as the model takes them; None: read by `Captions`, which loads encoders where the model needs them.
        autoencoder: of the latents; None: loaded here.

    Raises:
        UserError: the model needs published encoders or an autoencoder that the config does not name, or that do not fit.
    """

    def __init__(self, system: System, encode: Encode | None = None, autoencoder: Autoencoder | Identity | None = None):
        self._system = system
        self.autoencoder = autoencoder or load_autoencoder(system)  # what is missing shows before large encoders load
        self.encode = encode or Captions(system)

    def generator(self, settings: SampleSettings | None = None, shape: specs.Shape | None = None) -> Generator:
        """Makes what draws latents of one shape, and pictures of them.

        Args:
            settings: of the shape; None: the config's.
            shape: of the latents; None: the square of the config.

        Raises:
            UserError: the model cannot draw that shape.
        """
        system = self._system
        known = system.encoding is not None or system.tokenizer is not None
        null_text = system.null_text() if known else jax.tree.map(lambda a: a[0], self.encode([""]))
        settings = settings or specs.sample_settings(system.config, shape)
        shape_YXZ = (*(shape or specs.square(system.config)), system.config.data.channels)
        return Generator(
            system.graphdef,
            settings,
            system.mesh,
            shape_YXZ,
            self.encode,
            self.draw,
            null_text,
            system.compiler_options,
            layout.as_computed(system),
        )

    def draw(self, latent_BYXZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decodes latents as the model has them.

        Returns:
            The pictures, uint8 (B, rows, columns, 3), and finite_B: False where numbers are not, and the picture is plain grey.
        """
        mean_Z, std_Z = self._system.latent_scale
        with np.errstate(over="ignore", invalid="ignore"):  # of a model that diverged, which is counted
            latent_BYXZ = np.asarray(latent_BYXZ, np.float32) * std_Z + mean_Z
            image_BYXZ = self.autoencoder.decode(latent_BYXZ)
        finite_B = np.isfinite(image_BYXZ).all((1, 2, 3))
        return images.to_uint8(np.where(finite_B[:, None, None, None], image_BYXZ, 0)), finite_B


def autoencoder_path(system: System) -> str:
    """Gives where the autoencoder of the latents is looked for; '' where nothing is known of it."""
    return system.config.data.autoencoder or (system.encoding.autoencoder_path if system.encoding else "")


def load_autoencoder(system: System) -> Autoencoder | Identity:
    """Loads what turns latents into images: the published autoencoder; nothing for pixels.

    Raises:
        UserError: if the config names none, or its latents are not those of the model.
    """
    d = system.config.data
    if d.space == "pixels":
        return Identity(d.channels)
    path = autoencoder_path(system)
    if not path:
        raise UserError(
            "this model denoises latents, and pictures need their autoencoder: name its folder with "
            "--config.data.autoencoder."
        )
    if system.encoding and (wrong := frozen.autoencoder_difference(system.encoding.facts, path)):
        raise UserError(f"the latents that this model was trained on were {wrong} (--config.data.autoencoder).")
    frozen.check_noted(system.noted, path)
    autoencoder = Autoencoder.load(path, system.mesh)
    if autoencoder.channels != d.channels:
        raise UserError(
            f"{path} has latents of {autoencoder.channels} channels, but this model was made for {d.channels} (config key "
            f"data.channels)."
        )
    return autoencoder
