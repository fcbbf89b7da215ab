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
THRESHOLD = "threshold_E"  # likewise, of rules that have such
SUM, COUNT, PASSED = "record/experts_sum", "record/images", "record/thresholds"  # among the metrics of a step


def level(t: jax.typing.ArrayLike) -> jax.Array:
    """Gives the noise level of times."""
    return jnp.clip((jnp.asarray(t) * NOISE_LEVELS).astype(jnp.int32), 0, NOISE_LEVELS - 1)


def measured(experts_LBS: jax.Array, t_B: jax.Array) -> dict[str, jax.Array]:
    """Sums the experts per token of the images of each level, (L, Q), and counts the images, (Q,)."""
    member_BQ = jax.nn.one_hot(level(t_B), NOISE_LEVELS)
    return {SUM: experts_LBS.mean(-1, dtype=jnp.float32) @ member_BQ, COUNT: member_BQ.sum(0)}


def updated(params: Any, metrics: Mapping[str, jax.Array], keep: float = 0.0) -> tuple[Any, dict[str, jax.Array]]:
    """Moves tables and thresholds of a model's sparse layers by what a step measured; gives the metrics without that.

    The first figure is taken as it is, later ones move a table by 1 - KEEP.

    Args:
        keep: of thresholds.
    """
    rest = {name: value for name, value in metrics.items() if name not in (SUM, COUNT, PASSED)}
    if SUM in metrics:
        count_Q = metrics[COUNT]
        mean_LQ = metrics[SUM] / jnp.maximum(count_Q, 1e-9)
        params = _moved(params, TABLE, lambda old: KEEP * old, mean_LQ * (1 - KEEP), mean_LQ, count_Q > 0)
    if PASSED in metrics:
        passed_LE = metrics[PASSED]
        params = _moved(params, THRESHOLD, lambda old: keep * old, passed_LE * (1 - keep), passed_LE, True)
    return params, rest


def tables(params: Any) -> jax.Array | None:
    """Gives the tables of all sparse layers, (L, Q), in the order of `RouterStats`; None where nothing is recorded."""
    found = [layer[TABLE] for layer in _layers(params, TABLE)]
    return jnp.concatenate(found) if found else None


def _moved(
    params: Any, name: str, kept: Callable[[jax.Array], jax.Array], added: jax.Array, first: jax.Array, where: Any
) -> Any:
    """Parameters in which those of a name are moved; `added` and `first` are of all layers, in their order."""
    copied, start = jax.tree.map(lambda leaf: leaf, params), 0  # new dicts, the same arrays
    for layer in _layers(copied, name):
        old, part = layer[name], slice(start, start + len(layer[name]))
        start = part.stop
        layer[name] = jnp.where(where, jnp.where(old == 0, first[part], kept(old) + added[part]), old)
    return copied


def _layers(params: Any, name: str) -> Iterator[dict[str, Any]]:
    """The sparse layers' parameters of every position in a stage's pattern, stacked over its repeats, that have this name."""
    stages = params["dit"]["stages"]
    for stage in (stages[number] for number in sorted(stages)):
        blocks = stage["blocks"]
        yield from (blocks[number]["ffn"] for number in sorted(blocks) if name in blocks[number]["ffn"])
