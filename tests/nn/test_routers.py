"""Options of routers and experts against plain loops in float64: scores, gates, inputs, shared and gated experts, losses."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.core.tree import named_leaves
from ec_dit.nn import experts, param
from ec_dit.nn.cost import Load
from ec_dit.nn.moe import MoE, RouterContext
from ec_dit.nn.routing import losses, rules, scores, slots
from ec_dit.nn.routing.spec import RoutingKind, RoutingSpec
from ec_dit.nn.routing.token_choice import top_k
from tests import plain
from tests.nn.test_cost import counted
from tests.nn.test_routing import SIZES, duplicated_scores, softmax_scores, tied_scores

IMAGES, TOKENS, WIDTH, EXPERTS = 2, 6, 8, 4
# (what differs in the layer, what differs in the routing)
ROUNDING = 2.0**-8  # of bfloat16, relative: half of its last place
OPTIONS = {
    "gated": ({"activation": "swiglu"}, {}),
    "gated_with_biases": ({"activation": "swiglu", "bias": True}, {}),
    "shared": ({"shared": 8}, {}),
    "shared_gated": ({"shared": 8, "activation": "swiglu", "bias": True}, {}),
    "start": ({"reads": "start"}, {}),
    "nucleus": (
        {"reads": "normed_time", "activation": "swiglu", "shared": 16},
        {"gate": "normalized", "gate_scale": 2.5},
    ),
    "promoe": ({"shared": 8}, {"router": "cosine", "score": "identity"}),
    "sigmoid": ({}, {"score": "sigmoid"}),
    "sigmoid_normalized": ({}, {"score": "sigmoid", "gate": "normalized"}),
    "dsmoe": (
        {"shared": 8, "activation": "swiglu"},
        {"routing": "top_k", "top_k": 3, "capacity_factor": 3.0, "score": "sigmoid", "gate": "normalized", "gate_scale": 2.5},
    ),
    "hidream": ({"shared": 8}, {"routing": "top_k", "capacity_factor": 2.0}),
    "balanced": ({"biases": True}, {"routing": "top_k", "score": "sigmoid", "gate": "normalized", "bias_rate": 0.01}),
    "top_1": ({}, {"routing": "top_k", "top_k": 1, "capacity_factor": 1.0}),
    "race": ({"thresholds": True}, {"routing": "expert_race", "score": "identity"}),
    "race_without_room": ({"thresholds": True}, {"routing": "expert_race", "most": 1.0, "similarity_weight": 0.5}),
    "race_alone": ({"thresholds": True}, {"routing": "expert_race", "score": "identity", "by_threshold": True}),
    "diffmoe": ({"thresholds": True, "predictor": True}, {"routing": "diffmoe"}),
    "diffmoe_alone": ({"thresholds": True, "predictor": True}, {"routing": "diffmoe", "by_threshold": True}),
    "recorded": ({"thresholds": True}, {"record": True}),
    "matched": ({"thresholds": True}, {"record": True, "by_threshold": True, "most": 1.5}),
    "matched_normalized": ({"thresholds": True}, {"record": True, "by_threshold": True, "gate": "normalized"}),
    "losses": ({}, {"z_weight": 0.5, "similarity_weight": 0.25}),
    "losses_of_top_k": ({}, {"routing": "top_k", "z_weight": 0.5, "similarity_weight": 0.25}),
}  # fmt: skip


def make(layer):
    """(graph definition, random parameters) of a layer."""
    build = lambda: MoE(WIDTH, 12, EXPERTS, **layer, dtype=jnp.float32, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, params, _ = param.split(nnx.eval_shape(build))
    rng = np.random.default_rng(0)
    return graphdef, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, jnp.float32), params)


def given(seed=1):
    """Inputs of a layer and a target, float64."""
    rng = np.random.default_rng(seed)
    tokens, start, x, target = rng.normal(size=(4, IMAGES, TOKENS, WIDTH))
    return {"x": x, "tokens": tokens, "start": start, "time": rng.normal(size=(IMAGES, WIDTH))}, target


def program(graphdef, spec):
    def run(params, inputs):
        context = RouterContext(inputs["tokens"], inputs["start"], inputs["time"])
        return nnx.merge(graphdef, params)(inputs["x"], spec, context)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_equal_plain_loops(name):
    """Gradients along random directions, one parameter and one input at a time, by central differences of the plain loops."""
    layer, routing = OPTIONS[name]
    spec = RoutingSpec(**{"capacity_factor": 2.0, **routing})
    graphdef, params = make(layer)
    inputs, target_BSD = given()
    weights = losses.weights(spec)

    def loss(params, inputs):
        out_BSD, stats = program(graphdef, spec)(params, inputs)
        every = {"balance": stats.aux_loss, **stats.losses}
        return (out_BSD * target_BSD).sum() + sum((i + 2) * value for i, value in enumerate(every.values())), (
            out_BSD,
            stats,
        )

    narrow = {key: jnp.asarray(value, jnp.float32) for key, value in inputs.items()}
    (_, (out_BSD, stats)), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, narrow)
    reads = layer.get("reads", "modulated")
    expected = plain.sparse_layer(plain.wide(params), inputs, reads, spec)
    np.testing.assert_allclose(out_BSD, expected.out_BSD, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stats.experts_BS, expected.experts_BS)
    np.testing.assert_allclose(stats.aux_loss, expected.losses["balance"], rtol=1e-5)
    np.testing.assert_allclose(stats.dropped, expected.dropped, atol=1e-6)
    assert set(stats.losses) == set(weights)
    assert (stats.threshold_E is None) == (expected.threshold_E is None)
    assert (stats.asked_E is None) == ("biases" not in layer)
    if stats.asked_E is not None:
        np.testing.assert_allclose(stats.asked_E, expected.asked_E, rtol=1e-6)
    if stats.threshold_E is not None:
        np.testing.assert_allclose(stats.threshold_E, expected.threshold_E, rtol=1e-5)
    for key, value in stats.losses.items():
        np.testing.assert_allclose(value, expected.losses[key], rtol=1e-5)

    def plain_loss(params, inputs):
        found = plain.sparse_layer(params, inputs | {"seen": given()[0]["x"]}, reads, spec, expected.chosen)
        every = [found.losses["balance"], *(found.losses[key] for key in weights)]
        return (found.out_BSD * target_BSD).sum() + sum((i + 2) * value for i, value in enumerate(every))

    rng = np.random.default_rng(2)
    wide = plain.wide(params)
    flat = jax.tree_util.tree_flatten_with_path(({**params}, narrow))[0]
    grads = dict(zip([path for path, _ in flat], jax.tree.leaves(grads), strict=True))
    for path, gradient in grads.items():
        for _ in range(2):
            direction = rng.normal(size=gradient.shape)

            def moved(step, path=path, direction=direction):
                move = lambda where, leaf: leaf + step * direction if where == path else leaf  # noqa: E731
                return plain_loss(*jax.tree_util.tree_map_with_path(move, (wide, inputs)))

            slope = (np.asarray(gradient, np.float64) * direction).sum()
            np.testing.assert_allclose(
                slope, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-3, atol=1e-4, err_msg=str(path)
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_in_bfloat16_stay_within_their_roundings(name):
    """Beside those in float32 of the same numbers, all of which bfloat16 holds; routers are float32, and so choose the same."""
    layer, routing = OPTIONS[name]
    spec = RoutingSpec(**{"capacity_factor": 2.0, **routing})
    _, params = make(layer)
    inputs, target_BSD = given()

    def held(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16).astype(jnp.float32), tree)

    params, inputs, gradients = held(params), held(inputs), []
    for dtype in (jnp.float32, jnp.bfloat16):
        layers = partial(MoE, WIDTH, 12, EXPERTS, **layer, dtype=dtype)
        graphdef, _, _ = param.split(nnx.eval_shape(lambda layers=layers: layers(rngs=nnx.Rngs(0))))

        def loss(params, inputs, graphdef=graphdef, dtype=dtype):
            context = RouterContext(inputs["tokens"], inputs["start"], inputs["time"])
            out_BSD, stats = nnx.merge(graphdef, params)(inputs["x"].astype(dtype), spec, context)
            return (out_BSD.astype(jnp.float32) * target_BSD).sum() + sum(stats.losses.values()), stats.experts_BS

        gradients.append(jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, inputs))
    (exact, experts_BS), (near, experts_too_BS) = gradients
    np.testing.assert_array_equal(experts_too_BS, experts_BS)
    for (where, wanted), (_, found) in zip(named_leaves(exact), named_leaves(near), strict=True):
        error, size = np.abs(np.asarray(found - wanted)).max(), np.abs(np.asarray(wanted)).max()
        assert error <= 8 * ROUNDING * size, (where, error / size if size else error)


@pytest.mark.parametrize("make_scores", [softmax_scores, tied_scores, duplicated_scores])
@pytest.mark.parametrize(("groups", "tokens", "experts", "room"), SIZES)
@pytest.mark.parametrize(("choices", "gate"), [(1, "score"), (2, "normalized"), (2, "score"), (3, "normalized")])
def test_top_k_equals_plain_loops(groups, tokens, experts, room, choices, gate, make_scores):
    if choices > experts:
        choices = experts
    scores_GSE = make_scores(groups, tokens, experts)
    found = jax.jit(top_k, static_argnums=(1, 2, 3))(scores_GSE, room, choices, gate)
    aux = []
    refused = 0
    for g, scores_SE in enumerate(np.asarray(scores_GSE, np.float64)):
        chosen, asked_E = plain.served(scores_SE, room, choices)
        refused += choices * tokens - len(chosen)
        experts_S = np.bincount([token for token, _, _ in chosen], minlength=tokens)
        np.testing.assert_array_equal(found.experts_GS[g], experts_S)
        gates = {(token, expert): scores_SE[token, expert] for token, expert, _ in chosen}
        if gate == "normalized":
            gates = {
                (token, expert): scores_SE[token, expert] / scores_SE[token, theirs].sum()
                for token, expert, theirs in chosen
            }
        ours = {
            (int(token), expert): float(gate)
            for expert in range(experts)
            for token, gate in zip(found.index_GEC[g, expert], found.gate_GEC[g, expert], strict=True)
            if gate
        }
        assert ours == pytest.approx(gates, rel=1e-5)
        share_E = (scores_SE / scores_SE.sum(-1, keepdims=True)).mean(0)
        aux.append(experts * (asked_E / asked_E.sum() * share_E).sum())
    np.testing.assert_allclose(found.aux_loss, np.mean(aux), rtol=1e-5)
    np.testing.assert_allclose(found.dropped, refused / (choices * groups * tokens), atol=1e-6)


def test_top_2_normalized_is_gshards_but_for_its_balance():
    scores_GSE = softmax_scores(2, 16, 4)
    ours = rules.route(scores_GSE, RoutingSpec("top_k", 1.5, top_k=2, gate="normalized"))
    theirs = rules.route(scores_GSE, RoutingSpec("token_choice", 1.5))
    for name in ("index_GEC", "gate_GEC", "experts_GS", "dropped"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_every_rule_is_in_the_table():
    assert set(rules.RULES) == set(RoutingKind.__args__) - {"dense"}


def test_scores_of_logits():
    logits_GSE = np.random.default_rng(0).normal(size=(2, 5, 3))
    np.testing.assert_allclose(scores.scores(logits_GSE, "sigmoid"), 1 / (1 + np.exp(-logits_GSE)), rtol=1e-6)
    np.testing.assert_array_equal(scores.scores(logits_GSE, "identity"), logits_GSE)
    weights = np.exp(logits_GSE)
    np.testing.assert_allclose(scores.scores(logits_GSE), weights / weights.sum(-1, keepdims=True), rtol=1e-6)


def test_cosines_do_not_depend_on_lengths_and_zeros_have_a_gradient():
    rng = np.random.default_rng(0)
    x_GSD, w_DE = rng.normal(size=(1, 3, 4)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    cosines = scores.logits(x_GSD, w_DE, "cosine")
    for token in range(3):
        for expert in range(2):
            a, b = x_GSD[0, token].astype(float), w_DE[:, expert].astype(float)
            assert float(cosines[0, token, expert]) == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), rel=1e-5)
    np.testing.assert_allclose(scores.logits(5 * x_GSD, w_DE * [[2, 3]], "cosine"), cosines, rtol=1e-5)
    grad = jax.grad(lambda x: scores.logits(x, w_DE, "cosine").sum())(jnp.zeros((1, 1, 4)))
    assert np.isfinite(grad).all()


def test_losses_by_hand():
    """Two tokens of one group, two experts: the first takes both, the second the second."""
    logits_GSE = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 1.0]]]))
    assert float(losses.z_loss(logits_GSE)) == pytest.approx((math.log(4) ** 2 + math.log(2) ** 2) / 2, rel=1e-6)
    taken = slots.Routing(
        jnp.array([[[0, 1], [1, 0]]]), jnp.array([[[0.5, 0.5], [0.5, 0.0]]]), *(jnp.zeros(()) for _ in range(3))
    )
    np.testing.assert_array_equal(losses.taken(taken, 2), [[[1, 0], [1, 1]]])
    # M' = [[2, 1], [1, 1]]: W = [[2 * 2 / 3, 2 * 1 / 2], [1, 2 / 3]]; P' = [[13 / 16, 7 / 16], [7 / 16, 5 / 16]].
    wanted = (4 / 3 * 13 / 16 + 7 / 16 + 7 / 16 + 2 / 3 * 5 / 16) / 2
    assert float(losses.similarity(logits_GSE, taken)) == pytest.approx(wanted, rel=1e-5)


def test_a_negative_gate_is_told_and_an_empty_slot_is_not():
    zero = jnp.zeros(())
    taken = slots.Routing(jnp.array([[[1, 0]]]), jnp.array([[[-0.5, 0.0]]]), zero, zero, zero)
    np.testing.assert_array_equal(slots.gates_by_token(taken, 2, leaves_empty=True), [[[np.nan], [-0.5]]])


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_costs_what_is_built_and_traced(name):
    layer, routing = OPTIONS[name]
    spec = RoutingSpec(**{"capacity_factor": 2.0, **routing, "similarity_weight": 0.0})
    tokens = 8  # of four experts: as many slots as the factor says
    spread = spec.routing == "expert_race" and not spec.by_threshold  # what is computed, filled or not
    factor = spec.capacity_factor * (spec.most if spread else 1)
    cost = MoE.cost(WIDTH, 12, EXPERTS, **layer, load=Load(tokens, 3, factor))
    context = RouterContext(*(jnp.zeros((1, tokens, WIDTH)) for _ in range(2)), jnp.zeros((1, WIDTH)))
    assert (cost.params, cost.flops) == counted(
        partial(MoE, WIDTH, 12, EXPERTS, **layer), (1, tokens, WIDTH), spec, context
    )
    router = WIDTH * EXPERTS * (2 if layer.get("reads") == "normed_time" else 1)
    products = 3 if layer.get("activation") == "swiglu" else 2
    biases = (12 * (products - 1) + WIDTH) if layer.get("bias") else 0
    expert = products * WIDTH * 12 + biases
    shared = layer.get("shared", 0)
    always = products * WIDTH * shared + ((shared * (products - 1) + WIDTH) if shared and layer.get("bias") else 0)
    rule = rules.RULES[spec.routing]
    always += EXPERTS * bool(layer.get("thresholds")) + EXPERTS * bool(layer.get("biases"))
    always += (WIDTH * WIDTH + WIDTH + WIDTH * EXPERTS + EXPERTS) if rule.predicts else 0
    assert cost.activated == router + round(factor * expert) + always


@pytest.mark.parametrize("name", [name for name, (_, routing) in OPTIONS.items() if "by_threshold" not in routing])
def test_every_option_is_compiled_to_no_more_than_its_theory(name, monkeypatch):
    """All that XLA counts, the little beside products too: a router's softmax, gates, activations. Others: `test_rows.py`."""
    monkeypatch.setattr(experts, "in_turn", experts.at_once)  # of a loop it counts one turn
    layer, routing = OPTIONS[name]
    spec = RoutingSpec(**{"capacity_factor": 2.0, **routing})
    sizes, tokens = (256, 512, 8), 512
    layer = layer | ({"shared": 16 * layer["shared"]} if "shared" in layer else {})
    factor = spec.capacity_factor * (spec.most if spec.routing == "expert_race" else 1)
    theory = MoE.cost(*sizes, **layer, load=Load(tokens, 3, factor)).flops
    graphdef, state = nnx.split(nnx.eval_shape(lambda: MoE(*sizes, **layer, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    x_BSD = jnp.zeros((1, tokens, 256))

    def run(state, x_BSD):
        out_BSD, stats = nnx.merge(graphdef, state)(x_BSD, spec, RouterContext(x_BSD, x_BSD, x_BSD[:, 0]))
        return out_BSD, stats.losses

    counted = jax.jit(run).lower(state, x_BSD).compile().cost_analysis()["flops"]
    assert 0.99 * theory < counted < 1.02 * theory
