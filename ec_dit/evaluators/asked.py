"""What the suites `dsg` and `dpg` share: questions about pictures that a network answers, and tables of answers."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ec_dit.core import digests, paths, processes
from ec_dit.core.errors import UserError
from ec_dit.core.settings import key
from ec_dit.data.sheet import contact_sheet
from ec_dit.evaluators.base import Evaluation, Evaluator, Wanted
from ec_dit.evaluators.compared import check_can_write, needed, network_facts
from ec_dit.evaluators.prompted import PromptedSuite
from ec_dit.judges import answers as tables
from ec_dit.judges.answers import Answers
from ec_dit.judges.vqa import Answerer
from ec_dit.layouts import questions
from ec_dit.layouts.dsg import MODEL
from ec_dit.layouts.questions import Item

_SMALL = 256  # pixels of a picture on the sheet, at most
_SHOWN = 8  # pictures on the sheet, of the best and of the worst items each
_TILE = " tile "  # between a model's name and the number of a tile, in tables


@dataclass(frozen=True)
class AskedSuite(PromptedSuite):
    """Asks a network about every picture, or takes the answers of a table."""

    vqa: str = key("", "what answers: BLIP, ViLT or an instruction-tuned vision-language model; a folder")
    answers: str = key("", "a table of answers as DSG releases them; then no network is asked, and no picture drawn")
    model: str = key("", "whose answers of the table are scored, where it has those of several")
    write: str = key("", "file for a table of the answers; '' = none")

    def items(self) -> list[Item]:
        """Reads the items. Raises UserError where there is no such file, or an answer is to come from two places."""
        if self.answers and self.vqa:
            raise UserError(f"suite {self.label}: give either answers=FILE or vqa=PATH, not both.")
        items = questions.read(needed(self.prompts, "prompts", "the tool's file of questions"))
        return items[: self.most or None]

    def network(self) -> tuple[Answerer, dict[str, Any]]:
        """Loads what answers, and says which it is. Raises UserError where none is given, or it is none."""
        from ec_dit.judges import vqa

        path = needed(self.vqa, "vqa", "what answers questions about pictures, or a table of answers (--answers),")
        network = vqa.load(path)
        return network, {"vqa": {"name": network.name, **network_facts(path)}}

    def table(self) -> tuple[list[Answers], str]:
        """Reads the table: the answers about each tile of the pictures, and the name of the model that drew them.

        Raises:
            UserError: there is none, or it has several models' answers and none is named.
        """
        found = tables.read_answers(self.answers)
        names = sorted({name.partition(_TILE)[0] for name in found})
        model = self.model or names[0]
        if not self.model and len(names) > 1:
            raise UserError(
                f"{self.answers} has answers for {', '.join(names)}: choose one with the option model=NAME."
            )
        if model not in names:
            raise UserError(f"{self.answers} has no answers for {model!r}; it has those for {', '.join(names)}.")
        return [its for name, its in sorted(found.items()) if name.partition(_TILE)[0] == model], model


class AskedEvaluator(Evaluator):
    """Asks, keeps the answers, and scores them.

    Args:
        items: of the prompts, in their order.
    """

    def __init__(self, suite: AskedSuite, items: Sequence[Item]):
        self._suite, self._items = suite, items
        self.wanted: Wanted | None = None
        self._network: Answerer | None = None
        self._tiles: Sequence[Answers] = ()
        self._choices: dict[str, Any] = {"questions": digests.of_file(paths.at(suite.prompts))}
        if suite.answers and suite.write:
            raise UserError(
                f"suite {suite.label}: write={suite.write} keeps a network's answers, and these are in a table."
            )
        if suite.write:
            check_can_write(suite.write)
        if suite.answers:
            self._tiles, model = suite.table()
            self._choices |= {"answers": digests.of_file(paths.at(suite.answers)), "model": model}
        else:
            self.wanted = suite.wanted()
            self._network, named = suite.network()
            self._choices |= named

    def score(self, images: Iterator[np.ndarray]) -> Evaluation:
        """Asks all questions of every picture, where no table answers them."""
        if self._network is None:
            outcome = self.judged(self._tiles, self._suite.answers)
            return dataclasses.replace(outcome, choices={**outcome.choices, **self._choices})
        assert self.wanted is not None
        tiles: list[dict[str, dict[int, str]]] = [{} for _ in range(self.wanted.num)]
        firsts: list[np.ndarray] = []
        for item in self._items:
            pictures = [next(images) for _ in tiles]
            firsts.append(_small(pictures[0]))
            asked = [(picture, question) for picture in pictures for question in item.questions]
            given = iter(self._network([picture for picture, _ in asked], [question.text for _, question in asked]))
            for tile in tiles:
                tile[item.id] = {question.id: next(given) for question in item.questions}
        if next(images, None) is not None:
            raise ValueError("there are more pictures than prompts")
        if self._suite.write:
            single = len(tiles) == 1
            names = [MODEL if single else f"{MODEL}{_TILE}{number}" for number in range(1, len(tiles) + 1)]
            with processes.told_by_first():
                if processes.is_first():
                    tables.write_answers(self._suite.write, self._items, dict(zip(names, tiles, strict=True)))
        outcome = self.judged(tiles, "the answers")
        return dataclasses.replace(
            outcome, choices={**outcome.choices, **self._choices}, sheet=self._sheet(firsts, outcome.rows)
        )

    def _sheet(self, pictures: Sequence[np.ndarray], rows: Sequence[Mapping[str, Any]]) -> Any:
        """The best items and the worst."""
        order = np.argsort([-row["value"] for row in rows], kind="stable")
        chosen = [*order[:_SHOWN], *order[max(_SHOWN, len(order) - _SHOWN) :]]
        captions = [f"{self._items[i].prompt} [{rows[i]['value']:.2f}]" for i in chosen]
        return contact_sheet([pictures[i] for i in chosen], captions, columns=_SHOWN, smooth=True)

    @abc.abstractmethod
    def judged(self, tiles: Sequence[Answers], where: str) -> Evaluation:
        """Makes the figures of answers, those about each tile; its rows are of the items, in their order."""


def _small(image: np.ndarray) -> np.ndarray:
    """A picture for a contact sheet: of all items' pictures, those in full size would be gigabytes."""
    small = Image.fromarray(image)
    small.thumbnail((_SMALL, _SMALL))
    return np.asarray(small)
