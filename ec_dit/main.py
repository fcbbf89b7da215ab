"""Trains: python -m ec_dit.main --config=configs/shapes.py --workdir=DIR [--config.key=value ...].

Run again with the same arguments, it goes on from the last checkpoint. --config=FILE:smoke shrinks a config to a few
CPU steps. The last line printed is the fingerprint of the final parameters. SIGTERM stops a run after the step it is at, with
a checkpoint, and exit code 75: start it again to go on.
"""

import itertools
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from ec_dit import checks, cli, config
from ec_dit.core import paths, processes
from ec_dit.core.errors import UserError, did_you_mean


def define_flags() -> flags.FlagValues:
    """The flags of one call; parsing --config adds one for every key."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "Config file, FILE.py or FILE.py:smoke.", flag_values=values)
    cli.define_path("workdir", "Folder of the run: checkpoints, metrics, images.", flag_values=values)
    cli.define_processes(values)
    cli.define_help(values)
    return values


def check_arguments(argv: Sequence[str]) -> None:
    """Finds a missing config file or an unknown key before absl does, whose messages name neither.

    Raises:
        UserError: naming the nearest file or key.
    """
    chosen = [a.partition("=")[2] for a in argv if a.startswith(("--config=", "-config="))]
    chosen += [value for flag, value in itertools.pairwise(argv) if flag in ("--config", "-config")]
    if not any(chosen):
        if any(a in ("--help", "-h", "--helpfull") for a in argv):
            return
        raise UserError("--config=FILE is needed, for example --config=configs/shapes.py")
    name, _, argument = chosen[-1].partition(":")
    path = Path(name)
    if path.is_dir():
        raise UserError(f"--config={name}: {path} is a folder; choose a file in it.")
    if not path.is_file():
        raise UserError(f"there is no config file {path}{did_you_mean(str(path), map(str, path.parent.glob('*.py')))}.")
    config.check_overrides(config.load(path, argument), argv)


def train(run_config: ConfigDict, workdir: str | None) -> int:
    """Validates the config, trains, and returns the exit code."""
    if not workdir:
        raise UserError("--workdir=DIR is needed: the folder for checkpoints, metrics and images")
    checks.validate(run_config)
    paths.at(workdir)  # a bucket that does not answer should say so before data are prepared

    from ec_dit import training  # after the checks: these imports take seconds that a typo need not cost

    fingerprint = training.run(run_config, workdir, cli.say)
    if fingerprint is None:
        return processes.STOPPED
    cli.say(f"done: {workdir}  params_fingerprint={fingerprint}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks for a trace (train.trace), which there cannot be yet
    sys.argv = list(argv)  # where ml_collections looks for overrides, whoever calls
    values = define_flags()
    return cli.run(
        "main",
        __doc__ or "",
        values,
        lambda: train(values.config, values.workdir),
        argv,
        check=check_arguments,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
