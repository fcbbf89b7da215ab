"""Shows what a host prints: python -m launch.logs --name=m-64e [--worker=0] [--lines=100] [--follow].

--saved reads the copies that hosts leave in the bucket every minute instead, which outlive the slice:
python -m launch.logs --saved --workdir=gs://BUCKET/m_64e lists them, with --file=... shows one.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from ec_dit.core.errors import UserError
from launch import common, gcloud, job

FLAGS = flags.FlagValues()
common.define_tpu(FLAGS)
flags.DEFINE_string("worker", "0", "Host, from 0, or all.", flag_values=FLAGS)
flags.DEFINE_integer("lines", 100, "How many lines.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool("follow", False, "Go on showing what comes.", flag_values=FLAGS)
flags.DEFINE_bool("saved", False, "Read the copies in the bucket.", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "Folder of the run, for --saved.", flag_values=FLAGS)
flags.DEFINE_string("file", None, "The copy to show, as --saved lists it.", flag_values=FLAGS)


def work() -> None:
    """Shows the log."""
    run = gcloud.Runner(FLAGS.dry_run, cli.say)
    if FLAGS.saved:
        if not FLAGS.workdir:
            raise UserError("--workdir=gs://BUCKET/DIR is needed with --saved")
        job.check_workdir(FLAGS.workdir)
        pattern = f"{FLAGS.workdir.rstrip('/')}/logs/**"
        run(gcloud.storage_read(FLAGS.file) if FLAGS.file else gcloud.storage_list(pattern), show=True)
        return
    follow = ["-F"] if FLAGS.follow else []
    command = job.host_command("log", str(FLAGS.lines), *follow)
    run(common.make_tpu(FLAGS).ssh(command, FLAGS.worker), timeout=None, show=True)


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    return cli.run("logs", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
