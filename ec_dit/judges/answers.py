"""Answers to questions about pictures, and the csv tables that keep them, in the format of DSG's released ones.

A row is an answer of one network about a picture of one text-to-image model. The columns t2i_model, item_id, question_id and
answer are read; the others say what was asked. Source: vqa_answers_release/ of https://github.com/j-min/DSG.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from ec_dit.core import digests, paths
from ec_dit.core.errors import UserError
from ec_dit.layouts import table
from ec_dit.layouts.questions import Item

Answers = Mapping[str, Mapping[int, str]]  # item -> question -> answer
_READ = ("t2i_model", "item_id", "question_id", "answer")
_COLUMNS = (
    "dsg_prompt_split",
    "qg_model",
    "t2i_model",
    "item_id",
    "question",
    "question_id",
    "dependency_id",
    "answer",
)


def read_answers(path: str | PurePath) -> dict[str, dict[str, dict[int, str]]]:
    """Reads a table: model -> item -> question -> answer, as it stands there.

    Raises:
        UserError: as `table.rows`; a question_id is no number, or a question has two answers.
    """
    answers: dict[str, dict[str, dict[int, str]]] = {}
    for where, row in table.rows(path, _READ):
        number = table.number(where, "question_id", row["question_id"])
        its = answers.setdefault(row["t2i_model"], {}).setdefault(row["item_id"], {})
        if number in its:
            raise UserError(
                f"{where}: question {number} of item {row['item_id']} has two answers for {row['t2i_model']}; keep one."
            )
        its[number] = row["answer"]
    return answers


def write_answers(path: str | PurePath, items: Sequence[Item], answers: Mapping[str, Answers]) -> None:
    """Writes a table that `read_answers` gives back.

    Args:
        items: that the answers are of.
        answers: model -> item -> question -> answer; those about the tiles of a grid go as models of their own.

    Raises:
        UserError: as `check`.
    """
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(_COLUMNS)
    for model, its in answers.items():
        check(items, its, model)
        for item in items:
            for question in item.questions:
                if (answer := its.get(item.id, {}).get(question.id)) is not None:
                    split, parents = item.id.rpartition("_")[0], ",".join(map(str, question.parents)) or "0"
                    lines.writerow((split, "dsg", model, item.id, question.text, question.id, parents, answer))
    digests.replace(paths.at(path), text.getvalue().encode())


def check(items: Sequence[Item], answers: Answers, where: str = "the answers") -> None:
    """Compares answers with the questions that they should be of.

    Args:
        where: they come from, for the message.

    Raises:
        UserError: a question has no answer, unless its item lacks a question, or an answer has no question.
    """
    asked = {item.id: {question.id for question in item.questions} for item in items}
    optional = {item.id for item in items if item.lacking}
    for name, its in answers.items():
        if unknown := sorted(its.keys() - asked.get(name, set())):
            raise UserError(
                f"{where}: item {name}, question {unknown[0]} is none of those asked; score it with the questions that it was "
                "made of."
            )
    absent = [
        (name, question)
        for name, questions in asked.items()
        for question in sorted(questions - answers.get(name, {}).keys())
        if name not in optional
    ]
    if absent:
        name, question = absent[0]
        raise UserError(
            f"{where}: {len(absent)} of {sum(map(len, asked.values()))} answers are missing, first that of item {name}, "
            f"question {question}; ask these questions, or score the answered items alone."
        )
