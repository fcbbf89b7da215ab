"""What training keeps of its routing: how many experts a token gets, by noise level, and above which scores experts take tokens.

Experts of a group of several images take the tokens that suit them best, of some noise levels more than of others; an image alone
would have to feed all of them alike. By the thresholds that were passed in training it is routed as if it were in company. Tables
and thresholds are parameters of a sparse layer that no gradient reaches and that training moves after every step.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

NOISE_LEVELS = 16  # equal ranges of t
KEEP = 0.99  # of a table, at every step that has images of a level
TABLE = "load_Q"  # the parameter of a sparse layer
THRESHOLD, BIAS = "threshold_E", "bias_E"  # likewise, of rules that have such
# Among the metrics of a step.
SUM, COUNT, PASSED, ASKED = "record/experts_sum", "record/images", "record/thresholds", "record/asked"


def level(t: jax.typing.ArrayLike) -> jax.Array:
    """Gives the noise level of times."""
    return jnp.clip((jnp.asarray(t) * NOISE_LEVELS).astype(jnp.int32), 0, NOISE_LEVELS - 1)


def measured(experts_LBS: jax.Array, t_B: jax.Array) -> dict[str, jax.Array]:
    """Sums the experts per token of the images of each level, (L, Q), and counts the images, (Q,)."""
    member_BQ = jax.nn.one_hot(level(t_B), NOISE_LEVELS)
    return {SUM: experts_LBS.mean(-1, dtype=jnp.float32) @ member_BQ, COUNT: member_BQ.sum(0)}


def updated(
    params: Any, metrics: Mapping[str, jax.Array], *, keep: float = 0.0, bias_rate: float = 0.0
) -> tuple[Any, dict[str, jax.Array]]:
    """Moves tables, thresholds and biases of a model's sparse layers by what a step measured; gives the metrics without that.

    The first figure is taken as it is, later ones move a table by 1 - KEEP.

    Args:
        keep: of thresholds.
        bias_rate: by which a bias rises where its expert was asked less than others on average, and falls where more.
    """
    rest = {name: value for name, value in metrics.items() if name not in (SUM, COUNT, PASSED, ASKED)}
    if SUM in metrics:
        count_Q = metrics[COUNT]
        mean_LQ = metrics[SUM] / jnp.maximum(count_Q, 1e-9)
        params = _moved(params, TABLE, mean_LQ, lambda old, new: jnp.where(count_Q > 0, _mean(old, new, KEEP), old))
    if PASSED in metrics:
        params = _moved(params, THRESHOLD, metrics[PASSED], lambda old, new: _mean(old, new, keep))
    if ASKED in metrics:
        less_LE = jnp.sign(1 / metrics[ASKED].shape[-1] - metrics[ASKED])
        params = _moved(params, BIAS, less_LE, lambda old, less: old + bias_rate * less)
    return params, rest


def _mean(old: jax.Array, new: jax.Array, keep: float) -> jax.Array:
    """A running mean; 0 is none yet."""
    return jnp.where(old == 0, new, keep * old + (1 - keep) * new)


def tables(params: Any) -> jax.Array | None:
    """Gives the tables of all sparse layers, (L, Q), in the order of `RouterStats`; None where nothing is recorded."""
    found = [layer[TABLE] for layer in _layers(params, TABLE)]
    return jnp.concatenate(found) if found else None


def _moved(params: Any, name: str, measured: jax.Array, move: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
    """Parameters in which those of a name are moved by what was measured of all layers, in their order."""
    copied, start = jax.tree.map(lambda leaf: leaf, params), 0  # new dicts, the same arrays
    for layer in _layers(copied, name):
        part = slice(start, start + len(layer[name]))
        start = part.stop
        layer[name] = move(layer[name], measured[part])
    return copied


def _layers(params: Any, name: str) -> Iterator[dict[str, Any]]:
    """The sparse layers' parameters of every position in a stage's pattern, stacked over its repeats, that have this name."""
    stages = params["dit"]["stages"]
    for stage in (stages[number] for number in sorted(stages)):
        blocks = stage["blocks"]
        yield from (blocks[number]["ffn"] for number in sorted(blocks) if name in blocks[number]["ffn"])
