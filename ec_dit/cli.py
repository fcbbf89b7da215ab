"""What every entry point does around its work: parse flags, find the other processes of a run, print a user's mistake as one
message, return an exit code.
"""

import contextlib
import gc
import importlib.util
import math
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from logging import CRITICAL, getLogger
from typing import IO

from absl import flags, logging

from ec_dit.core import paths, processes, programs, seeds, terminal
from ec_dit.core.errors import TryAgain, UserError, explain

CRASH, MISTAKE, INTERRUPTED = 1, 2, 130
# Where a flag's name is not its key's.
FLAG_OF = {"text.path": "text_encoder", "data.autoencoder": "autoencoder", "sample.layout": "model_layout"}


def say(line: str) -> None:
    """Prints a line at once, also into a pipe; of several processes, the first does."""
    if processes.is_first():
        print(terminal.printable_lines(line), flush=True)


def _tell(name: str, message: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads it: the exit code alone tells
        print(f"{name}{processes.label()}: {terminal.printable_lines(message.strip())}", file=sys.stderr, flush=True)


def in_own_flags(message: str, flag_values: flags.FlagValues) -> str:
    """The message of code that all entry points share, which names keys as --config.KEY, in what this one can be given.

    Where it takes no config, a key is the flag that sets it, or else named as a key of the run's config.
    """
    if "config" in flag_values:
        return message

    def own(match: re.Match[str]) -> str:
        section, _, name = match[1].partition(".")
        flag = "mesh" if section == "mesh" else FLAG_OF.get(match[1], name if section == "sample" else None)
        if flag is None or flag not in flag_values:
            return f"config key {match[1]}"
        return f"{name} of --{flag}" if section == "mesh" and name.isidentifier() else f"--{flag}"

    return re.sub(r"--config\.(\w+(?:\.(?:\w+|\{[^}]*\}))*)", own, message)


def quiet() -> None:
    """Silences libraries that log start-up noise, and the tracebacks of what they raise as well."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").setLevel(CRITICAL)  # of several writes that fail, one is raised
    getLogger("google.auth").setLevel(CRITICAL)  # credentials that are needed and missing are told by what needs them
    sys.unraisablehook = _unraisable


def _unraisable(told: "sys.UnraisableHookArgs") -> None:
    """Python's own way, but for callbacks of TensorStore: of a save that failed, they find the loop closed and print it."""
    if str(told.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(told)


def run(
    name: str,
    doc: str,
    flag_values: flags.FlagValues,
    work: Callable[[], int | None],
    argv: Sequence[str],
    check: Callable[[], object] | None = None,
    more_help: Callable[[], str] = str,
) -> int:
    """Parses `argv` (the program's name first) into `flag_values`, calls `work`, and returns the exit code.

    Args:
        check: called before other processes are waited for, to find mistakes in the arguments.
        more_help: gives what --help says beside `doc` and the flags.
    """
    foreign = False  # whether a library's error ended it
    terminal.accept_any_text()
    for flag in flag_values:
        flag_values[flag].unparse()  # a second call in one process starts from the defaults
    try:
        return processes.leave(_work(doc, flag_values, work, argv, check, more_help), failed=False)
    except KeyboardInterrupt:
        _tell(name, "interrupted")
        code = INTERRUPTED
    except flags.Error as error:
        unknown = isinstance(error, flags.UnrecognizedFlagError) and "Did you mean" not in str(error)
        _tell(name, f"{error}; --help lists those there are" if unknown else str(error))
        code = MISTAKE
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - or Python complains at exit
            _tell(name, "whoever read the output went away (standard output is closed)")
            code = MISTAKE
        elif (known := explain(error)) is not None:
            _tell(name, in_own_flags(str(known), flag_values))
            code = processes.STOPPED if isinstance(known, TryAgain) else MISTAKE
            foreign = known is not error
        elif not processes.label():
            raise
        else:  # Python's own way out would wait for the other processes, who may be waiting for this one
            traceback.print_exc()
            _tell(name, "crashed; if another process did before, look there first")
            code = CRASH
    if foreign:
        gc.collect()  # a save that failed left work behind, which would complain while Python shuts down
    return processes.leave(code, failed=True)


def _is_unread(stream: IO[str]) -> bool:
    """Whether the stream is a pipe whose reader went away, as `head` does."""
    try:
        watch = select.poll()
        watch.register(stream.fileno(), 0)
    except OSError:  # a stream that is no file
        return False
    return any(event & select.POLLERR for _, event in watch.poll(0))


def _work(
    doc: str,
    flag_values: flags.FlagValues,
    work: Callable[[], int | None],
    argv: Sequence[str],
    check: Callable[[], object] | None,
    more_help: Callable[[], str],
) -> int:
    extra = flag_values(list(argv))[1:]
    if flag_values["help"].value:
        print(doc + flag_values.get_help() + more_help())
        return 0
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r}; options are written --name=value, see --help")
    if check is not None:
        check()
    if "coordinator" in flag_values:
        _join(flag_values)
    if processes.count() == 1:  # of several, those that still compile would keep the others waiting for too long
        programs.keep()
    return work() or 0


class _FiniteParser(flags.FloatParser):
    """Reads a number; nan and inf, which pass every bound, are none."""

    def convert(self, argument: int | float | str) -> float:
        number = super().convert(argument)
        if not math.isfinite(number):
            raise ValueError("it must be a finite number")
        return number


def define_float(
    name: str,
    default: float | None,
    meaning: str,
    *,
    flag_values: flags.FlagValues,
    lower_bound: float | None = None,
    upper_bound: float | None = None,
) -> None:
    """Adds a flag for a finite number within its bounds."""
    parser = _FiniteParser(lower_bound, upper_bound)
    serializer: flags.ArgumentSerializer[float] = flags.ArgumentSerializer()
    flags.DEFINE(parser, name, default, meaning, flag_values, serializer)


class _PathParser(flags.ArgumentParser[str]):
    """Reads a path, in which a shell leaves ~ as it is."""

    def parse(self, argument: str) -> str:
        if not argument:
            raise ValueError("it is empty; was it a variable of the shell that is not set?")
        return argument if paths.is_remote(argument) else str(paths.home_expanded(argument))

    def flag_type(self) -> str:
        return "string"


def define_path(name: str, meaning: str, *, flag_values: flags.FlagValues, default: str | None = None) -> None:
    """Adds a flag for a file or folder, on a disk or in a bucket; ~ is the home folder."""
    serializer: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
    flags.DEFINE(_PathParser(), name, default, meaning, flag_values, serializer)


def define_config(flag_values: flags.FlagValues) -> None:
    """Adds --config."""
    meaning = "Config: NAME of one that comes with the package, or FILE.py; NAME:smoke shrinks it to a few CPU steps."
    flags.DEFINE_string("config", None, meaning, flag_values=flag_values)


def check_page_needs(packages: Sequence[str], extra: str) -> None:
    """Raises UserError where packages are missing that a page is made with."""
    if absent := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UserError(f"the page needs {' and '.join(absent)}: pip install 'ec-dit[{extra}]'")


def define_help(flag_values: flags.FlagValues) -> None:
    """Adds --help."""
    flags.DEFINE_bool("help", False, "Show this help.", flag_values=flag_values, short_name="h")


def define_processes(flag_values: flags.FlagValues) -> None:
    """Adds the flags of a run of several processes, which TPU pods and SLURM need not give."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, of several; with --num_processes and --process_id. Default: JAX_COORDINATOR_ADDRESS, "
        "JAX_NUM_PROCESSES and JAX_PROCESS_ID, SLURM's variables under srun, or the metadata of a TPU pod.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer("num_processes", None, "How many processes.", lower_bound=1, flag_values=flag_values)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0, flag_values=flag_values)
    flags.DEFINE_integer(
        "heartbeat_seconds",
        processes.HEARTBEAT_SECONDS,
        "A process silent for so long counts as dead, and the others end.",
        lower_bound=5,
        flag_values=flag_values,
    )


def _join(flag_values: flags.FlagValues) -> None:
    place = (flag_values.coordinator, flag_values.num_processes, flag_values.process_id)
    processes.join(place, heartbeat_seconds=flag_values.heartbeat_seconds)


def define_run(flag_values: flags.FlagValues) -> None:
    """Adds the flags of what reads a trained run: --workdir, --step, --ema, --mesh, --seed."""
    define_path("workdir", "Folder of a run.", flag_values=flag_values)
    flags.DEFINE_integer(
        "step", None, "Checkpoint to use; the newest by default.", lower_bound=0, flag_values=flag_values
    )
    flags.DEFINE_bool("ema", True, "Use the moving average of the parameters.", flag_values=flag_values)
    define_seed("Of the starting noise.", flag_values)
    define_mesh(flag_values)


def define_seed(meaning: str, flag_values: flags.FlagValues) -> None:
    """Adds --seed."""
    flags.DEFINE_integer("seed", 0, meaning, lower_bound=0, upper_bound=seeds.LARGEST, flag_values=flag_values)


def define_mesh(flag_values: flags.FlagValues) -> None:
    """Adds --mesh."""
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
    if len(words) != len(MESH_AXES) or not all(re.fullmatch(r"-?[0-9]{1,9}", word.strip()) for word in words):
        raise UserError(f"--mesh={','.join(words)}: give {len(MESH_AXES)} whole numbers: {','.join(MESH_AXES)}")
    return dict(zip(MESH_AXES, map(int, words), strict=True))
