"""Keeps a run alive until it ends.

    python -m launch.watch --config=configs/m_64e.py --workdir=gs://BUCKET/m_64e [--mode=spot] [-- --config.KEY=VALUE ...]

Asks for the slice, waits, starts the training, and when the slice is suspended or fails, or the run dies, begins again from the
last checkpoint; deletes the slice at the end. What happened when stands in --journal. The watcher itself may be killed and
started again with the same arguments at any time. Exit code 0: the run has ended; 2: it ended with a mistake of the user's;
4: given up.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ec_dit import cli
from launch import clock, common, gcloud
from launch.cloud import Cloud
from launch.journal import Journal
from launch.watcher import Patience, Watcher

FLAGS = flags.FlagValues()
common.define_tpu(FLAGS)
common.define_slice(FLAGS)
common.define_job(FLAGS)
_DEFAULT = Patience()
cli.define_path("journal", "File; default: runs/NAME.watch.jsonl.", flag_values=FLAGS)
flags.DEFINE_bool("keep", False, "Leave the slice when the run ends or is given up.", flag_values=FLAGS)
cli.define_float("poll_seconds", _DEFAULT.poll, "Between looks.", lower_bound=0, flag_values=FLAGS)
cli.define_float(
    "backoff_seconds",
    _DEFAULT.backoff,
    "Before another attempt; doubled with each that brought no checkpoint.",
    lower_bound=0,
    flag_values=FLAGS,
)
cli.define_float("max_backoff_seconds", _DEFAULT.longest_backoff, "At most.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer(
    "max_attempts", _DEFAULT.attempts, "In a row without a new checkpoint.", lower_bound=0, flag_values=FLAGS
)
cli.define_float(
    "stall_minutes",
    _DEFAULT.stall / 60,
    "A training that saves no checkpoint for so long is started again; 0 = never.",
    lower_bound=0,
    flag_values=FLAGS,
)
cli.define_float(
    "unreachable_minutes",
    _DEFAULT.unreachable / 60,
    "Hosts that do not answer for so long, while no checkpoint comes, are given back.",
    lower_bound=0,
    flag_values=FLAGS,
)


def work(arguments: tuple[str, ...]) -> int:
    """Watches; returns the exit code."""
    tpu, wanted, job = common.make_tpu(FLAGS), common.make_slice(FLAGS), common.make_job(FLAGS, arguments)
    extra, run = common.creation_flags(FLAGS), gcloud.Runner(FLAGS.dry_run, cli.say)
    cloud = Cloud(tpu, run)
    if FLAGS.dry_run:
        cli.say("# a round without trouble: ask, look, start, look, give back")
        folder = cloud.ship(job)
        cloud.create(wanted, FLAGS.mode, extra)
        cloud.resource()
        cloud.start(folder, job.name(1))
        cloud.hosts()
        cloud.saved_step(job.workdir)
        cloud.delete()
        return 0
    patience = Patience(
        poll=FLAGS.poll_seconds,
        backoff=FLAGS.backoff_seconds,
        longest_backoff=FLAGS.max_backoff_seconds,
        attempts=FLAGS.max_attempts,
        stall=60 * FLAGS.stall_minutes,
        unreachable=60 * FLAGS.unreachable_minutes,
    )
    time = clock.Clock()
    with Journal(Path(FLAGS.journal or f"runs/{tpu.name}.watch.jsonl"), cli.say, time) as journal:
        return Watcher(cloud, wanted, FLAGS.mode, extra, job, journal, time, patience, FLAGS.keep).run()


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    own, arguments = common.split(argv)
    return cli.run("watch", __doc__ or "", FLAGS, lambda: work(arguments), own)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
