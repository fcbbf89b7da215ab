"""What an objective is: a loss of a model on a batch."""

from typing import Protocol

import jax

from ec_dit.models.text_to_image import Batch, TextToImage


class Objective(Protocol):
    """A loss, with all settings that it needs; parameters come in with the model."""

    def loss(self, model: TextToImage, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the mean loss of a batch, and scalars or vectors to report."""
        ...

    def validation_loss(self, model: TextToImage, batch: Batch, position_B: jax.Array) -> jax.Array:
        """Computes the loss of each image (B,), which depends on its place in the set alone."""
        ...
