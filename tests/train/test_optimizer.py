"""Schedules and optimizers against plain arithmetic in float64, and against torch: large eps, through warm-up, several steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ec_dit.core import sharding
from ec_dit.core.mesh import make_mesh
from ec_dit.nn import param
from ec_dit.nn.param import ParamInfo
from ec_dit.train.optimizer import OptimizerSpec, make_optimizer, make_schedule

pytestmark = pytest.mark.slow

STEPS, WARMUP = 8, 3


def spec(**changes):
    """Settings under which every term of a rule shows: an eps of the size of the gradients, a decay that is soon felt."""
    values = {
        "name": "rmsprop",
        "learning_rate": 0.1,
        "adam_learning_rate": 0.03,
        "warmup_steps": WARMUP,
        "schedule": "cosine",
        "momentum": 0.8,
        "decay": 0.7,
        "eps": 0.3,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
    return OptimizerSpec(**values | changes)


def info(roles, hidden=True):
    return ParamInfo((None,) * len(roles), roles, hidden)


# Roles as the model has them: a layer, experts, heads of a query, of an output, six vectors of a modulation.
MATRICES = {"io": (3, 5), "bio": (2, 5, 3), "ioo": (4, 2, 3), "iio": (2, 3, 4), "ibo": (3, 2, 4)}
SHAPES = MATRICES | {"edge": (3, 4), "table": (6,)}
INFOS = {roles: info(roles) for roles in MATRICES}
INFOS |= {"edge": info("io", hidden=False), "table": ParamInfo(("embed",), None, hidden=False)}


def draws(seed=0):
    """Parameters, and the gradients of every step, float64; gradients grow, so that averages never settle."""
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    grads = [{name: (1 + i) * rng.normal(size=shape) / 4 for name, shape in SHAPES.items()} for i in range(STEPS)]
    return params, grads


def run(chosen, params, grads):
    """The product's parameters after every step."""
    tx = make_optimizer(chosen, STEPS, INFOS)
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    state = tx.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in grads:
        params, state = step(params, state, {name: jnp.asarray(g, jnp.float32) for name, g in gradient.items()})
        yield params


def plain_rate(step, peak):
    """Warm-up in a line that moves from the first step on, then half a cosine that ends at zero."""
    if step < WARMUP:
        return peak * (step + 1) / WARMUP
    return peak * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


def plain_rmsprop(w, grads, chosen, rates, *, corrected, eps_inside, rate_inside):
    """RMSProp with momentum, in the forms that docs/optimizers.md lists."""
    nu, momentum = np.zeros_like(w), np.zeros_like(w)
    for i, (g, rate) in enumerate(zip(grads, rates, strict=True), 1):
        nu = chosen.decay * nu + (1 - chosen.decay) * g**2
        square = nu / (1 - chosen.decay**i) if corrected else nu
        scaled = g / (np.sqrt(square + chosen.eps) if eps_inside else np.sqrt(square) + chosen.eps)
        momentum = chosen.momentum * momentum + (rate * scaled if rate_inside else scaled)
        w = w - (momentum if rate_inside else rate * momentum)
        yield w


def plain_adam(w, grads, chosen, *, b1, peak, nesterov=False):
    """Adam (1412.6980), or NAdam: the first moment a step ahead."""
    mu, nu = np.zeros_like(w), np.zeros_like(w)
    for i, g in enumerate(grads, 1):
        mu = b1 * mu + (1 - b1) * g
        nu = chosen.decay * nu + (1 - chosen.decay) * g**2
        first = mu / (1 - b1**i)
        if nesterov:
            first = b1 * mu / (1 - b1 ** (i + 1)) + (1 - b1) * g / (1 - b1**i)
        w = w - plain_rate(i - 1, peak) * first / (np.sqrt(nu / (1 - chosen.decay**i)) + chosen.eps)
        yield w


def plain_muon(w_BIO, grads, chosen):
    """Each matrix by itself: momentum a step ahead, five Newton-Schulz steps, longer by sqrt(out / in) where it widens."""
    mu = np.zeros_like(w_BIO)
    widening = math.sqrt(max(1, w_BIO.shape[2] / w_BIO.shape[1]))
    for i, g in enumerate(grads, 1):
        mu = chosen.momentum * mu + (1 - chosen.momentum) * g
        ahead = chosen.momentum * mu / (1 - chosen.momentum ** (i + 1))
        ahead = ahead + (1 - chosen.momentum) * g / (1 - chosen.momentum**i)
        made = []
        for x in ahead:
            x = x / (np.sqrt((x**2).sum()) + chosen.eps)
            for _ in range(5):
                square = x @ x.T
                x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
            made.append(x)
        w_BIO = w_BIO - plain_rate(i - 1, chosen.learning_rate) * widening * np.array(made)
        yield w_BIO


