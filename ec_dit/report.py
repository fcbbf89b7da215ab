"""Reports on runs: python -m ec_dit.report --workdir=DIR[,DIR...] --out=FILE.html.

Writes one page that needs nothing else, no network and no script: settings in which the runs differ, every figure at equal steps,
images and FLOPs, curves over each of these (losses, by noise level, held out; scores; router health; speed), sample grids, and
checkpoints. It reads what the runs left, also of one that is still training. Needs matplotlib and Jinja: the extra `plots`.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from ec_dit.core import paths
from ec_dit.core.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_list("workdir", [], "Folders of runs, with commas between.", flag_values=FLAGS)
cli.define_path("out", "The page to write, such as report.html.", flag_values=FLAGS)
flags.DEFINE_integer("grids", 6, "Sample grids of each run, at most.", lower_bound=0, flag_values=FLAGS)
cli.define_help(FLAGS)


def work() -> None:
    """Reads the runs and writes the page."""
    for name in ("workdir", "out"):
        if not FLAGS[name].value:
            raise UserError(f"--{name}={'FILE.html' if name == 'out' else 'DIR'} is needed; see --help")
    out = paths.page(FLAGS.out, "--out")
    cli.check_page_needs(("matplotlib", "jinja2"), "plots")

    from ec_dit.reporting import page, story

    stories = story.read([path.rstrip("/") for path in FLAGS.workdir], FLAGS.grids)
    text = page.page(stories)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    cli.say(f"{len(stories)} {'run' if len(stories) == 1 else 'runs'} on one page, {len(text) / 1e6:.1f} MB: {out}")


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    return cli.run("report", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
