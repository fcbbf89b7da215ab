"""From noise (t = 1) down to data (t = 0): integrators of dx/dt, and multistep solvers that go by predicted data.

A new sampler is a class here and a row of SAMPLERS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ec_dit.flow.process import Grid, Prediction, data_from
from ec_dit.flow.rectified import velocity_from_data

Predict = Callable[[jax.Array, jax.Array], jax.Array]  # (x, scalar t) -> the network's prediction


class Sampler(Protocol):
    """A way from noise to data.

    Attributes:
        order: of convergence.
        needs_ode: whether it integrates dx/dt, which not every process has.
    """

    @property
    def order(self) -> int: ...  # noqa: D102
    @property
    def needs_ode(self) -> bool: ...  # noqa: D102

    def evaluations(self, times: np.ndarray) -> np.ndarray:
        """Gives the times at which the network is asked, of a grid's `times`."""
        ...

    def __call__(self, predict: Predict, prediction: Prediction, noise: jax.Array, grid: Grid) -> jax.Array:
        """Makes data from `noise` by a network whose output means `prediction`."""
        ...


@dataclass(frozen=True)
class Euler:
    """Integrates dx/dt with one evaluation a step."""

    order: int = 1
    needs_ode: bool = True

    def evaluations(self, times: np.ndarray) -> np.ndarray:
        """Gives the beginning of every step."""
        return times[:-1]

    def __call__(self, predict: Predict, prediction: Prediction, noise: jax.Array, grid: Grid) -> jax.Array:
        """See `Sampler`."""
        velocity = _velocity(predict, prediction)

        def step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            t, t_next = pair
            return x + (t_next - t) * velocity(x, t), None

        return jax.lax.scan(step, noise, _pairs(grid.times))[0]


@dataclass(frozen=True)
class Heun:
    """Integrates dx/dt with two evaluations a step, but one in the last.

    At t = 0 there is no noise left to tell the direction by (EDM, 2206.00364, Algorithm 1, does the same).
    """

    order: int = 2
    needs_ode: bool = True

    def evaluations(self, times: np.ndarray) -> np.ndarray:
        """Gives beginning and end of every step, of the last its beginning."""
        return np.concatenate([times[:-1], times[1:-1]])

    def __call__(self, predict: Predict, prediction: Prediction, noise: jax.Array, grid: Grid) -> jax.Array:
        """See `Sampler`."""
        velocity, times = _velocity(predict, prediction), grid.times

        def step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            t, t_next = pair
            slope = velocity(x, t)
            slope = (slope + velocity(x + (t_next - t) * slope, t_next)) / 2
            return x + (t_next - t) * slope, None

        x, _ = jax.lax.scan(step, noise, _pairs(times[:-1]))
        return x + (times[-1] - times[-2]) * velocity(x, jnp.asarray(times[-2]))


@dataclass(frozen=True)
class Multistep:
    """DDIM without fresh noise (2010.02502, order 1) or DPM-Solver++ 2M (2211.01095, Algorithm 2, order 2).

    Both go by the predicted data D alone: x <- a x + b D + c (D - D of the step before), with numbers known beforehand.
    """

    order: int
    needs_ode: bool = False

    def evaluations(self, times: np.ndarray) -> np.ndarray:
        """Gives the beginning of every step."""
        return times[:-1]

    def __call__(self, predict: Predict, prediction: Prediction, noise: jax.Array, grid: Grid) -> jax.Array:
        """See `Sampler`."""

        def step(
            carry: tuple[jax.Array, jax.Array], now: tuple[jax.Array, ...]
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            x, before = carry
            t, alpha, sigma, a, b, c = now
            data = data_from(prediction, x, predict(x, t), alpha, sigma)
            return (a * x + b * data + c * (data - before), data), None

        numbers = (grid.times[:-1], grid.signal[:-1], grid.noise[:-1], *self._coefficients(grid))
        columns = tuple(jnp.asarray(column, jnp.float32) for column in numbers)
        (x, _), _ = jax.lax.scan(step, (noise, jnp.zeros_like(noise)), columns)
        return x

    def _coefficients(self, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(a, b, c) of every step. Half log-SNR lambda is -inf at pure noise and inf at clean data, which makes a first step
        from the one, and the last step to the other, of first order.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            rise = np.diff(np.log(grid.signal) - np.log(grid.noise))  # h of every step
            ratio = np.append(0, rise[1:] / rise[:-1])  # 1 / r_0; nothing came before the first step
        ratio[~np.isfinite(ratio)] = 0
        a = grid.noise[1:] / grid.noise[:-1]
        b = -grid.signal[1:] * np.expm1(-rise)
        return a, b, b * ratio / 2 if self.order == 2 else np.zeros_like(b)


SAMPLERS: Mapping[str, Sampler] = {  # on straight lines ddim is the same as euler
    "euler": Euler(),
    "heun": Heun(),
    "ddim": Multistep(order=1),
    "dpmpp_2m": Multistep(order=2),
}


def count_evaluations(
    times: np.ndarray, sampler: Sampler, scale: float = 1.0, interval: tuple[float, float] = (0.0, 1.0)
) -> int:
    """Counts NFE: network evaluations per image, a guided one counting twice."""
    at = sampler.evaluations(times)
    guided = (at >= interval[0]) & (at <= interval[1]) & (scale != 1)
    return int(at.size + guided.sum())


def _velocity(predict: Predict, prediction: Prediction) -> Predict:
    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        out = predict(x, t)
        return out if prediction == "velocity" else velocity_from_data(x, out, t, floor=0.0)

    return velocity


def _pairs(times: np.ndarray) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(times[:-1]), jnp.asarray(times[1:])
