"""The one exception for mistakes a user can mend: entry points print its message alone, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input, config or environment. The message names the value found, why it fails and what to do."""


class DamageError(UserError):
    """A file whose content was read and is not what was written there; where it could not be read, that is no damage."""


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """' (did you mean X?)' with the nearest of the `known` words; '' where none is as similar as `cutoff`, of 0 to 1."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""
