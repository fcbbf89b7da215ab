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
    work: Callable[[], int | None],
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
        return work() or 0
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - or Python complains at exit
        return MISTAKE
    except (UserError, flags.Error, OSError) as error:  # OSError: a full disk, a folder one may not write to
        print(f"{name}: {str(error).strip()}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED


def define_help(flag_values: flags.FlagValues) -> None:
    """Adds --help."""
    flags.DEFINE_bool("help", False, "Show this help.", flag_values=flag_values, short_name="h")


def define_run(flag_values: flags.FlagValues) -> None:
    """Adds the flags of what reads a trained run: --workdir, --step, --ema, --mesh, --seed."""
    flags.DEFINE_string("workdir", None, "Folder of a run.", flag_values=flag_values)
    flags.DEFINE_integer("step", None, "Checkpoint to use; the newest by default.", flag_values=flag_values)
    flags.DEFINE_bool("ema", True, "Use the moving average of the parameters.", flag_values=flag_values)
    flags.DEFINE_integer("seed", 0, "Of the starting noise.", lower_bound=0, flag_values=flag_values)
    flags.DEFINE_list(
        "mesh",
        ["-1", "1", "1", "1"],
        "Devices along data, fsdp, expert, tensor; e.g. 1,1,8,1 for a model too large for one of 8.",
        flag_values=flag_values,
    )


def mesh_of(flag_values: flags.FlagValues) -> dict[str, int]:
    """--mesh as the config's mesh section.

    Raises:
        UserError: unless it is four whole numbers.
    """
    from ec_dit.core.mesh import MESH_AXES  # imports jax, which --help should not wait for

    words: list[str] = flag_values["mesh"].value or []
    if len(words) != len(MESH_AXES) or not all(word.strip().lstrip("-").isdigit() for word in words):
        raise UserError(f"--mesh={','.join(words)}: give {len(MESH_AXES)} whole numbers: {','.join(MESH_AXES)}")
    return dict(zip(MESH_AXES, map(int, words), strict=True))
