"""Routing rules against plain loops over experts and tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.nn.routing import expert_choice as by_experts
from ec_dit.nn.routing import token_choice as by_tokens
from ec_dit.nn.routing.rules import route
from ec_dit.nn.routing.spec import RoutingSpec, capacity, check_capacity, group_tokens

expert_choice = jax.jit(by_experts.expert_choice, static_argnums=(1, 2))
token_choice = jax.jit(by_tokens.token_choice, static_argnums=1)

# (groups, tokens per group, experts, tokens per expert)
SIZES = [
    (1, 4, 2, 1),
    (1, 4, 2, 4),
    (2, 8, 4, 2),
    (3, 16, 4, 8),
    (1, 32, 8, 8),
    (2, 24, 3, 16),
    (4, 6, 2, 3),
    (1, 64, 16, 8),
]
FEW = [0.1, 0.2, 0.3]  # so few different scores that most of them tie


def softmax_scores(groups, tokens, experts, seed=0):
    weights = np.exp(np.random.default_rng(seed).normal(size=(groups, tokens, experts)))
    return jnp.asarray(weights / weights.sum(-1, keepdims=True), jnp.float32)


def tied_scores(groups, tokens, experts, seed=0):
    return jnp.asarray(np.random.default_rng(seed).choice(np.float32(FEW), size=(groups, tokens, experts)))


def duplicated_scores(groups, tokens, experts, seed=0):
    """Every token twice, half a group apart, and the last expert as good as the first."""
    half_GSE = np.random.default_rng(seed).normal(size=(groups, tokens // 2, experts))
    half_GSE[..., -1] = half_GSE[..., 0]
    weights = np.exp(np.tile(half_GSE, (1, 2, 1)))
    return jnp.asarray(weights / weights.sum(-1, keepdims=True), jnp.float32)


def plain_expert_choice(scores_SE, slots):
    """Algorithm 1 for one group: each expert's tokens, best first, among equals the first."""
    taken = []
    for expert in range(scores_SE.shape[1]):
        free = list(range(scores_SE.shape[0]))
        row = []
        for _ in range(slots):
            best = free[0]
            for token in free:
                if scores_SE[token, expert] > scores_SE[best, expert]:
                    best = token
            free.remove(best)
            row.append(best)
        taken.append(row)
    return np.array(taken)


def plain_top2(scores_SE, slots):
    """GShard's Algorithm 1 for one group, without the random second choice.

    Returns: the token (-1: none) and the gate of each slot, the number of experts of each token, the number of requests
    refused, and the auxiliary loss scaled to be 1 when balanced.
    """
    tokens, experts = scores_SE.shape
    token_of, gate_of = -np.ones((experts, slots), int), np.zeros((experts, slots))
    count, experts_of, refused = [0] * experts, np.zeros(tokens, int), 0
    ranked = [sorted(range(experts), key=lambda e, s=s: (-scores_SE[s, e], e)) for s in range(tokens)]
    first_choices = [0] * experts
    for choice in range(2):
        for s in range(tokens):
            first, second = scores_SE[s, ranked[s][0]], scores_SE[s, ranked[s][1]]
            expert, gate = ranked[s][choice], (first, second)[choice] / (first + second)
            if count[expert] < slots:
                token_of[expert, count[expert]], gate_of[expert, count[expert]] = s, gate
                count[expert] += 1
                experts_of[s] += 1
            else:
                refused += 1
            if choice == 0:
                first_choices[expert] += 1
    aux = experts * sum(first_choices[e] / tokens * scores_SE[:, e].mean() for e in range(experts))
    return token_of, gate_of, experts_of, refused, aux


@pytest.mark.parametrize("make_scores", [softmax_scores, tied_scores, duplicated_scores])
@pytest.mark.parametrize(("groups", "tokens", "experts", "slots"), SIZES)
def test_expert_choice_equals_algorithm_1(groups, tokens, experts, slots, make_scores):
    scores_GSE = make_scores(groups, tokens, experts)
    taken = expert_choice(scores_GSE, slots)
    assert taken.index_GEC.shape == taken.gate_GEC.shape == (groups, experts, slots)
    assert taken.gate_GEC.dtype == jnp.float32
    for g, scores_SE in enumerate(np.asarray(scores_GSE)):
        expected_EC = plain_expert_choice(scores_SE, slots)
        np.testing.assert_array_equal(taken.index_GEC[g], expected_EC)
        for expert, row in enumerate(expected_EC):
            np.testing.assert_array_equal(taken.gate_GEC[g, expert], scores_SE[row, expert])
            assert len(set(row.tolist())) == slots  # exactly C different tokens
        np.testing.assert_array_equal(taken.experts_GS[g], np.bincount(expected_EC.ravel(), minlength=tokens))
    assert taken.dropped == taken.aux_loss == 0


