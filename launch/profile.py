"""Takes a trace of the next training steps and fetches it, for XProf.

    python -m launch.profile --name=m-64e --workdir=gs://BUCKET/m_64e --out=traces [--worker=0]

The trainer writes it to the workdir (config key log.trace_steps says of how many steps).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ec_dit import cli
from ec_dit.core.errors import UserError
from launch import clock, common, gcloud, job
from launch.cloud import Cloud

FLAGS = flags.FlagValues()
common.define_tpu(FLAGS)
flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=FLAGS)
cli.define_path("out", "Folder here for the trace.", default="traces", flag_values=FLAGS)
flags.DEFINE_string("worker", "0", "Host whose devices are traced, or all.", flag_values=FLAGS)
flags.DEFINE_integer("wait_seconds", 600, "How long to wait for it.", lower_bound=0, flag_values=FLAGS)


def work() -> None:
    """Asks for a trace, waits for its files and copies them."""
    if not FLAGS.workdir:
        raise UserError("--workdir=gs://BUCKET/DIR is needed: the trace is written there")
    job.check_workdir(FLAGS.workdir)
    tpu, run = common.make_tpu(FLAGS), gcloud.Runner(FLAGS.dry_run, cli.say)
    cloud, folder = Cloud(tpu, run), f"{FLAGS.workdir.rstrip('/')}/trace"
    before = found = cloud.names(f"{folder}/**")
    run(tpu.ssh(job.host_command("trace"), FLAGS.worker))
    time = clock.Clock()
    deadline = time.monotonic() + FLAGS.wait_seconds
    while not FLAGS.dry_run:
        seen, found = found, cloud.names(f"{folder}/**")
        if before < found == seen:  # there are several files, one after another
            break
        if time.monotonic() > deadline:
            raise UserError(
                f"no trace came within {FLAGS.wait_seconds} s; is the run training? See python -m launch.logs."
            )
        time.sleep(5)
    if not FLAGS.dry_run:
        Path(FLAGS.out).mkdir(parents=True, exist_ok=True)
    run(gcloud.storage_copy([folder], FLAGS.out))
    cli.say(f"# look at it with: pip install xprof && xprof --logdir={FLAGS.out}/trace")


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    return cli.run("profile", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
