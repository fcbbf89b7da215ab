"""Which files an option `path` means, and which of the files beside them are not read."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from etils import epath

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.core.terminal import printable
from ec_dit.preparation.finding import access

LINK, SHUT = "link to a folder", "unreadable folder"  # kinds of what is not read
_MAX_FILES = 1_000_000


class Listing(NamedTuple):
    """Files that were found.

    Attributes:
        root: the folder that the names are relative to.
        names: sorted.
        unread: of what lies among them and was not asked for, how many there are of each ending; of links to folders, LINK;
            of those that may not be read, SHUT; of what has such a name and is no file, such as 'folder'.
        chosen: whether the path named the files, or a pattern of them, and not their folder.
    """

    root: epath.Path
    names: list[str]
    unread: Counter[str]
    chosen: bool


def find_files(kind: str, path: str, endings: tuple[str, ...]) -> Listing:
    """Lists the files that an option `path` means.

    Args:
        path: a folder, searched recursively for the `endings`; a file; or a pattern with *, ? and {00..99} or {a,b}.

    Raises:
        UserError: there are none, or the disk fails.
    """
    whole = paths.at(path)
    chosen, unread = not whole.is_dir(), Counter[str]()
    if not chosen:
        root, names = whole, []
        for inner, folders, files in walk(whole, shut(kind, unread)):
            unread[LINK] += sum(is_link(whole / inner / name) for name in folders)
            for name in files:
                if name.lower().endswith(endings):
                    names.append(f"{inner}/{name}".lstrip("/"))
                elif name:
                    unread[ending(name)] += 1
    elif whole.exists():
        if access.no_file(whole):
            raise UserError(f"{kind}: {path} is neither a folder nor a plain file")
        root, names = whole.parent, [whole.name]
    else:
        start = re.split(r"[*?\[{]", path, maxsplit=1)[0].rpartition("/")[0]
        root = paths.at(start or ("/" if path.startswith("/") else "."))
        names = list(_matching(kind, root, path.removeprefix(start).lstrip("/")))
    strange = {name: what for name in names if (what := access.no_file(root / name))}
    names = sorted(set(names) - strange.keys())
    unread.update(strange.values())
    unread = +unread
    if not names:
        state = "is not there" if chosen else f"has no {endings[0]} files"
        there = f" (there is {told(unread)})" if unread else ""
        raise UserError(
            f"{kind}: {path} {state}{there}; pass --path=FOLDER, a file or a pattern such as DIR/*{endings[0]}"
        )
    return Listing(root, names, unread, chosen)


def ending(name: str) -> str:
    """Gives what a name ends with, such as '.xyz'."""
    suffix = PurePosixPath(name).suffix.lower()
    return printable(suffix) if 1 < len(suffix) <= 12 else "file without an ending"


def told(unread: Counter[str]) -> str:
    """Says how many there are of each kind, for a message: '6 x .xyz, 1 x .abc'."""
    return ", ".join(f"{count} x {kind}" for kind, count in unread.most_common(10))


def is_link(folder: epath.Path) -> bool:
    """Tells whether a folder of a disk is a link."""
    return not paths.is_remote(folder) and Path(folder).is_symlink()


def walk(
    top: epath.Path, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walks as os.walk does, on a disk or in a bucket, with folders relative to `top`; passes over what is hidden.

    Args:
        on_error: given what reading a folder of a disk raised; from a bucket that is raised.
    """
    start = os.fspath(top).removeprefix("gs://")  # which epath's own walk leaves out
    remote = paths.is_remote(top)
    waiting = [top]
    while waiting:
        here = waiting.pop()
        # From Python 3.12 on a path's own walk takes linked folders for files.
        found = here.walk(on_error=_network_fault) if remote else os.walk(here, onerror=on_error)
        for folder, folders, names in found:
            folders[:] = [name for name in folders if not name.startswith(".")]
            names = [name for name in names if not name.startswith(".")]
            inner = os.fspath(folder).removeprefix("gs://").removeprefix(start).strip("/")
            if not any(part.startswith(".") for part in inner.split("/")):
                yield inner, folders, names
            if remote:  # where epath's own walk passes over folders within that cannot be read
                waiting += [top / inner / name for name in folders]
                break


def shut(kind: str, unread: Counter[str]) -> Callable[[OSError], None]:
    """Makes an `on_error` of `walk` for a source of that kind: counts folders that may not be read.

    Raises:
        UserError: from it, where the disk fails.
    """

    def note(error: OSError) -> None:
        if not access.is_its_own(error):
            raise UserError(f"{kind}: cannot read {printable(str(error.filename))}: {error.strerror}") from error
        unread[SHUT] += 1

    return note


def _network_fault(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # which is a folder without files
        raise error


def _matching(kind: str, root: epath.Path, pattern: str) -> Iterator[str]:
    if "**" in pattern:
        raise UserError(f"{kind}: ** is not understood; pass the folder itself, which is searched recursively")
    names = list(itertools.islice(braces(pattern), _MAX_FILES + 1))
    if len(names) > _MAX_FILES:
        raise UserError(f"{kind}: {pattern} means more than {_MAX_FILES:,} files")
    for name in names:
        if any(character in name for character in "*?["):
            yield from (os.fspath(path.relative_to(root)) for path in root.glob(name))
        elif len(names) > 1 or (root / name).exists():
            yield name


def braces(pattern: str) -> Iterator[str]:
    """Yields the names that a pattern with {00..99} and {a,b} stands for."""
    group = re.search(r"\{([^{}]*)\}", pattern)
    if not group:
        yield pattern
        return
    texts: Any = group[1].split(",")
    if bounds := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", group[1]):
        width = max(len(end) if end.startswith("0") else 0 for end in bounds.groups())
        texts = (f"{number:0{width}}" for number in range(int(bounds[1]), int(bounds[2]) + 1))
    for text in texts:
        yield from braces(pattern[: group.start()] + text + pattern[group.end() :])
