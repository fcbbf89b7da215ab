"""Scores of answers: by hand, and against plain loops over rows that do what the two official scripts do, on random graphs."""

import csv
import math
import random
from dataclasses import replace

import pytest

from ec_dit.core.errors import UserError
from ec_dit.judges import questions as judge
from ec_dit.judges.answers import check, read_answers, write_answers
from ec_dit.judges.questions import Score, is_yes, score_item
from ec_dit.layouts.questions import Item, Question

KINDS = ["entity - whole", "entity - part", "attribute - color", "relation - non-spatial", "global - ", "other - count"]


def item(name, *parents, kinds=("entity - whole",)):
    """An item whose questions 1, 2, ... have these parents."""
    kinds = [kinds[i % len(kinds)] for i in range(len(parents))]
    return Item(
        name,
        f"prompt of {name}",
        tuple(
            Question(i, f"Question {i}, of {name}?", its, kind.partition(" ")[0], kind.partition("- ")[2] or "-", kind)
            for i, (its, kind) in enumerate(zip(parents, kinds, strict=True), 1)
        ),
    )


def said(text):
    """Answers to questions 1, 2, ... from letters."""
    return {i: {"y": "yes", "n": "no"}[letter] for i, letter in enumerate(text, 1)}


@pytest.mark.parametrize(
    ("parents", "answers", "dsg", "dpg", "without"),
    [
        ([(), (1,), (2,)], "nyy", 1 / 3, 0, 2 / 3),  # a chain: DSG looks at 2's own yes, DPG at the point it lost to 1
        (
            [(2,), (3,), ()],
            "yyn",
            1 / 3,
            1 / 3,
            2 / 3,
        ),  # the same chain in the other order: 1 is asked before 2 loses its
        ([(), (1,), (1,), (3,)], "ynyy", 3 / 4, 3 / 4, 3 / 4),
        ([(), (1,), (1, 2)], "yny", 1 / 3, 1 / 3, 2 / 3),  # one parent of two is enough
        ([(1,), (3,), (2,)], "yyy", 1, 1, 1),  # itself; a circle
        ([(1,), (3,), (2,)], "nyn", 0, 0, 1 / 3),
        ([()], "n", 0, 0, 0),
    ],
)
def test_an_item_by_hand(parents, answers, dsg, dpg, without):
    made = item("a", *parents)
    for rule, expected in (("dsg", dsg), ("dpg", dpg)):
        score = score_item(made, said(answers), rule)
        assert score.score == pytest.approx((expected, without))
        assert [score.right[i] for i in score.right] == [letter == "y" for letter in answers]
        assert sum(map(score.counts, score.right)) == pytest.approx(expected * len(answers))


def test_what_is_valid_by_hand():
    chain = item("a", (), (1,), (2,))
    assert score_item(chain, said("nyy")).valid == {1: True, 2: False, 3: True}
    assert score_item(chain, said("nyy"), "dpg").valid == {1: True, 2: False, 3: False}


def test_which_answers_are_yes():
    yes = ["yes", "Yes", " YES\n"]
    no = ["no", "", "yes, it is", "yes 1000", "yeah", "y", "true", "not yes"]
    assert [is_yes(answer) for answer in yes + no] == [True] * 3 + [False] * 8


def test_dsg_by_hand():
    items = [
        item("whoops_1", (), (1,), kinds=("entity - whole", "attribute - color")),
        item("vrd_1", (), (1,), (1,), (), kinds=("relation - spatial", "other - count")),
        item("vrd_2", ()),
        item("mine", (), (1,), kinds=("global - ",)),
    ]
    answers = {"whoops_1": said("ny"), "vrd_1": said("yyny"), "vrd_2": said("n"), "mine": said("yy")}
    scores = judge.dsg(items, answers)
    assert scores.total == pytest.approx(((0 + 3 / 4 + 0 + 1) / 4, (1 / 2 + 3 / 4 + 0 + 1) / 4))
    assert scores.sources == {"defying": Score(0, 1 / 2), "relation": Score(3 / 8, 3 / 8)}
    expected = {"entity": (0, 0), "attribute": (2 / 3, 1), "relation": (1 / 2, 1 / 2), "global": (1, 1)}
    assert scores.categories == {name: pytest.approx(pair) for name, pair in expected.items()}
    assert scores.lacking == ()


