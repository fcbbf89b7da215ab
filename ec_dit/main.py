"""Trains: python -m ec_dit.main --config=configs/shapes.py --workdir=DIR [--config.key=value ...].

--config takes a file, or the name of a config that comes with the package (--config=shapes); with :smoke behind it (shapes:smoke)
it is shrunk to a few CPU steps. Run again with the same arguments, it goes on from the last checkpoint. The last line printed is
the fingerprint of the final parameters. SIGTERM stops a run after the step it is at, with a checkpoint, and exit code 75: start
it again to go on.
"""

import functools
import signal
import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from ec_dit.config import RunConfig, overrides
from ec_dit.core import paths, processes
from ec_dit.core.errors import UserError


def define_flags() -> flags.FlagValues:
    """The flags of one call, apart from the config's keys."""
    values = flags.FlagValues()
    cli.define_config(values)
    cli.define_path("workdir", "Folder of the run: checkpoints, metrics, images.", flag_values=values)
    cli.define_processes(values)
    cli.define_help(values)
    return values


def train(run_config: RunConfig, workdir: str | None) -> int:
    """Trains, and returns the exit code."""
    if not workdir:
        raise UserError("--workdir=DIR is needed: the folder for checkpoints, metrics and images")
    paths.check_is_text(workdir, "a run")
    paths.check_can_write(workdir, "--workdir")  # also that its bucket answers, before data are prepared

    from ec_dit.runs import training

    fingerprint = training.run(run_config, workdir, cli.say)
    if fingerprint is None:
        return processes.STOPPED
    cli.say(f"done: {workdir}  params_fingerprint={fingerprint}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks for a trace (train.trace), which there cannot be yet
    values, (own, changes) = define_flags(), overrides.split(argv)
    config = functools.cache(lambda: overrides.read(values.config, changes))

    def work() -> int:
        return train(config(), values.workdir)

    return cli.run("main", __doc__ or "", values, work, own, check=config, more_help=overrides.keys_help)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
