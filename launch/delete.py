"""Gives a TPU slice back, or takes the request back: python -m launch.delete --name=m-64e [--dry_run].

What lies in the bucket stays.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from launch import common, gcloud

FLAGS = flags.FlagValues()
common.define_tpu(FLAGS)


def work() -> None:
    """Deletes the queued resource and its node."""
    tpu = common.make_tpu(FLAGS)
    try:
        gcloud.Runner(FLAGS.dry_run, cli.say)(tpu.delete(), timeout=1900)
    except gcloud.GcloudError as error:
        if not error.missing:
            raise
        cli.say(f"{tpu.name}: there is nothing to delete")
        return
    if not FLAGS.dry_run:
        cli.say(f"{tpu.name}: deleted")


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    return cli.run("delete", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