def as_matrices(array, roles):
    """(batch, in, out), by the roles of the dimensions."""
    order = [i for role in "bio" for i, r in enumerate(roles) if r == role]
    sizes = [math.prod(n for n, r in zip(array.shape, roles, strict=True) if r == role) for role in "bio"]
    return array.transpose(order).reshape(sizes)


def test_schedules_at_their_corners():
    warm = make_schedule(spec(warmup_steps=4, schedule="constant"), STEPS, 1.0)
    np.testing.assert_allclose([warm(i) for i in (0, 1, 3, 4, 9)], [0.25, 0.5, 1, 1, 1])
    cosine = make_schedule(spec(warmup_steps=2), 12, 1.0)
    np.testing.assert_allclose([cosine(i) for i in (0, 1, 2, 7, 12)], [0.5, 1, 1, 0.5, 0], atol=1e-7)
    at_once = make_schedule(spec(warmup_steps=0), 12, 1.0)
    np.testing.assert_allclose([at_once(i) for i in (0, 6, 12)], [1, 0.5, 0], atol=1e-7)


def test_rmsprop_is_the_documented_rule():
    chosen = spec()
    params, grads = draws()
    rates = [plain_rate(i, chosen.learning_rate) for i in range(STEPS)]
    form = {"corrected": True, "eps_inside": False, "rate_inside": True}
    expected = plain_rmsprop(params["io"], [g["io"] for g in grads], chosen, rates, **form)
    for made, wanted in zip(run(chosen, params, grads), expected, strict=True):
        np.testing.assert_allclose(made["io"], wanted, rtol=1e-5, atol=1e-6)


def test_adamw_is_the_textbook_rule():
    chosen = spec(name="adamw")
    params, grads = draws()
    expected = plain_adam(params["io"], [g["io"] for g in grads], chosen, b1=0.8, peak=0.1)
    for made, wanted in zip(run(chosen, params, grads), expected, strict=True):
        np.testing.assert_allclose(made["io"], wanted, rtol=1e-5, atol=1e-6)


def test_muon_orthogonalises_every_matrix_and_leaves_the_rest_to_nadam():
    chosen = spec(name="muon")
    params, grads = draws()
    made = list(run(chosen, params, grads))
    for name in SHAPES:
        if name in MATRICES:
            w_BIO, *of_steps = (as_matrices(a, name) for a in (params[name], *(g[name] for g in grads)))
            expected, found = (
                plain_muon(w_BIO, of_steps, chosen),
                [as_matrices(np.asarray(p[name]), name) for p in made],
            )
        else:
            of_steps = [g[name] for g in grads]
            expected = plain_adam(params[name], of_steps, chosen, b1=0.9, peak=0.03, nesterov=True)
            found = [p[name] for p in made]
        for value, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.extra("conformance")
