"""Scores a run: python -m ec_dit.evaluate --workdir=DIR --suite=shapes [--novel].

Prints the table and leaves eval_<suite>.json and a contact sheet in the workdir.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from ec_dit.core.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("suite", "shapes", "What to score.", flag_values=FLAGS)
flags.DEFINE_integer("images_per_task", None, "Images for each task.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool("novel", False, "shapes: prompts with attribute combinations never trained on.", flag_values=FLAGS)
cli.define_run(FLAGS)
cli.define_processes(FLAGS)
cli.define_help(FLAGS)


def work() -> None:
    """Loads the run and scores it."""
    if not FLAGS.workdir:
        raise UserError("--workdir=DIR is needed: the folder of a run")

    from ec_dit.config import checks
    from ec_dit.core import settings
    from ec_dit.runs import evaluation
    from ec_dit.runs.workdir import Workdir

    workdir = Workdir(FLAGS.workdir)
    changes = settings.prefixed("mesh", cli.mesh_of(FLAGS))
    if FLAGS.images_per_task is not None:
        changes["eval.images_per_task"] = FLAGS.images_per_task
    config = settings.changed(workdir.config(), changes)
    checks.validate(config)
    system, params, step = workdir.load(config, ema=FLAGS.ema, step=FLAGS.step)
    evaluation.run(
        FLAGS.suite, system, params, step, workdir, cli.say, seed=FLAGS.seed, novel=FLAGS.novel, ema=FLAGS.ema
    )


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    return cli.run("evaluate", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
