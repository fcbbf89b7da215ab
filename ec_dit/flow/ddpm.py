"""DDPM (2006.11239) with 1000 levels of noise and linear betas, as PixArt-alpha was trained.

Level n = 0 ... 999 stands for t = n / 1000, so that 0 is data (almost: level 0 has 1 % noise) and 1 is noise, as everywhere.
x_n = sqrt(abar_n) x_0 + sqrt(1 - abar_n) eps, and the network predicts eps.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ec_dit.flow.process import Grid, Prediction

LEVELS = 1000
Spacing = Literal["linspace", "leading", "trailing"]


def signal_shares() -> np.ndarray:
    """abar_n of every level, float64: the product of 1 - beta, with betas from 1e-4 to 0.02."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, LEVELS))


@dataclass(frozen=True)
class Ddpm:
    """Implements `process.Process`; the network predicts the noise.

    Attributes:
        spacing: which levels a sampler visits, see `levels_to_visit`.
    """

    spacing: Spacing = "linspace"

    predictions: ClassVar[tuple[Prediction, ...]] = ("epsilon",)
    is_ode: ClassVar[bool] = False
    max_steps: ClassVar[int | None] = LEVELS

    def draw_times(self, key: jax.Array, batch: int) -> jax.Array:
        """Draws every level as likely as any."""
        return jax.random.randint(key, (batch,), 0, LEVELS) / LEVELS

    def nearest_time(self, t_B: jax.Array) -> jax.Array:
        """Gives the time of a level for every t from 0 to 1."""
        return jnp.clip(jnp.floor(LEVELS * t_B), 0, LEVELS - 1) / LEVELS

    def diffuse(self, data: jax.Array, noise: jax.Array, t_B: jax.Array) -> jax.Array:
        """Mixes x_n at the level of each time."""
        share = jnp.asarray(signal_shares(), jnp.float32)[level(t_B)]
        share = share.reshape(-1, *(1,) * (data.ndim - 1))
        return jnp.sqrt(share) * data + jnp.sqrt(1 - share) * noise

    def target(
        self, prediction: Prediction, x_t: jax.Array, data: jax.Array, noise: jax.Array, t_B: jax.Array
    ) -> jax.Array:
        """Gives the noise."""
        return noise

    def compared(self, prediction: Prediction, x_t: jax.Array, out: jax.Array, t_B: jax.Array) -> jax.Array:
        """Gives the output as it is."""
        return out

    def grid(self, steps: int) -> Grid:
        """Lays the levels that `spacing` names, then clean data."""
        levels = levels_to_visit(steps, self.spacing)
        share = np.append(signal_shares()[levels], 1.0)
        return Grid(np.append(levels / LEVELS, 0).astype(np.float32), np.sqrt(share), np.sqrt(1 - share))


def level(t_B: jax.Array) -> jax.Array:
    """Gives n of a time n / 1000."""
    return jnp.clip(jnp.round(LEVELS * t_B).astype(jnp.int32), 0, LEVELS - 1)


def levels_to_visit(steps: int, spacing: Spacing) -> np.ndarray:
    """The levels n at which `steps` evaluations are made, descending.

    'linspace' reaches from the noisiest level to just above the cleanest, as diffusers' DPM-Solver does; 'leading' takes
    multiples of one stride, which leaves out the noisiest, as its DDIM does; 'trailing' counts the stride from the noisiest
    (2305.08891, section 3.3), as both do.
    """
    if spacing == "linspace":
        return np.linspace(0, LEVELS - 1, steps + 1).round().astype(int)[:0:-1]
    if spacing == "leading":
        return (np.arange(steps) * (LEVELS // steps))[::-1]
    return np.round(np.arange(LEVELS, 0, -LEVELS / steps))[:steps].astype(int) - 1
