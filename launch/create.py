"""Asks for a TPU slice: python -m launch.create --config=configs/m_64e.py [--mode=spot|reserved|on_demand] [--dry_run].

Kind and size of the slice come from the config's topology. Returns once the request is accepted, not once there is a slice:
python -m launch.status tells, and python -m launch.watch does all of it.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from launch import common, gcloud

FLAGS = flags.FlagValues()
common.define_tpu(FLAGS)
common.define_slice(FLAGS)
flags.DEFINE_string(
    "valid_until_duration", None, "Take the request back if it waits longer, e.g. 6h.", flag_values=FLAGS
)


def work() -> None:
    """Creates the queued resource."""
    tpu, wanted = common.make_tpu(FLAGS), common.make_slice(FLAGS)
    until = [f"--valid-until-duration={FLAGS.valid_until_duration}"] if FLAGS.valid_until_duration else []
    command = tpu.create(wanted, FLAGS.mode, [*common.creation_flags(FLAGS), *until])
    gcloud.Runner(FLAGS.dry_run, cli.say)(command, timeout=1900)
    asked = "would be asked for" if FLAGS.dry_run else "is asked for"
    cli.say(f"# {tpu.name}: a slice of {wanted.chips} chips, {wanted.hosts} hosts {asked}")


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    return cli.run("create", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