@pytest.mark.parametrize("make_scores", [tied_scores, duplicated_scores])
@pytest.mark.parametrize(("groups", "tokens", "experts", "slots"), SIZES)
def test_gradients_of_expert_choice_go_to_the_first_of_equals(groups, tokens, experts, slots, make_scores):
    scores_GSE = make_scores(groups, tokens, experts)
    weight_GEC = np.random.default_rng(1).normal(size=(groups, experts, slots)).astype(np.float32)
    gradient_GSE = jax.jit(jax.grad(lambda scores: (expert_choice(scores, slots).gate_GEC * weight_GEC).sum()))(
        scores_GSE
    )
    expected_GSE = np.zeros(scores_GSE.shape, np.float32)  # a gate is a score, and no other score has a part in it
    for g, scores_SE in enumerate(np.asarray(scores_GSE)):
        for expert, row in enumerate(plain_expert_choice(scores_SE, slots)):
            expected_GSE[g, row, expert] = weight_GEC[g, expert]
    np.testing.assert_array_equal(gradient_GSE, expected_GSE)


@pytest.mark.parametrize(("groups", "tokens", "experts", "slots"), SIZES)
def test_normalized_gates_add_up_to_one_on_every_token_taken(groups, tokens, experts, slots):
    scores_GSE = softmax_scores(groups, tokens, experts)
    plain, normal = (expert_choice(scores_GSE, slots, gate) for gate in ("score", "normalized"))
    np.testing.assert_array_equal(normal.index_GEC, plain.index_GEC)
    for group in range(groups):
        scores_SE, index_EC = np.asarray(scores_GSE[group]), np.asarray(plain.index_GEC[group])
        for expert in range(experts):
            for slot, token in enumerate(index_EC[expert]):
                takers = [e for e in range(experts) if token in index_EC[e]]
                share = scores_SE[token, expert] / sum(scores_SE[token, e] for e in takers)
                assert float(normal.gate_GEC[group, expert, slot]) == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("spread", [12, 30, 60, 200])
def test_normalized_gates_stay_finite_where_scores_vanish(spread):
    """Some experts score next to nothing on every token, and have to take tokens all the same."""
    rng = np.random.default_rng(spread)
    logits_GSE = jnp.asarray(rng.normal(size=(2, 32, 8)) + spread * rng.normal(size=(1, 1, 8)), jnp.float32)
    weight_GEC = jnp.asarray(rng.normal(size=(2, 8, 8)), jnp.float32)

    def loss(logits_GSE):
        found = by_experts.expert_choice(jax.nn.softmax(logits_GSE, axis=-1), 8, "normalized")
        return (found.gate_GEC * weight_GEC).sum(), found

    (_, found), grad_GSE = jax.value_and_grad(loss, has_aux=True)(logits_GSE)
    assert np.isfinite(grad_GSE).all() and np.isfinite(found.gate_GEC).all()
    total_GS = np.zeros((2, 32))
    for group in range(2):
        np.add.at(
            total_GS[group], np.asarray(found.index_GEC[group]).ravel(), np.asarray(found.gate_GEC[group]).ravel()
        )
    np.testing.assert_allclose(total_GS[np.asarray(found.experts_GS) > 0], 1, rtol=1e-5)


def test_gradients_of_normalized_gates_equal_finite_differences():
    scores_GSE = softmax_scores(2, 8, 4)
    weight_GEC = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4)), jnp.float32)

    def loss(scores_GSE):
        return (by_experts.expert_choice(scores_GSE, 4, "normalized").gate_GEC * weight_GEC).sum()

    direction_GSE = jnp.asarray(np.random.default_rng(2).normal(size=scores_GSE.shape), jnp.float32)
    step = 1e-3
    rise = float(loss(scores_GSE + step * direction_GSE) - loss(scores_GSE - step * direction_GSE)) / (2 * step)
    assert float((jax.grad(loss)(scores_GSE) * direction_GSE).sum()) == pytest.approx(rise, rel=1e-2)


def test_expert_choice_by_hand():
    scores_GSE = jnp.array([[[0.9, 0.1], [0.5, 0.5], [0.7, 0.3], [0.5, 0.5]]])
    taken = expert_choice(scores_GSE, 2)
    np.testing.assert_array_equal(taken.index_GEC, [[[0, 2], [1, 3]]])
    np.testing.assert_array_equal(taken.gate_GEC, np.float32([[[0.9, 0.7], [0.5, 0.5]]]))
    np.testing.assert_array_equal(taken.experts_GS, [[1, 1, 1, 1]])


