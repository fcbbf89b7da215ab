"""Our own layout: 00000_0000.png by the prompt's number and an index; prompts are the lines of a text file."""

from collections.abc import Sequence

from ec_dit.core.errors import UserError
from ec_dit.layouts.base import Layout, PictureFile, Prompt, lines_of, unique


class Flat(Layout):
    """Prompts by the numbers of their lines, from 0 on; an empty line keeps its number, and has no pictures."""

    def read(self, path: str) -> list[Prompt]:
        """Reads a text file with a prompt a line."""
        lines = lines_of(path)
        if len(lines) > 99_999:
            raise UserError(f"the prompts file {path} has {len(lines)} lines; 99,999 at most")
        return unique([Prompt(f"{number:05d}", line) for number, line in enumerate(lines) if line], path)

    def files(self, prompts: Sequence[Prompt], num: int) -> list[PictureFile]:
        """Lists 00000_0000.png, 00000_0001.png, ..."""
        return [
            PictureFile(f"{prompt.id}_{index:04d}.png", number, index)
            for number, prompt in enumerate(prompts)
            for index in range(num)
        ]
