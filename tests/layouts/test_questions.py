"""Files of questions: what is read, which flaws of the official file pass, and the message for every mistake."""

import csv

import pytest

from ec_dit.core.errors import UserError
from ec_dit.layouts.questions import Item, Question, category, read

HEADER = (
    "item_id text keywords proposition_id dependency category_broad category_detailed tuple question_natural_language"
)
SPHERE = (
    "posescript_1",
    "a red sphere, on a box",
    "sphere",
    "1",
    "0",
    "entity",
    "whole",
    "entity - whole (sphere)",
    "Is it?",
)
RED = (
    "posescript_1",
    "a red sphere, on a box",
    "red",
    "2",
    "1",
    "attribute",
    "color",
    "attribute - color (red)",
    "Is it red?",
)
BOX = ("vrd_2", 'a "box"', "box", "1", "0", "global", "-", "global - (box (old), lid)", "A box,\nis it?")


def row(base=SPHERE, **changes):
    return tuple((dict(zip(HEADER.split(), base, strict=True)) | changes).values())


def write(folder, *rows, header=HEADER):
    path = folder / "questions.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(), *rows])
    return path


def parents(path):
    return {item.id: [question.parents for question in item.questions] for item in read(path)}


def test_items_of_a_file(tmp_path):
    assert read(write(tmp_path, SPHERE, RED, BOX)) == [
        Item(
            "posescript_1",
            "a red sphere, on a box",
            (
                Question(1, "Is it?", (), "entity", "whole", "entity - whole"),
                Question(2, "Is it red?", (1,), "attribute", "color", "attribute - color"),
            ),
        ),
        Item("vrd_2", 'a "box"', (Question(1, "A box,\nis it?", (), "global", "-", "global -"),)),
    ]


def test_columns_may_stand_in_any_order_and_beside_others_after_a_byte_order_mark(tmp_path):
    path = write(tmp_path, SPHERE, RED)
    expected, rows = read(path), list(csv.reader(path.read_text().splitlines()))
    columns = range(len(rows[0]))
    text = "\r\n".join(",".join(f'"{line[i]}"' for i in reversed(columns)) + ",more" for line in rows)
    path.write_text("\ufeff" + text.replace("keywords", "unheard_of") + "\r\n\r\n")
    assert read(path) == expected


def test_levels_of_dpg():
    levels = {
        "attribute - color": "attribute",
        "global - ": "global",
        "relation - non-spatial": "relation",
        "other": "other",
    }
    assert {text: Question(1, "", (), "", "", text).level_1 for text in levels} == levels


def test_parents_are_themselves_later_ones_in_circles_and_beside_zero(tmp_path):
    dependencies = ["3", "2", "1,2", "0, 1", "2,0,2"]
    path = write(tmp_path, *(row(proposition_id=i, dependency=text) for i, text in enumerate(dependencies, 1)))
    assert parents(path) == {"posescript_1": [(3,), (2,), (1, 2), (1,), (2, 2)]}


def test_an_item_of_the_official_file_with_words_as_dependencies_has_none(tmp_path):
    names = "posescript_19 tifa160_67 vrd_3".split()
    rows = [row(item_id=name, proposition_id=str(i), dependency=str(i - 1)) for name in names for i in (1, 2)]
    worded = row(item_id="posescript_19", proposition_id="3", dependency="1, baseball bat")
    path = write(tmp_path, *rows[:2], worded, *rows[2:])
    assert parents(path) == {"posescript_19": [(), (), ()], "tifa160_67": [(), (1,)], "vrd_3": [(), (1,)]}


def test_the_item_of_the_official_file_without_its_first_question_is_kept(tmp_path):
    rows = [row(item_id="tifa160_134", proposition_id=str(i), dependency=text) for i, text in ((2, "1"), (3, "1,2"))]
    (item,) = read(write(tmp_path, *rows))
    assert [question.parents for question in item.questions] == [(1,), (1, 2)]
    assert item.lacking == (1,)
    with pytest.raises(UserError, match="2: dependency 4 is no proposition of item tifa160_134; it has 2, 3"):
        read(write(tmp_path, row(rows[0], dependency="4"), rows[1]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"questions.csv has no rows"),
        ([row(proposition_id="one")], r":2: proposition_id is 'one', not a whole number"),
        ([row(proposition_id="1.0")], r":2: proposition_id is '1.0', not a whole number"),
        ([row(proposition_id="-1")], r":2: proposition_id is '-1', not a whole number"),
        ([row(proposition_id="0")], r":2: proposition_id is 0, which as a dependency says that there is none"),
        ([SPHERE, row(RED, dependency="1,air")], r":3: dependency is 'air', not a whole number"),
        ([SPHERE, row(RED, dependency="")], r":3: dependency is '', not a whole number"),
        ([SPHERE, row(RED, dependency="1;2")], r":3: dependency is '1;2', not a whole number"),
        (
            [SPHERE, row(RED, dependency="7,1"), BOX],
            r":3: dependency 7 is no proposition of item posescript_1; it has 1, 2",
        ),
        ([SPHERE, row(RED, keywords="two\nlines"), row(RED)], r":5: proposition 2 of item posescript_1 stands twice"),
        ([SPHERE, BOX, RED], r":5: the rows of item posescript_1 are apart"),
        (
            [SPHERE, row(RED, text="a sphere")],
            r":3: item posescript_1 has two prompts, the other is 'a red sphere, on a box'",
        ),
        ([row(question_natural_language=" ")], r":2: question_natural_language is empty"),
        *(
            ([row(item_id=name)], r":2: item_id .* cannot name")
            for name in ("", "a/b", "..", ".a", "a\\b", " a", "a\n", "a\ab")
        ),
        ([SPHERE, (*RED, "more")], r":3: the row has 10 fields, the header 9"),
        ([SPHERE[:-1]], r":2: the row has 8 fields, the header 9"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=r"questions\.csv" + message.removeprefix("questions.csv")):
        read(write(tmp_path, *rows))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no rows"),
        (HEADER.replace(" ", ",").encode(), "has no rows"),
        (
            HEADER.replace("dependency", "depends").replace(" ", ",").encode(),
            ":1: the header must name column dependency once",
        ),
        (HEADER.replace("keywords", "tuple").replace(" ", ",").encode(), ":1: the header must name column tuple once"),
        (HEADER.replace(" ", ",").encode() + b'\n"a"b,c\n', ":2: this is no CSV: ',' expected"),
        (HEADER.replace(" ", ",").encode() + b'\na,"b\n\n', ":2: this is no CSV: unexpected end of data"),
        (HEADER.replace(" ", ",").encode() + b"\n\n\xff\n", ":3: this is no UTF-8 text"),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path, data, message):
    (tmp_path / "questions.csv").write_bytes(data)
    with pytest.raises(UserError, match=r"questions\.csv ?" + message):
        read(tmp_path / "questions.csv")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*absent\.csv"):
        read(tmp_path / "absent.csv")


def test_sources_of_dsg_by_name():
    sources = {
        "tifa160_134": "tifa",
        "stanford_paragraph_3": "paragraph",
        "localized_narratives_0": "paragraph",
        "countbench_9": "count",
        "vrd_12": "relation",
        "diffusiondb_1": "real_user",
        "midjourney_2": "real_user",
        "posescript_5": "pose",
        "whoops_5": "defying",
        "drawtext_99": "text",
        "partiprompts97": None,
    }
    assert {name: category(name) for name in sources} == sources