@pytest.mark.parametrize("make_scores", [softmax_scores, tied_scores, duplicated_scores])
@pytest.mark.parametrize(("groups", "tokens", "experts", "slots"), SIZES)
def test_token_choice_equals_gshard(groups, tokens, experts, slots, make_scores):
    scores_GSE = make_scores(groups, tokens, experts)
    taken = token_choice(scores_GSE, slots)
    refused, aux = 0, []
    for g, scores_SE in enumerate(np.asarray(scores_GSE, np.float64)):
        token_of, gate_of, experts_of, refused_here, aux_here = plain_top2(scores_SE, slots)
        filled = token_of >= 0
        np.testing.assert_array_equal(np.asarray(taken.index_GEC[g])[filled], token_of[filled])
        np.testing.assert_allclose(taken.gate_GEC[g], gate_of, rtol=1e-6)
        np.testing.assert_array_equal(taken.experts_GS[g], experts_of)
        refused += refused_here
        aux.append(aux_here)
    np.testing.assert_allclose(taken.dropped, refused / (2 * groups * tokens), atol=1e-6)
    np.testing.assert_allclose(taken.aux_loss, np.mean(aux), rtol=1e-5)


@pytest.mark.parametrize("make_scores", [tied_scores, duplicated_scores])
@pytest.mark.parametrize(("groups", "tokens", "experts", "slots"), SIZES)
def test_gradients_of_token_choice_go_to_the_first_of_equals(groups, tokens, experts, slots, make_scores):
    scores_GSE = make_scores(groups, tokens, experts)
    weight_GEC = np.random.default_rng(1).normal(size=(groups, experts, slots)).astype(np.float32)

    def loss(scores_GSE):
        taken = token_choice(scores_GSE, slots)
        return (taken.gate_GEC * weight_GEC).sum() + taken.aux_loss

    expected_GSE = np.zeros(scores_GSE.shape)
    for g, scores_SE in enumerate(np.asarray(scores_GSE, np.float64)):
        best = [sorted(range(experts), key=lambda e, row=row: (-row[e], e))[:2] for row in scores_SE]
        for expert, row in enumerate(plain_top2(scores_SE, slots)[0]):
            for slot, token in enumerate(row):
                if token < 0:
                    continue
                # A gate is a / (a + b), a the score of this expert and b that of the token's other one.
                (other,) = set(best[token]) - {expert}
                a, b = scores_SE[token, [expert, other]]
                expected_GSE[g, token, [expert, other]] += (
                    weight_GEC[g, expert, slot] * np.array([b, -a]) / (a + b) ** 2
                )
        # The auxiliary loss: E f_e p_e, f_e a constant.
        share_E = np.bincount([first for first, _ in best], minlength=experts) / tokens
        expected_GSE[g] += experts * share_E / (tokens * groups)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(scores_GSE), expected_GSE, rtol=1e-5, atol=1e-5)


