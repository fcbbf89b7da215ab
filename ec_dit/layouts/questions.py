"""Questions about pictures, as DSG-1k and DPG-Bench publish them: one csv row each, with the questions that it depends on.

DSG-1k: https://github.com/j-min/DSG, dsg-1k-anns.csv, 1,060 items and 8,182 questions. DPG-Bench:
https://github.com/TencentQQGYLab/ELLA, dpg_bench.csv, of the same columns.

A question may depend on itself, on a later one, or in a circle: a score looks at the answers to a question's parents and at no
parent of theirs, so that this does no harm. Two flaws of DSG-1k's file are read as its official tool takes them: an item with
words among its dependencies has none, and an item that lacks a question that others depend on is kept as it is (`Item.lacking`).
"""

from dataclasses import dataclass, replace
from pathlib import PurePath

from ec_dit.core.errors import UserError, shortened
from ec_dit.layouts import table

_COLUMNS = (
    *("item_id", "text", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple"),
    "question_natural_language",
)
# Of DSG-1k's file, as it stands. Everywhere else the same is a mistake to be told.
_WORDED = {
    *("posescript_19", "posescript_41", "posescript_55", "posescript_69"),
    *("stanford_paragraph_54", "stanford_paragraph_55", "stanford_paragraph_72", "tifa160_67"),
}
_LACKING = {("tifa160_134", 1)}
_SOURCES = {  # by a part of the item's name; the first that fits
    "tifa": "tifa",
    "stanford": "paragraph",
    "localized": "paragraph",
    "countbench": "count",
    "vrd": "relation",
    "diffusion": "real_user",
    "midjourney": "real_user",
    "posescript": "pose",
    "whoops": "defying",
    "drawtext": "text",
}


@dataclass(frozen=True)
class Question:
    """A yes-or-no question about a picture; yes is right.

    Attributes:
        id: within its item.
        parents: ids of the questions of the item that it depends on, in the file's order.
        broad: its category, such as 'attribute'.
        detailed: the finer one, such as 'color'.
        level_2: DPG-Bench's category, such as 'attribute - color': what stands before the bracket of `tuple`.
    """

    id: int
    text: str
    parents: tuple[int, ...]
    broad: str
    detailed: str
    level_2: str

    @property
    def level_1(self) -> str:
        """Gives DPG-Bench's coarse category, such as 'attribute'."""
        return self.level_2.partition("-")[0].strip()


@dataclass(frozen=True)
class Item:
    """A prompt with the questions about its picture; `id` names the picture's file."""

    id: str
    prompt: str
    questions: tuple[Question, ...]

    @property
    def lacking(self) -> tuple[int, ...]:
        """Gives the ids that its questions depend on and that it has no question of; () but for tifa160_134."""
        there = {question.id for question in self.questions}
        return tuple(sorted({parent for question in self.questions for parent in question.parents} - there))


def read(path: str | PurePath) -> list[Item]:
    """Reads the items of a file, in its order.

    Raises:
        UserError: as `table.rows`; a number is none, an item's name is no file name, its rows are apart or have different
            prompts, a question is empty, stands twice, or depends on one that the item does not have.
    """
    items: dict[str, Item] = {}
    places: dict[tuple[str, int], str] = {}
    worded = set()
    last = None
    for where, row in table.rows(path, _COLUMNS):
        name = row["item_id"]
        if name != last:
            if name in items:
                raise UserError(f"{where}: the rows of item {name} are apart; put them together.")
            items[name] = Item(_file_name(where, name), row["text"], ())
            last = name
        item = items[name]
        if row["text"] != item.prompt:
            raise UserError(f"{where}: item {name} has two prompts, the other is {shortened(item.prompt)!r}; keep one.")
        if name in _WORDED and any(part.isalpha() for part in row["dependency"].replace(" ", "").split(",")):
            worded.add(name)
            row["dependency"] = "0"
        question = _question(where, row)
        if (name, question.id) in places:
            raise UserError(f"{where}: proposition {question.id} of item {name} stands twice; keep one.")
        places[name, question.id] = where
        items[name] = replace(item, questions=(*item.questions, question))
    return [_checked(_free(item) if item.id in worded else item, places) for item in items.values()]


def category(item_id: str) -> str | None:
    """Gives the source of an item of DSG-1k by its name, as the official tool does; None for an item of another file.

    Returns:
        tifa, paragraph, count, relation, real_user, pose, defying or text.
    """
    return next((source for part, source in _SOURCES.items() if part in item_id), None)


def _file_name(where: str, name: str) -> str:
    if not name or name.startswith(".") or name != name.strip() or not name.isprintable() or set(name) & set("/\\"):
        raise UserError(
            f"{where}: item_id {shortened(name)!r} cannot name a picture's file: give letters and digits, no slash and no dot "
            "at its beginning."
        )
    return name


def _question(where: str, row: dict[str, str]) -> Question:
    number = table.number(where, "proposition_id", row["proposition_id"])
    if number == 0:
        raise UserError(f"{where}: proposition_id is 0, which as a dependency says that there is none; count from 1.")
    text = row["question_natural_language"]
    if not text.strip():
        raise UserError(f"{where}: question_natural_language is empty; write the question.")
    parents = [table.number(where, "dependency", part) for part in row["dependency"].split(",")]
    return Question(
        number,
        text,
        tuple(parent for parent in parents if parent),
        row["category_broad"].strip(),
        row["category_detailed"].strip(),
        row["tuple"].partition("(")[0].strip(),
    )


def _free(item: Item) -> Item:
    return replace(item, questions=tuple(replace(question, parents=()) for question in item.questions))


def _checked(item: Item, places: dict[tuple[str, int], str]) -> Item:
    for parent in item.lacking:
        if (item.id, parent) not in _LACKING:
            child = next(question for question in item.questions if parent in question.parents)
            raise UserError(
                f"{places[item.id, child.id]}: dependency {parent} is no proposition of item {item.id}; it has "
                f"{', '.join(str(question.id) for question in item.questions)}."
            )
    return item
