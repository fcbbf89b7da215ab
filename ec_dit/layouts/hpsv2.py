"""HPSv2's layout: STYLE/00000.jpg; prompts are a JSON object with a list for each style, or a folder of STYLE.json lists."""

import json
from collections.abc import Sequence
from typing import Any

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.layouts.base import Layout, PictureFile, Prompt, text_of, unique


class Hpsv2(Layout):
    """Pictures by the numbers of their prompts within a style."""

    def read(self, path: str) -> list[Prompt]:
        """Reads benchmark prompts, as hpsv2.benchmark_prompts('all') gives them or as its folder has them."""
        place = paths.at(path)
        if place.is_dir():
            styles = {file.stem: _parsed(str(file)) for file in sorted(place.glob("*.json"))}
        else:
            styles = _parsed(path)
            if not isinstance(styles, dict):
                raise UserError(f"{path} holds no object of styles; give that, or the folder of STYLE.json files")
        for style, texts in styles.items():
            if not (isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)):
                raise UserError(f"{path}: style {style!r} is no list of prompts")
            if not style or "/" in style or style.startswith("."):
                raise UserError(f"{path}: the style {style!r} cannot be the name of a folder")
        every = [Prompt(f"{style}/{i:05d}", text) for style, texts in styles.items() for i, text in enumerate(texts)]
        return unique(every, path)

    def files(self, prompts: Sequence[Prompt], num: int) -> list[PictureFile]:
        """Lists anime/00000.jpg, ..."""
        if num != 1:
            raise UserError(f"HPSv2 scores one picture of each prompt, not {num}")
        return [PictureFile(f"{prompt.id}.jpg", number) for number, prompt in enumerate(prompts)]


def _parsed(path: str) -> Any:
    try:
        return json.loads(text_of(path))
    except ValueError as error:
        raise UserError(f"the prompts file {path} is no JSON: {error}") from error
