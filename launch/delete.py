"""Gives a TPU slice back, or takes the request back: python -m launch.delete --name=m-64e [--dry_run].

What lies in the bucket stays.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from launch import common, gcloud
from launch.cloud import Cloud

FLAGS = flags.FlagValues()
common.define_tpu(FLAGS)


def work() -> None:
    """Deletes the queued resource and its node."""
    tpu = common.make_tpu(FLAGS)
    found = Cloud(tpu, gcloud.Runner(FLAGS.dry_run, cli.say)).delete()
    if not FLAGS.dry_run:
        cli.say(f"{tpu.name}: {'deleted' if found else 'there is nothing to delete'}")


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    return cli.run("delete", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
