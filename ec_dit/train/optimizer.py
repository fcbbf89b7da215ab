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

from ec_dit.core.settings import COUNT, key, only
from ec_dit.core.tree import named_leaves, owner

OptimizerKind = Literal["rmsprop", "adamw", "muon"]


@dataclass(frozen=True)
class OptimizerSpec:
    """The `optimizer` section."""

    name: OptimizerKind = key("rmsprop", "rmsprop with momentum; muon: hidden matrices, the rest by NAdam")
    learning_rate: float = key(1e-4, "after warm-up", above=0)
    adam_learning_rate: float = key(
        1e-3,
        "of muon's NAdam, which takes everything that is no hidden matrix",
        above=0,
        use=only("optimizer.name", "muon"),
    )
    warmup_steps: int = key(20_000, "from the first step, in which it is not zero", at_least=0, at_most=COUNT)
    schedule: Literal["constant", "cosine"] = key("constant", "after warm-up; cosine: to zero at train.steps")
    momentum: float = key(
        0.9, "rmsprop and muon (its NAdam has 0.9); the first-moment decay of adamw", at_least=0, below=1
    )
    decay: float = key(0.999, "of the second moment (rmsprop, adamw, and the NAdam beside muon)", at_least=0, below=1)
    eps: float = key(1e-8, "added where the second moment divides", above=0)
    weight_decay: float = key(0.0, "decoupled: learning_rate x this, of every weight matrix", at_least=0)
    clip_norm: float = key(1.0, "global gradient norm; 0 = no clipping", at_least=0)
    ema_decay: float = key(
        0.9999, "of the average of parameters; ramps up as min(decay, (1 + step) / (10 + step))", at_least=0, below=1
    )


def make_schedule(spec: OptimizerSpec, steps: int, peak: float) -> optax.Schedule:
    """Linear warm-up to `peak`, then constant, or a cosine to zero after `steps`."""
    rest = optax.constant_schedule(peak)
    if spec.schedule == "cosine":
        rest = optax.cosine_decay_schedule(peak, max(1, steps - spec.warmup_steps))
    if not spec.warmup_steps:
        return rest
    # Step 0 already moves: a first step of size zero would be a step lost.
    warmup = optax.linear_schedule(peak / spec.warmup_steps, peak, max(1, spec.warmup_steps - 1))
    return optax.join_schedules([warmup, rest], [spec.warmup_steps])


def make_optimizer(spec: OptimizerSpec, steps: int, infos: Any) -> optax.GradientTransformation:
    """Makes the chain of clipping, the optimizer and decoupled weight decay.

    Args:
        steps: of the whole training.
        infos: `nn.param.ParamInfo` of every parameter; its roles tell Muon and weight decay where the matrices are.
    """
    is_matrix = jax.tree.map(lambda info: info.roles is not None, infos)
    rate = make_schedule(spec, steps, spec.learning_rate)
    if spec.name == "rmsprop":
        # Bias correction: without it the first steps, whose second moment is still near zero, are far too long.
        main = optax.rmsprop(
            rate, decay=spec.decay, eps=spec.eps, momentum=spec.momentum, eps_in_sqrt=False, bias_correction=True
        )
    elif spec.name == "adamw":
        main = optax.adam(rate, b1=spec.momentum, b2=spec.decay, eps=spec.eps)
    else:
        muon = optax.contrib.muon(
            rate,
            beta=spec.momentum,
            eps=spec.eps,
            adam_learning_rate=make_schedule(spec, steps, spec.adam_learning_rate),
            adam_b2=spec.decay,
            muon_weight_dimension_numbers=jax.tree.map(_muon_dimensions, infos),
        )
        main = _experts_first(muon, infos)
    parts = [optax.clip_by_global_norm(spec.clip_norm), main] if spec.clip_norm else [main]
    if spec.weight_decay:
        # Decoupled: after everything else, each step takes rate x weight_decay of every matrix.
        parts.append(optax.add_decayed_weights(lambda step: -spec.weight_decay * rate(step), is_matrix))
    return optax.chain(*parts)


def _experts_first(tx: optax.GradientTransformation, infos: Any) -> optax.GradientTransformation:
    """Gives what `tx` does where the dimension of experts, behind that of layers, stands before it; its state stays as it was.

    Muon takes all matrices of a parameter as one row of them. A row of layers, each with experts that lie on different devices,
    cannot be laid over them, so that every device would hold all experts; of experts, each with all layers, it can.
    """
    swapped = {name for name, info in named_leaves(infos) if info.axes[:2] == ("layers", "expert")}

    def swap(tree: Any) -> Any:
        """Of parameters, or of a state that names what it keeps by them; its own inverse."""
        leaves = [leaf.swapaxes(0, 1) if owner(name, swapped) else leaf for name, leaf in named_leaves(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    def init(params: Any) -> Any:
        return swap(tx.init(swap(params)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        out, after = tx.update(swap(updates), swap(state), None if params is None else swap(params))
        return swap(out), swap(after)

    return optax.GradientTransformation(init, update)


def _muon_dimensions(info: Any) -> optax.contrib.MuonDimensionNumbers | None:
    if not info.hidden:
        return None
    dims = {role: tuple(i for i, r in enumerate(info.roles) if r == role) for role in "io"}
    return optax.contrib.MuonDimensionNumbers(reduction_axis=dims["i"], output_axis=dims["o"])