@pytest.mark.parametrize("given", [{}, said("yyy")])
def test_an_item_that_lacks_a_question_counts_nothing_whatever_is_answered(given):
    flawed = item("tifa160_134", (4,), (), (1,))
    scores = judge.dsg(
        [flawed, item("tifa160_1", ())], {"tifa160_1": said("y")} | ({"tifa160_134": given} if given else {})
    )
    assert scores.total == scores.sources["tifa"] == (1 / 2, 1 / 2)
    assert scores.categories == {"entity": (1, 1)}
    assert scores.lacking == ("tifa160_134",)


def test_dpg_by_hand():
    items = [item("a", (), ()), item("b", (), (1,), (2,), kinds=("attribute - color", "attribute - size", "global - "))]
    tiles = [
        {"a": said("yn"), "b": said("yyy")},  # 1/2, 1
        {"a": said("yy"), "b": said("nyy")},  # 1, 0
    ]
    scores = judge.dpg(items, tiles)
    assert scores.ours.total == pytest.approx(100 * (3 / 4 + 1 / 2) / 2)
    assert scores.ours.level_1 == {"entity": 75, "attribute": 50, "global": 50}
    assert scores.ours.level_2 == {
        "entity - whole": 75,
        "attribute - color": 50,
        "attribute - size": 50,
        "global - ": 50,
    }
    # The script has no first question of 'a', so that the tiles of 'a' give 0 and 1; its categories are the second tile's.
    assert scores.official.total == pytest.approx(100 * (1 / 2 + 1 / 2) / 2)
    assert scores.official.level_1 == {"entity": 100, "attribute": 50, "global": 100}
    assert scores.official.level_2 == {
        "entity - whole": 100,
        "attribute - color": 0,
        "attribute - size": 100,
        "global - ": 100,
    }
    assert scores.lost == ()


def test_the_official_script_loses_the_first_image_where_others_ask_for_its_first_question():
    items = [item("a", (), (1,)), item("b", ())]
    scores = judge.dpg(items, [{"a": said("yy"), "b": said("n")}])
    assert (scores.ours.total, scores.official.total, scores.lost) == (50, 0, ("a",))
    # A no to another parent, which the script asks first, ends its look at the parents.
    items = [item("a", (), (), (2, 1)), item("b", ())]
    for answers, lost in (("yny", ()), ("yyy", ("a",))):
        assert judge.dpg(items, [{"a": said(answers), "b": said("y")}]).lost == lost
    for only in (item("a", ()), item("a", (), (1,))):
        scores = judge.dpg([only], [{"a": {question.id: "yes" for question in only.questions}}])
        assert scores.ours.total == 100 and math.isnan(scores.official.total) and scores.lost == ("a",)


def random_items(rng, count, upward=False):
    """Items of 1 to 9 questions in a shuffled order, with up to three parents each, themselves and later ones among them."""
    items = []
    for n in range(count):
        size = rng.randint(1, 9)
        order = rng.sample(range(1, size + 1), size)
        questions = []
        for place, number in enumerate(order):
            choice = order[:place] if upward else order
            parents = tuple(rng.choice(choice) for _ in range(rng.choice([0, 0, 1, 1, 2, 3]))) if choice else ()
            kind = rng.choice(KINDS)
            questions.append(Question(number, f"q{number}", parents, "broad", "", kind))
        items.append(Item(f"{rng.choice(['vrd', 'stanford_paragraph', 'mine'])}_{n}", "a prompt", tuple(questions)))
    return items


def random_answers(rng, items, yes=0.7):
    return {
        each.id: {
            question.id: "yes" if rng.random() < yes else rng.choice(["no", "", "no bus"])
            for question in each.questions
        }
        for each in items
    }


