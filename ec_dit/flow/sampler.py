"""From noise (t = 1) down to data (t = 0): integrators of dx/dt, and multistep solvers that go by predicted data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ec_dit.flow import ddpm, path
from ec_dit.flow.path import Prediction

SamplerKind = Literal["euler", "heun", "ddim", "dpmpp_2m"]
Predict = Callable[[jax.Array, jax.Array], jax.Array]  # (x, scalar t) -> the network's prediction


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


def straight_grid(steps: int, shift: float = 1.0) -> Grid:
    """Of rectified flow: times from 1 to 0. `shift` > 1 spends more steps near noise: t -> shift t / (1 + (shift - 1) t)."""
    t = np.linspace(1.0, 0.0, steps + 1)
    t = shift * t / (1 + (shift - 1) * t)
    return Grid(t.astype(np.float32), 1 - t, t)


def ddpm_grid(steps: int, spacing: ddpm.Spacing) -> Grid:
    """Of DDPM: the levels that `spacing` names, then clean data."""
    levels = ddpm.levels_to_visit(steps, spacing)
    share = np.append(ddpm.signal_shares()[levels], 1.0)
    return Grid(np.append(levels / ddpm.LEVELS, 0).astype(np.float32), np.sqrt(share), np.sqrt(1 - share))


def sample(predict: Predict, prediction: Prediction, noise: jax.Array, grid: Grid, kind: SamplerKind) -> jax.Array:
    """Data from `noise` by a network whose output means `prediction`.

    'euler' and 'heun' integrate the velocity, which rectified flow alone has here.
    """
    if kind in ("ddim", "dpmpp_2m"):
        return multistep(predict, prediction, noise, grid, order=1 if kind == "ddim" else 2)

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        out = predict(x, t)
        return out if prediction == "velocity" else path.velocity_from_data(x, out, t, floor=0.0)

    return integrate(velocity, noise, grid.times, kind)


def integrate(velocity: Predict, noise: jax.Array, times: np.ndarray, kind: SamplerKind) -> jax.Array:
    """x at the last of `times`, starting from `noise` at the first.

    Args:
        velocity: (x, scalar t) -> dx/dt.
        kind: 'euler', first order, one evaluation a step; 'heun', second order, two, but one in the last step: at t = 0
            there is no noise left to tell the direction by (EDM, 2206.00364, Algorithm 1, does the same).

    Raises:
        ValueError: for another kind.
    """
    if kind not in ("euler", "heun"):
        raise ValueError(f"{kind!r} does not integrate a velocity; euler and heun do.")

    def step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, t_next = pair
        slope = velocity(x, t)
        if kind == "heun":
            slope = (slope + velocity(x + (t_next - t) * slope, t_next)) / 2
        return x + (t_next - t) * slope, None

    full = times if kind == "euler" else times[:-1]
    x, _ = jax.lax.scan(step, noise, (jnp.asarray(full[:-1]), jnp.asarray(full[1:])))
    if kind == "heun":
        x = x + (times[-1] - times[-2]) * velocity(x, jnp.asarray(times[-2]))
    return x


def multistep(
    predict: Predict, prediction: Prediction, noise: jax.Array, grid: Grid, order: Literal[1, 2]
) -> jax.Array:
    """DDIM without fresh noise (2010.02502, order 1) or DPM-Solver++ 2M (2211.01095, Algorithm 2, order 2).

    Both go by the predicted data D alone: x <- a x + b D + c (D - D of the step before), with numbers known beforehand.
    """

    def step(
        carry: tuple[jax.Array, jax.Array], now: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        x, before = carry
        t, alpha, sigma, a, b, c = now
        data = data_from(prediction, x, predict(x, t), alpha, sigma)
        return (a * x + b * data + c * (data - before), data), None

    a, b, c = _coefficients(grid, order)
    columns = (grid.times[:-1], grid.signal[:-1], grid.noise[:-1], a, b, c)
    (x, _), _ = jax.lax.scan(step, (noise, jnp.zeros_like(noise)), tuple(jnp.asarray(n, jnp.float32) for n in columns))
    return x


def data_from(
    prediction: Prediction, x: jax.Array, out: jax.Array, alpha: jax.Array | float, sigma: jax.Array | float
) -> jax.Array:
    """The clean data that a prediction at x = alpha x_0 + sigma eps means."""
    if prediction == "data":
        return out
    return x - sigma * out if prediction == "velocity" else (x - sigma * out) / alpha


def _coefficients(grid: Grid, order: Literal[1, 2]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(a, b, c) of every step. Half log-SNR lambda is -inf at pure noise and inf at clean data, which makes a first step from
    the one, and the last step to the other, of first order.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = np.diff(np.log(grid.signal) - np.log(grid.noise))  # h of every step
        ratio = np.append(0, rise[1:] / rise[:-1])  # 1 / r_0; nothing came before the first step
    ratio[~np.isfinite(ratio)] = 0
    a = grid.noise[1:] / grid.noise[:-1]
    b = -grid.signal[1:] * np.expm1(-rise)
    return a, b, b * ratio / 2 if order == 2 else np.zeros_like(b)


def count_evaluations(times: np.ndarray, kind: SamplerKind, scale: float, interval: tuple[float, float]) -> int:
    """NFE: network evaluations per image, a guided one counting twice."""
    at = np.concatenate([times[:-1], times[1:-1]]) if kind == "heun" else times[:-1]
    guided = (at >= interval[0]) & (at <= interval[1]) & (scale != 1)
    return int(at.size + guided.sum())
