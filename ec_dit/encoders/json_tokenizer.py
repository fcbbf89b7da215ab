"""The tokenizer.json of a published folder, read by the library that it is of, and tokenizer_config.json beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ec_dit.core import hub, json_file
from ec_dit.core.errors import UserError

JSON, CONFIG = "tokenizer.json", "tokenizer_config.json"
FILES = (JSON, CONFIG)


def load(folder: str | Path, model: str, title: str, roles: Mapping[str, str]) -> tuple[Tokenizer, list[int]]:
    """Gives the tokenizer of a folder, without padding and truncation, and the ids of tokens with a role.

    Args:
        model: kind of tokenizer that the file has to hold.
        title: whose it is, for messages.
        roles: role in tokenizer_config.json -> the token that has it where that does not say.

    Raises:
        UserError: if it is missing, damaged, or another model's.
    """
    path = hub.local(folder) / JSON
    found = hub.read_json(path)
    beside = hub.read_json(path.with_name(CONFIG)) if path.with_name(CONFIG).is_file() else {}
    with json_file.whole(str(path), hub.AGAIN):
        if found["model"]["type"] != model:
            raise UserError(
                f"{path} is no tokenizer of {title}: its model is {found['model']['type']!r}, not {model!r}."
            )
    tokenizer = _read(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with json_file.whole(str(path.with_name(CONFIG)), hub.AGAIN):
        return tokenizer, [_id(tokenizer, beside.get(role) or token) for role, token in roles.items()]


def vocab_size(tokenizer: Tokenizer) -> int:
    """Counts ids up to the largest."""
    return 1 + max(tokenizer.get_vocab().values(), default=0)


def _id(tokenizer: Tokenizer, token: str | Mapping[str, Any]) -> int:
    """Gives the id of a token as a tokenizer_config.json names it. Raises ValueError where there is none."""
    word = token if isinstance(token, str) else token["content"]
    found = tokenizer.token_to_id(word)
    if found is None:
        raise ValueError(f"the token {word!r} is not in the vocabulary of {JSON}")
    return int(found)


def _read(path: Path) -> Tokenizer:
    """The library's tokenizer, which works."""
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        tokenizer.encode("a cat", add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library panics past Exception
        raise json_file.damaged(str(path), f"it holds no tokenizer: {str(error)[:200]}", hub.AGAIN) from error
    return tokenizer