def test_random_items_equal_a_loop_for_dsg():
    """In the loop a question has a mark for its own yes, and a point for a mark whose parents all have theirs."""
    rng = random.Random(0)
    items = random_items(rng, 300)
    answers = random_answers(rng, items)
    differ = 0
    for each in items:
        marks = {question.id: float(answers[each.id][question.id] == "yes") for question in each.questions}
        points = dict(marks)
        for question in each.questions:
            for parent in question.parents:
                if marks[parent] == 0:
                    points[question.id] = 0
        expected = (sum(points.values()) / len(points), sum(marks.values()) / len(marks))
        score = score_item(each, answers[each.id])
        assert score.score == pytest.approx(expected)
        differ += score.score != score_item(each, answers[each.id], "dpg").score
    assert differ > 20
    assert judge.dsg(items, answers).total.with_dependency == pytest.approx(
        sum(score_item(each, answers[each.id]).score.with_dependency for each in items) / len(items)
    )


def script(rows, tiles):
    """What DPG-Bench's script does with csv rows: (total, level 1, level 2, images that fail)."""
    images = {}
    for row in rows[1:]:
        images.setdefault(row["item"], []).append(row)
    totals, marks, failed = [], [], []
    for name in dict.fromkeys(row["item"] for row in rows):
        per_tile, own = [], {}
        try:
            for answers in tiles:
                points = {row["number"]: float(answers[name][row["number"]] == "yes") for row in images[name]}
                own = dict(points)
                for row in images[name]:
                    for parent in row["parents"]:
                        if points[parent] == 0:
                            points[row["number"]] = 0.0
                            break
                per_tile.append(sum(points.values()) / len(points))
        except KeyError:
            failed.append(name)
            continue
        totals.append(sum(per_tile) / len(per_tile))
        marks += [(row["kind"], own[row["number"]]) for row in images[name]]
    levels = []
    for cut in (lambda kind: kind.split("-")[0].strip(), lambda kind: kind):
        values = {}
        for kind, mark in marks:
            values.setdefault(cut(kind), []).append(mark)
        levels.append({name: 100 * sum(its) / len(its) for name, its in values.items()})
    return 100 * sum(totals) / len(totals), *levels, failed


@pytest.mark.parametrize("count", [1, 4])
def test_random_items_equal_a_loop_for_dpg(count):
    rng = random.Random(count)
    lost = 0
    for trial in range(100):
        items = random_items(rng, 4, upward=trial % 2 == 0)
        tiles = [random_answers(rng, items) for _ in range(count)]
        rows = [
            {"item": each.id, "number": question.id, "parents": question.parents, "kind": question.level_2}
            for each in items
            for question in each.questions
        ]
        scores = judge.dpg(items, tiles)
        total, level_1, level_2, failed = script(rows, tiles)
        assert scores.official.total == pytest.approx(total)
        assert scores.official.level_1 == pytest.approx(level_1)
        assert scores.official.level_2 == pytest.approx(level_2)
        assert list(scores.lost) == failed
        lost += len(failed)
        # With a row in front that it may skip, the script's total is ours.
        assert scores.ours.total == pytest.approx(script([{"item": items[0].id}, *rows], tiles)[0])
    assert 10 < lost < 100


def test_categories_of_dpg_are_means_over_tiles_after_the_rule():
    rng = random.Random(5)
    items = random_items(rng, 50)
    tiles = [random_answers(rng, items) for _ in range(4)]
    points = {}
    for answers in tiles:
        for each in items:
            score = score_item(each, answers[each.id], "dpg")
            for question in each.questions:
                points.setdefault(question.level_2, []).append(score.right[question.id] and score.valid[question.id])
    expected = {name: 100 * sum(its) / len(its) for name, its in points.items()}
    assert judge.dpg(items, tiles).ours.level_2 == pytest.approx(expected)