def test_adamw_equals_torch():
    """With decoupled decay of the matrices, clipping by the global norm, and a learning rate that changes."""
    import torch

    chosen = spec(name="adamw", weight_decay=0.2, clip_norm=1.5)
    params, grads = draws(1)
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    groups = [
        {"params": [theirs[name]], "weight_decay": 0.0 if name == "table" else chosen.weight_decay} for name in SHAPES
    ]
    optimizer = torch.optim.AdamW(groups, betas=(chosen.momentum, chosen.decay), eps=chosen.eps)
    for i, made in enumerate(run(chosen, params, grads)):
        for name, value in theirs.items():
            value.grad = torch.tensor(grads[i][name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), chosen.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = plain_rate(i, chosen.learning_rate)
        optimizer.step()
        for name, value in theirs.items():
            np.testing.assert_allclose(made[name], value.detach(), rtol=1e-5, atol=1e-5, err_msg=name)


def by_torch(w, grads, chosen, rates):
    import torch

    w = torch.tensor(w, requires_grad=True)
    optimizer = torch.optim.RMSprop([w], alpha=chosen.decay, eps=chosen.eps, momentum=chosen.momentum)
    for g, rate in zip(grads, rates, strict=True):
        w.grad, optimizer.param_groups[0]["lr"] = torch.tensor(g), rate
        optimizer.step()
        yield w.detach().clone()


def by_optax(w, grads, chosen, rates):
    tx = optax.rmsprop(lambda i: jnp.asarray(rates)[i], decay=chosen.decay, eps=chosen.eps, momentum=chosen.momentum)
    w = jnp.asarray(w, jnp.float32)
    state = tx.init(w)
    for g in grads:
        updates, state = tx.update(jnp.asarray(g, jnp.float32), state, w)
        w = optax.apply_updates(w, updates)
        yield w


@pytest.mark.extra("conformance")
@pytest.mark.parametrize(("theirs", "eps_inside", "rate_inside"), [(by_torch, False, False), (by_optax, True, True)])
def test_the_forms_of_rmsprop_elsewhere_are_as_documented(theirs, eps_inside, rate_inside):
    """docs/optimizers.md has them in a table; a change of theirs should be seen."""
    chosen = spec()
    params, grads = draws(2)
    of_steps, rates = [g["io"] for g in grads], [plain_rate(i, 0.1) for i in range(STEPS)]
    form = {"corrected": False, "eps_inside": eps_inside, "rate_inside": rate_inside}
    expected = plain_rmsprop(params["io"], of_steps, chosen, rates, **form)
    for made, wanted in zip(theirs(params["io"], of_steps, chosen, rates), expected, strict=True):
        np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["rmsprop", "adamw", "muon"])
def test_weight_decay_shrinks_matrices_only(name):
    """By rate x decay of the weight, whatever the optimizer; also those at the edges, which Muon leaves to Adam."""
    chosen = spec(name=name, weight_decay=0.5)
    params, grads = draws()
    zeros = [{key: 0 * g for key, g in grads[0].items()}]
    (made,) = run(chosen, params, zeros)
    shrunk = 1 - 0.5 * plain_rate(0, 0.1)
    for key in SHAPES:
        np.testing.assert_allclose(made[key], params[key] * (1 if key == "table" else shrunk), rtol=1e-6, err_msg=key)


def test_clipping_bounds_the_gradient_of_all_parameters_together():
    tx = make_optimizer(spec(name="adamw", clip_norm=1.0), STEPS, {"a": info("io"), "b": info("io")})
    params = {"a": jnp.zeros((1, 1)), "b": jnp.zeros((1, 1))}
    for size, clipped in ((10, 0.2), (0.1, 0.1)):  # of a gradient along (3, 4), whose norm is five times that
        _, state = tx.update({"a": jnp.array([[3.0 * size]]), "b": jnp.array([[4.0 * size]])}, tx.init(params), params)
        first_moments = [float(m[0, 0]) for m in state[1][0].mu.values()]
        assert first_moments == pytest.approx([0.2 * 3 * clipped, 0.2 * 4 * clipped], rel=1e-5)


def test_muon_leaves_experts_on_their_devices():
    """Layers of experts: every device orthogonalises its own, and what it keeps is laid out as the parameter is."""
    mesh = make_mesh((1, 2, 4, 1))
    infos = {"w": ParamInfo(("layers", "expert", "expert_embed", "ffn"), "bbio", hidden=True)}
    weights = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 6, 10)), jnp.float32)}
    tx = make_optimizer(spec(name="muon"), 10, infos)
    laid = param.shardings(weights, {"w": infos["w"]}, mesh)
    state = tx.init(weights)
    assert {leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim == 4} == {(3, 4, 6, 10)}
    where = [laid["w"] if leaf.ndim == 4 else sharding.replicated(mesh) for leaf in jax.tree.leaves(state)]
    shardings = laid, jax.tree.unflatten(jax.tree.structure(state), where)
    with jax.set_mesh(mesh):
        step = jax.jit(tx.update, in_shardings=(*shardings, laid), out_shardings=shardings)
        compiled = step.lower(weights, state, weights).compile()
        out, _ = compiled(*jax.device_put((weights, state, weights), (*shardings, laid)))
    gathered = [line for line in compiled.as_text().splitlines() if " all-gather(" in line or " all-to-all(" in line]
    assert not any("f32[12," in line or "f32[3,4," in line for line in gathered), gathered
    expected, _ = tx.update(weights, state, weights)
    np.testing.assert_allclose(out["w"], expected["w"], rtol=1e-5, atol=1e-6)
