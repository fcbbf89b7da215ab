"""The folders of DSG and of DPG-Bench; prompts are the items of their csv files of questions."""

from collections.abc import Sequence

from ec_dit.core.errors import UserError
from ec_dit.layouts import questions
from ec_dit.layouts.base import Layout, PictureFile, Prompt, unique

MODEL = "ec_dit"  # the text-to-image model in the names of DSG's pictures and tables


class Dsg(Layout):
    """ITEM_ec_dit.jpg: by the item and the model that drew it, one picture each."""

    def read(self, path: str) -> list[Prompt]:
        """Reads dsg-1k-anns.csv."""
        return _items(path)

    def files(self, prompts: Sequence[Prompt], num: int) -> list[PictureFile]:
        """Lists tifa160_0_ec_dit.jpg, ..."""
        if num != 1:
            raise UserError(f"DSG scores one picture of each prompt, not {num}")
        return [PictureFile(f"{prompt.id}_{MODEL}.jpg", number) for number, prompt in enumerate(prompts)]


class Dpg(Layout):
    """ITEM.png: four pictures of a prompt in two rows of two, or one alone."""

    NUM = 4

    def read(self, path: str) -> list[Prompt]:
        """Reads dpg_bench.csv."""
        return _items(path)

    def files(self, prompts: Sequence[Prompt], num: int) -> list[PictureFile]:
        """Lists partiprompts0.png, ..."""
        if num not in (1, 4):
            raise UserError(f"DPG-Bench scores one picture of each prompt or four, not {num}")
        return [PictureFile(f"{prompt.id}.png", number, 0, num) for number, prompt in enumerate(prompts)]


def _items(path: str) -> list[Prompt]:
    return unique([Prompt(item.id, item.prompt) for item in questions.read(path)], path)
