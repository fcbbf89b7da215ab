"""One training step as a pure function: (state, batch) -> (state, metrics)."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from ec_dit.train.state import TrainState

Outcome = tuple[jax.Array, dict[str, jax.Array]]  # a loss, and metrics
LossFn = Callable[[Any, Any, Any, jax.Array], Outcome]  # (params, frozen parameters or None, batch, key)
MAXIMA = ("router/max_experts",)  # metrics of which the largest counts, not the mean; none is negative
StepFn = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


class FrozenStepFn(Protocol):
    """A step that may be given parameters which stay as they are."""

    def __call__(self, state: TrainState, batch: Any, frozen: Any = None) -> tuple[TrainState, dict[str, jax.Array]]:
        """Gives the state after the step, and metrics."""
        ...


Settle = Callable[[Any, dict[str, jax.Array]], tuple[Any, dict[str, jax.Array]]]  # (parameters, metrics) -> the same


def make_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    ema_decay: float,
    accumulate: int = 1,
    settle: Settle = lambda params, metrics: (params, metrics),
) -> FrozenStepFn:
    """Makes the step that `loop.train` runs; jit it with the state's shardings, the state donated.

    Frozen parameters are neither differentiated nor changed nor part of the state.

    Args:
        loss_fn: mean loss of a (micro-)batch, and metrics; over micro-batches they average, and MAXIMA keep the largest.
        ema_decay: of the moving average, ramped up as min(decay, (1 + step) / (10 + step)).
        accumulate: micro-batches whose gradients are averaged before the update.
        settle: changes, after the update, parameters that follow from metrics and not from gradients.
    """

    def step(state: TrainState, batch: Any, frozen: Any = None) -> tuple[TrainState, dict[str, jax.Array]]:
        def loss(params: Any, batch: Any, key: jax.Array) -> Outcome:
            return loss_fn(params, frozen, batch, key)

        key = jax.random.fold_in(state.key, state.step)
        grads, metrics = _gradients(loss, state.params, batch, key, accumulate)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params, metrics = settle(optax.apply_updates(state.params, updates), metrics)
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        # Not optax.incremental_update, which rounds otherwise: a run that goes on must end in the same bits.
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        metrics |= {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        return TrainState(state.step + 1, state.key, params, ema, opt_state), metrics

    return step


def _gradients(
    loss_fn: Callable[[Any, Any, jax.Array], Outcome], params: Any, batch: Any, key: jax.Array, accumulate: int
) -> tuple[Any, dict[str, jax.Array]]:
    grad_fn = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
        return grad_fn(params, batch, key)

    # Micro-batch i takes every accumulate-th example from i on, so that each device keeps its own examples.
    micro_batches = jax.tree.map(
        lambda a: a.reshape(a.shape[0] // accumulate, accumulate, *a.shape[1:]).swapaxes(0, 1), batch
    )

    def add(total: Any, item: tuple[Any, jax.Array]) -> tuple[Any, None]:
        micro_batch, index = item
        grads, metrics = grad_fn(params, micro_batch, jax.random.fold_in(key, index))
        largest = {name: jnp.maximum(total[1][name], metrics[name]) for name in metrics if name in MAXIMA}
        grads, metrics = jax.tree.map(jnp.add, total, (grads, metrics))
        return (grads, metrics | largest), None

    first = jax.tree.map(lambda a: a[0], micro_batches)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(grad_fn, params, first, key))
    (grads, metrics), _ = jax.lax.scan(add, zeros, (micro_batches, jnp.arange(accumulate)))
    means = jax.tree.map(lambda a: a / accumulate, (grads, metrics))
    return means[0], means[1] | {name: metrics[name] for name in metrics if name in MAXIMA}
