"""What a layout of pictures is: which prompt file it reads, and where in a folder the pictures of a prompt lie."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ec_dit.core import paths
from ec_dit.core.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """A prompt of a file.

    Attributes:
        id: its name among the others, of which official tools make names of files.
        text: what is drawn.
        line: the whole line of the prompt file, where a tool wants it beside the pictures.
    """

    id: str
    text: str
    line: str = ""


@dataclass(frozen=True)
class PictureFile:
    """A file of a layout.

    Attributes:
        name: below the folder, with slashes.
        number: of its prompt.
        first: index of its first picture among those of the prompt.
        tiles: pictures in it: one, or four in two rows of two.
    """

    name: str
    number: int
    first: int = 0
    tiles: int = 1


class Layout(abc.ABC):
    """Names of prompt files and of pictures as a tool has them.

    Attributes:
        NUM: pictures of a prompt, where nobody says otherwise.
    """

    NUM: ClassVar[int] = 1

    @abc.abstractmethod
    def read(self, path: str) -> list[Prompt]:
        """Reads a prompt file.

        Raises:
            UserError: there is none, or it is none of this tool's; it names the line.
        """

    @abc.abstractmethod
    def files(self, prompts: Sequence[Prompt], num: int) -> list[PictureFile]:
        """Lists the files of `num` pictures of every prompt, in the order of the prompts.

        Raises:
            UserError: prompts that cannot be names of files, or a number of pictures that the tool does not take.
        """

    def beside(self, prompts: Sequence[Prompt]) -> Mapping[str, bytes]:
        """Gives files that the tool wants beside the pictures, by name."""
        return {}


def numbered(texts: Sequence[str]) -> list[Prompt]:
    """Gives prompts that are named by their numbers, from 00000 on."""
    return [Prompt(f"{number:05d}", text) for number, text in enumerate(texts)]


def text_of(path: str) -> str:
    """Reads a prompt file, on a disk or in a bucket.

    Raises:
        UserError: there is none, it is no plain file, or it is no text.
    """
    file = paths.at(path)
    if not file.exists():
        raise UserError(f"there is no prompts file {file}")
    if not paths.is_remote(file) and not Path(file).is_file():  # opening a pipe would wait for ever
        raise UserError(f"the prompts file {file} is no plain file")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the prompts file {file} is not UTF-8: {error}") from error


def lines_of(path: str) -> list[str]:
    """Reads the lines of a prompt file, without spaces around them; what follows the last newline is none.

    Raises:
        UserError: as `text_of`.
    """
    lines = text_of(path).split("\n")
    return [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]


def unique(prompts: Sequence[Prompt], path: str) -> list[Prompt]:
    """Gives the prompts back.

    Raises:
        UserError: there is none, or two have the same id.
    """
    if not prompts:
        raise UserError(f"the prompts file {path} holds no prompt")
    seen: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        if prompt.id in seen:
            raise UserError(
                f"the prompts file {path}: the id {prompt.id!r} is there twice, for prompts {seen[prompt.id]} and {number}"
            )
        seen[prompt.id] = number
    return list(prompts)
