"""T2I-CompBench's layout: samples/PROMPT_000000.png, numbered on through all prompts; prompts are lines, ten pictures each."""

from collections.abc import Sequence

from ec_dit.core.errors import UserError
from ec_dit.layouts.base import Layout, PictureFile, Prompt, lines_of, numbered, unique

_LONGEST = 255  # bytes of a file's name


class T2iCompbench(Layout):
    """Files by their prompts, which the tool reads again from the names: up to the first underscore."""

    NUM = 10

    def read(self, path: str) -> list[Prompt]:
        """Reads a text file such as color_val.txt: a prompt a line, what follows a tab left out."""
        texts = [line.split("\t")[0] for line in lines_of(path)]
        for number, text in enumerate(texts, 1):
            if not text:
                raise UserError(f"{path}, line {number}: it is empty, and the tool would ask it of a picture")
            if bad := next((sign for sign in "_/\0" if sign in text), None):
                raise UserError(f"{path}, line {number}: a prompt with {bad!r} cannot be the name of a picture")
            if len(f"{text}_000000.png".encode()) > _LONGEST:
                raise UserError(f"{path}, line {number}: the prompt is too long for the name of a picture")
        return unique(numbered(texts), path)

    def files(self, prompts: Sequence[Prompt], num: int) -> list[PictureFile]:
        """Lists samples/a red apple_000000.png, ..."""
        return [
            PictureFile(f"samples/{prompt.text}_{number * num + index:06d}.png", number, index)
            for number, prompt in enumerate(prompts)
            for index in range(num)
        ]
