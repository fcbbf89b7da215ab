"""What every entry point does around its work: parse flags, print a user's mistake as one message, return an exit code."""

import os
import sys
from collections.abc import Callable, Sequence

from absl import flags, logging

from ec_dit.core.errors import UserError

MISTAKE, INTERRUPTED = 2, 130


def say(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


def quiet() -> None:
    """Silences libraries that log start-up noise; errors still show."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.set_verbosity(logging.ERROR)


def run(
    name: str,
    doc: str,
    flag_values: flags.FlagValues,
    work: Callable[[], None],
    argv: Sequence[str],
    check: Callable[[Sequence[str]], None] | None = None,
) -> int:
    """Parses `argv` (the program's name first) into `flag_values`, calls `work`, and returns the exit code.

    Args:
        check: looks at the arguments before absl does.
    """
    for flag in flag_values:
        flag_values[flag].unparse()  # a second call in one process starts from the defaults
    try:
        if check is not None:
            check(argv[1:])
        extra = flag_values(list(argv))[1:]
        if flag_values["help"].value:
            print(doc + flag_values.get_help())
            return 0
        if extra:
            raise UserError(f"unexpected argument {extra[0]!r}; options are written --name=value, see --help")
        work()
    except (UserError, flags.Error) as error:
        print(f"{name}: {str(error).strip()}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def define_help(flag_values: flags.FlagValues) -> None:
    """Adds --help."""
    flags.DEFINE_bool("help", False, "Show this help.", flag_values=flag_values, short_name="h")
