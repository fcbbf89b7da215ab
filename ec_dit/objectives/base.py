"""What an objective is: a loss of a model on a batch."""

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax

from ec_dit.data.batch import Batch, Text
from ec_dit.flow.process import Process
from ec_dit.flow.processes import FlowSpec, make_process
from ec_dit.models.text_to_image import TextToImage
from ec_dit.nn.moe import RouterStats
from ec_dit.nn.routing import losses
from ec_dit.nn.routing.spec import RoutingSpec


@dataclass(frozen=True, kw_only=True)
class Objective(FlowSpec, abc.ABC):
    """A loss, with all settings that it needs; parameters come in with the models.

    Fields that a subclass adds are filled from the `objective` section, by their names.

    Attributes:
        needs_reference: whether it compares the model with the one that training started from.
        needs_pairs: whether it takes two pictures of each caption.
        aux_weight: of the load-balancing loss.
        group_times: whether the times of a batch are sorted, so that routing groups hold images of similar times.
        routing: of the sparse blocks.
        null_text: the empty caption, leaves without B.
    """

    needs_reference: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False

    aux_weight: float
    group_times: Literal["mixed", "sorted"] = "mixed"
    routing: RoutingSpec
    null_text: Text

    @property
    def process(self) -> Process:
        """The way from data to noise."""
        return make_process(self)

    def router_loss(self, stats: RouterStats | None) -> jax.Array | float:
        """Sums the weighted losses of all routers."""
        if stats is None:
            return 0.0
        total = self.aux_weight * stats.aux_loss.sum()
        for name, weight in losses.weights(self.routing).items():
            total += weight * stats.losses[name].sum()
        return total

    @abc.abstractmethod
    def loss(
        self, model: TextToImage, frozen: TextToImage | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the mean loss of a batch, and scalars or vectors to report.

        Args:
            frozen: the model that training started from, which no gradient reaches; None where `needs_reference` is False.
            key: of everything random.

        Returns:
            (what is minimised, parts): parts has 'loss', for people, and perhaps 'level_sum' and 'level_count' (LEVELS,), whose
            ratio is shown.
        """

    @abc.abstractmethod
    def validation_loss(
        self, model: TextToImage, frozen: TextToImage | None, batch: Batch, times: jax.Array | None = None
    ) -> jax.Array:
        """Computes the loss of each image (B,), which depends on its position_B in the set alone, nothing being random.

        Args:
            times: the image at position p is taken at times[p mod their number]; None: all times are covered evenly.
        """
