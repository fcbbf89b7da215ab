"""Starts training on all hosts of a slice that is there.

    python -m launch.run --config=configs/m_64e.py --workdir=gs://BUCKET/m_64e [--env=NAME=VALUE] [-- --config.KEY=VALUE ...]

Ships this checkout as a wheel (or has the hosts install --code=git+https://...@REVISION), the config and the command through
the bucket, and leaves the hosts working by themselves: python -m launch.logs shows what they print. What runs there already
is stopped, with a checkpoint. Everything behind `--` goes to ec_dit.main as it is.
"""

import sys
import time
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from launch import common, gcloud
from launch.cloud import Cloud

FLAGS = flags.FlagValues()
common.define_tpu(FLAGS)
common.define_job(FLAGS)


def work(arguments: tuple[str, ...]) -> None:
    """Ships the job and starts it."""
    tpu, wanted = common.make_tpu(FLAGS), common.make_job(FLAGS, arguments)
    run = gcloud.Runner(FLAGS.dry_run, cli.say)
    if FLAGS.dry_run:
        install = "ec_dit-....whl" if wanted.code == "wheel" else wanted.code
        shown = f"{wanted.exports(hide=True)}\n{wanted.script(install)}"
        cli.say("# what the hosts run:\n" + "".join(f"#   {line}\n" for line in shown.splitlines()))
    cloud = Cloud(tpu, run)
    cli.say(cloud.start(cloud.ship(wanted), wanted.name(int(time.time()))).strip())


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    own, arguments = common.split(argv)
    return cli.run("run", __doc__ or "", FLAGS, lambda: work(arguments), own)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