def test_token_choice_by_hand():
    # Every token prefers expert 0 and then 1, and each has room for two: tokens 2 and 3 come too late, twice.
    scores_GSE = jnp.array([[[0.6, 0.3, 0.1]] * 4])
    taken = token_choice(scores_GSE, 2)
    np.testing.assert_array_equal(taken.index_GEC[0, :2], [[0, 1], [0, 1]])
    np.testing.assert_allclose(taken.gate_GEC[0], [[2 / 3, 2 / 3], [1 / 3, 1 / 3], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(taken.experts_GS, [[2, 2, 0, 0]])
    np.testing.assert_allclose(taken.dropped, 0.5)
    np.testing.assert_allclose(taken.aux_loss, 3 * 0.6, rtol=1e-6)


def test_first_choices_are_served_before_second_ones():
    # Token 0 wants expert 0 second; tokens 1 and 2 want it first and fill its two slots.
    scores_GSE = jnp.array([[[0.4, 0.6], [0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]])
    taken = token_choice(scores_GSE, 2)
    np.testing.assert_array_equal(taken.index_GEC, [[[1, 2], [0, 3]]])
    np.testing.assert_allclose(taken.gate_GEC, [[[0.9, 0.8], [0.6, 0.7]]], rtol=1e-6)
    np.testing.assert_allclose(taken.dropped, 0.5)


def test_balanced_first_choices_give_an_auxiliary_loss_of_one():
    scores_GSE = jnp.array([[[0.7, 0.3], [0.3, 0.7]]])
    np.testing.assert_allclose(token_choice(scores_GSE, 2).aux_loss, 1, rtol=1e-6)


def test_the_auxiliary_loss_moves_scores_away_from_the_full_expert():
    scores_GSE = jnp.array([[[0.6, 0.3, 0.1]] * 4])
    gradient = jax.jit(jax.grad(lambda scores: token_choice(scores, 2).aux_loss))(scores_GSE)
    # d/d score[s, e] of E sum_e f_e p_e = E f_e / S: the share of first choices is a constant.
    np.testing.assert_allclose(gradient, [[[3 / 4, 0, 0]] * 4], rtol=1e-6)


@pytest.mark.parametrize("rule", [expert_choice, token_choice])
def test_groups_do_not_see_each_other(rule):
    scores_GSE = softmax_scores(3, 16, 4)
    together = rule(scores_GSE, 8)
    for g in range(3):
        alone = rule(scores_GSE[g : g + 1], 8)
        np.testing.assert_array_equal(together.index_GEC[g], alone.index_GEC[0])
        np.testing.assert_array_equal(together.gate_GEC[g], alone.gate_GEC[0])


def test_route_follows_the_spec():
    scores_GSE = softmax_scores(2, 16, 4)
    for kind, rule in (("expert_choice", expert_choice), ("token_choice", token_choice)):
        spec = RoutingSpec(routing=kind, capacity_factor=1.5)  # C = 16 * 1.5 / 4
        by_spec = jax.jit(route, static_argnums=1)(scores_GSE, spec)
        jax.tree.map(np.testing.assert_array_equal, by_spec, rule(scores_GSE, 6))
    normal = jax.jit(route, static_argnums=1)(scores_GSE, RoutingSpec(capacity_factor=1.5, gate="normalized"))
    jax.tree.map(np.testing.assert_array_equal, normal, expert_choice(scores_GSE, 6, "normalized"))


@pytest.mark.parametrize("kind", ["expert_choice", "token_choice"])
def test_a_group_of_any_size_takes_a_capacity_rounded_up(kind):
    scores_GSE = softmax_scores(2, 15, 4)
    taken = jax.jit(route, static_argnums=1)(scores_GSE, RoutingSpec(kind))
    assert taken.index_GEC.shape == (2, 4, 8)  # 15 * 2 / 4 = 7.5
    refused = 0
    for g, scores_SE in enumerate(np.asarray(scores_GSE, np.float64)):
        if kind == "expert_choice":
            expected_EC = plain_expert_choice(scores_SE, 8)
            experts_S, filled_EC = np.bincount(expected_EC.ravel(), minlength=15), np.ones((4, 8), bool)
        else:
            expected_EC, _, experts_S, refused_here, _ = plain_top2(scores_SE, 8)
            refused, filled_EC = refused + refused_here, expected_EC >= 0
        np.testing.assert_array_equal(np.asarray(taken.index_GEC[g])[filled_EC], expected_EC[filled_EC])
        np.testing.assert_array_equal(taken.experts_GS[g], experts_S)
        np.testing.assert_array_equal(np.asarray(taken.gate_GEC[g]) > 0, filled_EC)
    np.testing.assert_allclose(taken.dropped, refused / 60, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "experts", "factor", "slots"),
    [
        (1024, 64, 2.0, 32),
        (512, 32, 1.0, 16),
        (10, 3, 0.3, 1),
        (100, 10, 1.1, 11),  # 100 * 1.1 is more than 110 in floating point
        (70, 70, 1.1, 2),
        (8, 4, 4.0, 8),
        (252, 64, 2.0, 8),
        (257, 64, 2.0, 9),
    ],
)
def test_capacity_is_rounded_up(size, experts, factor, slots):
    assert capacity(size, experts, factor) == slots


def test_capacity_is_at_least_one_token_and_at_most_the_group():
    assert capacity(16, 64, 2.0) == 1
    assert capacity(8, 2, 3.0) == 8


def test_a_whole_capacity_passes():
    check_capacity(1024, 64, 2.0)
    check_capacity(10, 3, 0.3)
    check_capacity(8, 4, 4.0)


@pytest.mark.parametrize(
    ("size", "experts", "factor", "words"),
    [
        (10, 4, 1.0, ("10", "4 experts", "2.5")),
        (16, 64, 2.0, ("16", "64 experts", "0.5")),
        (8, 2, 3.0, ("8", "2 experts", "capacity factor 3", "12")),
        (8, 2, 0.0, ("8", "capacity factor 0", "= 0")),
    ],
)
def test_an_impossible_capacity_names_its_numbers(size, experts, factor, words):
    with pytest.raises(UserError) as error:
        check_capacity(size, experts, factor)
    assert all(word in str(error.value) for word in words), error.value


def test_group_tokens():
    assert group_tokens(4096, 256, 1024) == 1024
    assert group_tokens(4096, 256, 128) == 128
    assert group_tokens(4096, 256, "image") == 256  # one image


@pytest.mark.parametrize("size", [1000, 8192, -4])
def test_groups_that_do_not_divide_name_their_numbers(size):
    with pytest.raises(UserError) as error:
        group_tokens(4096, 256, size)
    assert all(word in str(error.value) for word in (f"groups of {size}", "4096", "16 images x 256"))
