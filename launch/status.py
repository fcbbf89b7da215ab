"""Tells what a slice and its hosts are doing: python -m launch.status --name=m-64e [--workdir=gs://BUCKET/m_64e].

One line for the queued resource, one for each host, and with --workdir the newest checkpoint.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from launch import common, gcloud, job
from launch.cloud import Cloud

FLAGS = flags.FlagValues()
common.define_tpu(FLAGS)
flags.DEFINE_string("workdir", None, "Folder of the run, for its newest checkpoint.", flag_values=FLAGS)


def work() -> None:
    """Prints the state."""
    if FLAGS.workdir:
        job.check_workdir(FLAGS.workdir)
    tpu = common.make_tpu(FLAGS)
    cloud = Cloud(tpu, gcloud.Runner(FLAGS.dry_run, cli.say))
    resource = cloud.resource()
    if not FLAGS.dry_run:
        error = f": {resource.error}" if resource and resource.error else ""
        cli.say(f"{tpu.name}: {resource.state if resource else 'no such queued resource'}{error}")
    if FLAGS.dry_run or (resource and resource.state == "ACTIVE"):
        for host in cloud.hosts():
            code = f", code {host.code}" if host.code else ""
            cli.say(f"{host.host}: {host.job} {host.state}{code}")
    if FLAGS.workdir:
        step = cloud.saved_step(FLAGS.workdir)
        if not FLAGS.dry_run:
            cli.say("no checkpoint yet" if step is None else f"newest checkpoint: step {step}")


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    return cli.run("status", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
