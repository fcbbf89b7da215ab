"""Which real picture a drawn one is nearest to, by hand; ties are no hits."""

import math
import types

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.evaluators.base import Example
from ec_dit.evaluators.nearest import Suite

GREYS = (0, 100, 200, 220)


def flat(grey):
    return np.full((4, 4, 3), grey, np.uint8)


def facts(greys=GREYS, splits=("train", "validation")):
    examples = [Example(f"grey {grey}", flat(grey)) for grey in greys]
    return types.SimpleNamespace(
        splits=splits, size=lambda split: len(examples), examples=lambda split, count: examples[:count]
    )


def test_ranks_by_hand():
    suite = Suite().make(facts())
    assert [prompt.text for prompt in suite.wanted.each] == [f"grey {grey}" for grey in GREYS]
    found = suite.score(iter([flat(10), flat(160), flat(205), flat(40)]))
    # 160 is 40 from 200, and 60 from the 100 that was asked for and from 220; 40 is nearest to 0, then 100, 200.
    assert [row["rank"] for row in found.rows] == [0, 2, 0, 3]
    assert found.score == 0.5 and found.count == 4
    assert found.parts["first_5"] == 1 and found.parts["rank"] == 1 and found.parts["chance"] == 0.25
    squares = [(10 / 255) ** 2, (60 / 255) ** 2, (5 / 255) ** 2, (180 / 255) ** 2]
    assert found.parts["distance"] == pytest.approx(np.mean(squares), rel=1e-5)
    assert 0 < found.error < 1 and found.sheet is not None


def test_fewer_captions_are_compared_with_all_pictures():
    suite = Suite(most=1).make(facts())
    found = suite.score(iter([flat(90)]))
    assert [row["rank"] for row in found.rows] == [1] and found.choices["compared"] == 4
    assert math.isnan(found.error)


def test_what_is_not_there_is_named():
    with pytest.raises(UserError, match="no split 'novel' in the run's data; it has train, validation"):
        Suite(split="novel").make(facts())
    with pytest.raises(UserError, match="no two pictures"):
        Suite().make(facts(GREYS[:1]))
