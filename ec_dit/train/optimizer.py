"""Optimizers and schedules, all optax's: RMSProp with momentum (the paper's), AdamW, Muon.

With m of the first moment, v of the second, g the clipped gradient, e eps, and r the rate of the step (docs/optimizers.md has
the forms of other libraries beside these):

  rmsprop: v <- decay v + (1 - decay) g^2;  m <- momentum m + r g / (sqrt(v / (1 - decay^n)) + e);  w <- w - m
  adamw:   Adam with momentum and decay for beta_1 and beta_2; w also loses r x weight_decay of itself
  muon:    of hidden matrices, Newton-Schulz of the momentum; all else by NAdam, Adam whose momentum is a step ahead (Nesterov),
           with beta_1 = 0.9
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

OptimizerKind = Literal["rmsprop", "adamw", "muon"]


@dataclass(frozen=True)
class OptimizerSpec:
    """See the `optimizer` keys of ec_dit/config.py; `steps` ends the cosine schedule."""

    name: OptimizerKind
    learning_rate: float
    adam_learning_rate: float
    warmup_steps: int
    schedule: Literal["constant", "cosine"]
    steps: int
    momentum: float
    decay: float
    eps: float
    weight_decay: float
    clip_norm: float


def make_schedule(spec: OptimizerSpec, peak: float) -> optax.Schedule:
    """Linear warm-up to `peak`, then constant, or a cosine to zero at `spec.steps`."""
    rest = optax.constant_schedule(peak)
    if spec.schedule == "cosine":
        rest = optax.cosine_decay_schedule(peak, max(1, spec.steps - spec.warmup_steps))
    if not spec.warmup_steps:
        return rest
    # Step 0 already moves: a first step of size zero would be a step lost.
    warmup = optax.linear_schedule(peak / spec.warmup_steps, peak, max(1, spec.warmup_steps - 1))
    return optax.join_schedules([warmup, rest], [spec.warmup_steps])


def make_optimizer(spec: OptimizerSpec, infos: Any) -> optax.GradientTransformation:
    """Makes the chain of clipping, the optimizer and decoupled weight decay.

    Args:
        infos: `nn.param.ParamInfo` of every parameter; its roles tell Muon and weight decay where the matrices are.
    """
    is_matrix = jax.tree.map(lambda info: info.roles is not None, infos)
    rate = make_schedule(spec, spec.learning_rate)
    if spec.name == "rmsprop":
        # Bias correction: without it the first steps, whose second moment is still near zero, are far too long.
        main = optax.rmsprop(
            rate, decay=spec.decay, eps=spec.eps, momentum=spec.momentum, eps_in_sqrt=False, bias_correction=True
        )
    elif spec.name == "adamw":
        main = optax.adam(rate, b1=spec.momentum, b2=spec.decay, eps=spec.eps)
    else:
        main = optax.contrib.muon(
            rate,
            beta=spec.momentum,
            eps=spec.eps,
            adam_learning_rate=make_schedule(spec, spec.adam_learning_rate),
            adam_b2=spec.decay,
            muon_weight_dimension_numbers=jax.tree.map(_muon_dimensions, infos),
        )
    parts = [optax.clip_by_global_norm(spec.clip_norm), main] if spec.clip_norm else [main]
    if spec.weight_decay:
        # Decoupled: after everything else, each step takes rate x weight_decay of every matrix.
        parts.append(optax.add_decayed_weights(lambda step: -spec.weight_decay * rate(step), is_matrix))
    return optax.chain(*parts)


def _muon_dimensions(info: Any) -> optax.contrib.MuonDimensionNumbers | None:
    if not info.hidden:
        return None
    dims = {role: tuple(i for i, r in enumerate(info.roles) if r == role) for role in "io"}
    return optax.contrib.MuonDimensionNumbers(reduction_axis=dims["i"], output_axis=dims["o"])
