"""What a process from data to noise is, and the sign convention of the whole project: t = 0 is data, t = 1 is noise.

A process knows no network: it draws times, mixes data with noise, says what a network's output should be, and where a sampler
stops on its way back.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Prediction = Literal["velocity", "data", "epsilon"]  # what a network's output means


@dataclass(frozen=True)
class Grid:
    """Where a sampler stops on its way; the last stop is the data themselves.

    Attributes:
        times: (steps + 1,) t, from noise to data.
        signal, noise: (steps + 1,) float64, alpha and sigma of x = alpha x_0 + sigma eps at those times.
    """

    times: np.ndarray
    signal: np.ndarray
    noise: np.ndarray


class Process(Protocol):
    """A way from data to noise.

    Attributes:
        predictions: what a network may predict in it.
        is_ode: whether dx/dt is known, so that integrators of it may sample.
        max_steps: of a sampler; None: any number.
    """

    predictions: ClassVar[tuple[Prediction, ...]]
    is_ode: ClassVar[bool]
    max_steps: ClassVar[int | None]

    def draw_times(self, key: jax.Array, batch: int) -> jax.Array:
        """Draws the times (B,) of a training batch."""
        ...

    def nearest_time(self, t_B: jax.Array) -> jax.Array:
        """Moves times from 0 to 1 to those that the process has."""
        ...

    def diffuse(self, data: jax.Array, noise: jax.Array, t_B: jax.Array) -> jax.Array:
        """Mixes x_t of every example; data and noise share one shape that starts with B."""
        ...

    def target(
        self, prediction: Prediction, x_t: jax.Array, data: jax.Array, noise: jax.Array, t_B: jax.Array
    ) -> jax.Array:
        """Gives what the loss compares with; arrays as `diffuse` has them."""
        ...

    def compared(self, prediction: Prediction, x_t: jax.Array, out: jax.Array, t_B: jax.Array) -> jax.Array:
        """Gives what the loss compares: the network's output in terms of the target."""
        ...

    def grid(self, steps: int) -> Grid:
        """Lays the stops of a sampler of so many steps."""
        ...


def even_times(position_B: jax.Array) -> jax.Array:
    """Gives times in [0, 1) for positions of a set: every stretch of consecutive positions covers all noise levels evenly.

    Multiples of the golden ratio modulo 1, in whole numbers of 32 bits: a product in float32 would lose the fraction of
    those of large positions.
    """
    word_B = position_B.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(1 << 31)
    return (word_B >> 8).astype(jnp.float32) / (1 << 24)


def data_from(
    prediction: Prediction, x: jax.Array, out: jax.Array, alpha: jax.Array | float, sigma: jax.Array | float
) -> jax.Array:
    """Gives the clean data that a prediction at x = alpha x_0 + sigma eps means; a velocity is that of rectified flow."""
    if prediction == "data":
        return out
    return x - sigma * out if prediction == "velocity" else (x - sigma * out) / alpha
