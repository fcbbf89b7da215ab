"""Scores a run: python -m ec_dit.evaluate --workdir=DIR --suite=shapes, or --suite=shapes:images_per_task=10,novel=true.

Prints the table and leaves eval_<suite>.json and a contact sheet in the workdir. After the colon stand options of the suite,
as in the config key eval.suites.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from ec_dit.core.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("suite", "shapes", "What to score: NAME, or NAME:OPTION=VALUE,OPTION=VALUE.", flag_values=FLAGS)
cli.define_run(FLAGS)
cli.define_processes(FLAGS)
cli.define_help(FLAGS)


def work() -> None:
    """Loads the run and scores it."""
    if not FLAGS.workdir:
        raise UserError("--workdir=DIR is needed: the folder of a run")

    from ec_dit.config import checks
    from ec_dit.core import settings
    from ec_dit.evaluators import registry
    from ec_dit.runs.evaluation import Scorer
    from ec_dit.runs.references import References
    from ec_dit.runs.workdir import Workdir

    suite, workdir = registry.parse(FLAGS.suite), Workdir(FLAGS.workdir)
    config = settings.changed(workdir.config(), settings.prefixed("mesh", cli.mesh_of(FLAGS)))
    checks.validate(config)
    system, params, step = workdir.load(config, ema=FLAGS.ema, step=FLAGS.step)
    Scorer(suite, References(system, workdir), cli.say)(params, step, seed=FLAGS.seed, ema=FLAGS.ema)


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    return cli.run("evaluate", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