def test_pictures_of_other_captions_give_chance():
    """A caption names four colours out of two, and a picture shows its own caption's: another's agree by chance."""
    rng = random.Random(7)
    items = [replace(item("", (), (1,), (1, 2), (3, 3)), id=f"vrd_{n}") for n in range(1000)]
    colors = {each.id: [rng.choice(["red", "blue"]) for _ in range(4)] for each in items}

    def total(shown):
        """The score where the picture of an item shows the colours of the item at the same place of `shown`."""
        pairs = zip(items, shown, strict=True)
        answers = {
            each.id: {
                i: "yes" if wanted == seen else "no"
                for i, (wanted, seen) in enumerate(zip(colors[each.id], colors[other.id], strict=True), 1)
            }
            for each, other in pairs
        }
        return judge.dsg(items, answers).total

    assert total(items) == (1, 1)
    expected = ((1 / 2 + 1 / 4 + 1 / 8 + 1 / 4) / 4, 1 / 2)
    assert total([*items[1:], items[0]]) == pytest.approx(expected, abs=0.02)


TABLE = """dsg_prompt_split,qg_model,t2i_model,item_id,question,question_id,dependency_id,answer
vrd,dsg,one,vrd_1,"Is it, there?",1,0,yes
vrd,dsg,two,vrd_1,"Is it, there?",1,0,
vrd,dsg,one,vrd_1,Is it red?,2,1,"no, ""it"" is blue"
"""


def test_a_released_table(tmp_path):
    (tmp_path / "answers.csv").write_text(TABLE)
    assert read_answers(tmp_path / "answers.csv") == {
        "one": {"vrd_1": {1: "yes", 2: 'no, "it" is blue'}},
        "two": {"vrd_1": {1: ""}},
    }


def test_tables_come_back(tmp_path):
    rng = random.Random(1)
    items = random_items(rng, 20)
    tiles = {f"model, tile {i}": random_answers(rng, items) for i in range(4)}
    for each, text in zip(items, ('odd,\n"answer"\r\n\u00e9', "a\rb", " yes ", '"', ""), strict=False):
        tiles["model, tile 0"][each.id][each.questions[0].id] = text
    write_answers(tmp_path / "answers.csv", items, tiles)
    assert read_answers(tmp_path / "answers.csv") == tiles
    assert [path.name for path in tmp_path.iterdir()] == ["answers.csv"]
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    parents = {(each.id, str(question.id)): question.parents for each in items for question in each.questions}
    assert all(
        row["dependency_id"] == (",".join(map(str, parents[row["item_id"], row["question_id"]])) or "0") for row in rows
    )
    assert {row["dsg_prompt_split"] for row in rows} == {"vrd", "stanford_paragraph", "mine"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE.replace("question_id", "number"), ":1: the header must name column question_id once"),
        (TABLE.replace(",2,1,", ",second,1,"), ":4: question_id is 'second', not a whole number"),
        (TABLE.replace(",2,1,", ",1,1,"), ":4: question 1 of item vrd_1 has two answers for one"),
        (TABLE.splitlines()[0], " has no rows"),
    ],
)
def test_a_damaged_table_is_told(tmp_path, text, message):
    (tmp_path / "answers.csv").write_text(text)
    with pytest.raises(UserError, match=r"answers\.csv" + message):
        read_answers(tmp_path / "answers.csv")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": said("yy")}, "table: 1 of 3 answers are missing, first that of item b, question 1"),
        ({"a": {2: "no"}, "b": said("y")}, "table: 1 of 3 answers are missing, first that of item a, question 1"),
        ({"a": said("yyy"), "b": said("y")}, "table: item a, question 3 is none of those asked"),
        ({"a": said("yy"), "b": said("y"), "c": said("y")}, "table: item c, question 1 is none of those asked"),
    ],
)
def test_answers_that_are_not_those_of_the_questions_are_told(tmp_path, given, message):
    items = [item("a", (), ()), item("b", ())]
    for call in (
        lambda: check(items, given, "table"),
        lambda: judge.dsg(items, given, "table"),
        lambda: write_answers(tmp_path / "answers.csv", items, {"table": given}),
    ):
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(UserError, match=message.replace("table", "table, tile 2")):
        judge.dpg(items, [{"a": said("yy"), "b": said("y")}, given], "table")
    assert not list(tmp_path.iterdir())
