"""What is said of routers that do badly: once, with what helps, and again when the trouble comes back."""

import math

import pytest

from ec_dit.train.health import RouterHealth


def test_routers_that_do_well_are_not_spoken_of():
    health = RouterHealth(8)
    fine = {"router/untaken/0": 0.3, "router/dropped/0": 0.0, "router/gate_entropy/0": 0.9, "loss": 99.0}
    assert health(fine) == health(fine | {"router/untaken/1": 0.5}) == []
    assert RouterHealth(0)({"loss": 1.0}) == []


@pytest.mark.parametrize(
    ("by_tokens", "name", "value", "words"),
    [
        (False, "untaken", 0.62, ("no expert takes 62% of the tokens", "moe.z_weight", "python -m ec_dit.routing")),
        (True, "untaken", 0.62, ("62% of tokens get no expert", "moe.aux_weight")),
        (True, "dropped", 0.75, ("75% of tokens' requests find no slot", "moe.bias_rate")),
        (False, "gate_entropy", 0.01 * math.log(8), ("entropy 1.0% of the largest", "moe.z_weight")),
    ],
)
def test_a_trouble_is_told_once_with_what_helps(by_tokens, name, value, words):
    health, figure = RouterHealth(8, by_tokens=by_tokens), f"router/{name}/3"
    (line,) = health({figure: value})
    assert line.startswith("warning: sparse block 3: ")
    assert all(word in line for word in words)
    assert health({figure: value}) == []
    assert len(health({figure: value, figure.replace("3", "4"): value})) == 1  # of another block
    near = {"gate_entropy": 0.021 * math.log(8)}.get(name, 0.49)  # not well yet
    assert health({figure: near}) == health({figure: value}) == []
    well = {"gate_entropy": 0.1 * math.log(8)}.get(name, 0.1)
    assert health({figure: well}) == []
    assert len(health({figure: value})) == 1


def test_keys_that_are_named_exist():
    from ec_dit.config import KEYS

    said = [
        RouterHealth(8, by_tokens=by)({"router/untaken/0": 0.9, "router/dropped/0": 0.9, "router/gate_entropy/0": 0.0})
        for by in (False, True)
    ]
    words = {word.strip(".,;:") for lines in said for line in lines for word in line.split()}
    named = {word for word in words if word.startswith(("moe.", "optimizer."))}
    assert len(named) >= 4 and named <= KEYS.keys()


def test_entropies_of_other_scores_say_nothing():
    assert RouterHealth(8, "identity")({"router/gate_entropy/0": 0.0}) == []
