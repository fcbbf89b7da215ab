"""ec-dit COMMAND: every program of the package under one name, with the same flags and exit codes as python -m MODULE."""

import importlib
import sys
from collections.abc import Sequence
from importlib import metadata

from ec_dit import cli
from ec_dit.core.errors import did_you_mean

COMMANDS = {  # command: (module, what it does); modules by name, so that the one asked for is all that is imported
    "prepare": ("ec_dit.prepare", "make a data set of pictures and captions, or of their latents and embeddings"),
    "train": ("ec_dit.main", "train a config, or go on with a run"),
    "sample": ("ec_dit.sample", "draw pictures for prompts with a trained or converted model"),
    "evaluate": ("ec_dit.evaluate", "score a run with an evaluation suite"),
    "routing": ("ec_dit.routing", "show which experts the tokens of pictures go to, in figures and maps"),
    "report": ("ec_dit.report", "write one page about runs: settings that differ, curves, pictures, scores"),
    "app": ("ec_dit.app", "show runs in a browser: draw, compare, see experts, curves, data"),
    "convert": ("ec_dit.convert", "read PixArt, upcycle a dense model to experts, export weights"),
    "plan": ("ec_dit.plan", "compile a config for TPUs that need not be there: memory, FLOPs, traffic"),
    "create": ("launch.create", "ask Google Cloud for the TPU slice of a config"),
    "run": ("launch.run", "start training on all hosts of a slice"),
    "watch": ("launch.watch", "keep a run alive on spot slices until it ends"),
    "status": ("launch.status", "tell what a slice and its hosts are doing"),
    "logs": ("launch.logs", "show what a host prints"),
    "profile": ("launch.profile", "fetch a trace of the next training steps"),
    "delete": ("launch.delete", "give a slice back"),
}


def usage() -> str:
    """Lists the commands, a line each."""
    lines = [f"  {name:10}{what}; python -m {module}" for name, (module, what) in COMMANDS.items()]
    return "\n".join(["ec-dit COMMAND [--flag=value ...]", "", *lines, "", "ec-dit COMMAND --help lists its flags."])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` (the program's name first) names, and returns its exit code."""
    _, *words = sys.argv if argv is None else argv
    name, *rest = words or [""]
    if name in COMMANDS:
        code: int = importlib.import_module(COMMANDS[name][0]).main([f"ec-dit {name}", *rest])
        return code
    if name in ("help", "--help", "-h"):
        print(usage())
        return 0
    if name == "--version":
        print(metadata.version("ec-dit"))
        return 0
    wrong = f"there is no command {name!r}{did_you_mean(name, COMMANDS)}" if name else "a command is needed"
    print(f"ec-dit: {wrong}; ec-dit --help lists those there are", file=sys.stderr)
    return cli.MISTAKE


if __name__ == "__main__":
    sys.exit(main())
