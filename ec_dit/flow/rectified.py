"""Rectified flow, the paper's process: straight lines from data to noise.

x_t = (1 - t) x_0 + t x_1 with x_1 ~ N(0, I); the target velocity is dx/dt = x_1 - x_0.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ec_dit.flow.process import Grid, Prediction

LOSS_FLOOR = 0.05


@dataclass(frozen=True)
class RectifiedFlow:
    """Implements `process.Process`.

    Attributes:
        time_mean, time_std: of the logit-normal times of training.
        time_shift: of a sampler's stops; > 1 spends more steps near noise: t -> shift t / (1 + (shift - 1) t).
        final_time: where, before the shift, the last step to data begins; 0: all steps are alike.
    """

    time_mean: float = 0.0
    time_std: float = 1.0
    time_shift: float = 1.0
    final_time: float = 0.0

    predictions: ClassVar[tuple[Prediction, ...]] = ("velocity", "data")
    is_ode: ClassVar[bool] = True
    max_steps: ClassVar[int | None] = None

    def draw_times(self, key: jax.Array, batch: int) -> jax.Array:
        """Draws t = sigmoid(u), u ~ N(mean, std), as SD3 does (2403.03206, section 3.1)."""
        return jax.nn.sigmoid(self.time_mean + self.time_std * jax.random.normal(key, (batch,)))

    def nearest_time(self, t_B: jax.Array) -> jax.Array:
        """Changes nothing: there is every time."""
        return t_B

    def diffuse(self, data: jax.Array, noise: jax.Array, t_B: jax.Array) -> jax.Array:
        """Mixes x_t on the straight line."""
        t = t_B.reshape(-1, *(1,) * (data.ndim - 1))
        return (1 - t) * data + t * noise

    def target(
        self, prediction: Prediction, x_t: jax.Array, data: jax.Array, noise: jax.Array, t_B: jax.Array
    ) -> jax.Array:
        """Gives a velocity, whatever the network predicts."""
        return noise - data if prediction == "velocity" else velocity_from_data(x_t, data, t_B, LOSS_FLOOR)

    def compared(self, prediction: Prediction, x_t: jax.Array, out: jax.Array, t_B: jax.Array) -> jax.Array:
        """Gives the velocity that the output means."""
        return out if prediction == "velocity" else velocity_from_data(x_t, out, t_B, LOSS_FLOOR)

    def grid(self, steps: int) -> Grid:
        """Lays times from 1 to 0."""
        t = np.linspace(1.0, 0.0, steps + 1)
        if self.final_time:
            t = np.append(np.linspace(1.0, self.final_time, steps), 0.0)
        t = self.time_shift * t / (1 + (self.time_shift - 1) * t)
        return Grid(t.astype(np.float32), 1 - t, t)


def velocity_from_data(x_t: jax.Array, data: jax.Array, t_B: jax.Array, floor: float) -> jax.Array:
    """Gives the velocity that leads from x_t to `data`: (x_t - data) / t.

    A model that predicts data instead of velocity need not carry the noise through its width (2511.13720), which serves
    patches with more numbers than the width.

    Args:
        floor: smallest t to divide by. Training sets LOSS_FLOOR, below which the division would only amplify errors;
            a sampler 0, so that its last step lands on the data.
    """
    t = jnp.maximum(t_B, floor).reshape(-1, *(1,) * (data.ndim - 1))
    return (x_t - data) / t
