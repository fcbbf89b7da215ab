"""Reports on runs: python -m ec_dit.report --workdir=DIR[,DIR...] --out=FILE.html.

Writes one page that needs nothing else, no network and no script: settings in which the runs differ, every figure at equal steps,
images and FLOPs, curves over each of these (losses, by noise level, held out; scores; router health; speed), sample grids, and
checkpoints. It reads what the runs left, also of one that is still training. Needs matplotlib and Jinja: the extra `plots`.
"""

import importlib.util
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
    if not FLAGS.out.endswith(".html"):
        raise UserError(f"--out={FLAGS.out}: the page's name must end in .html")
    if absent := [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]:
        raise UserError(f"the page needs {' and '.join(absent)}: pip install 'ec-dit[plots]'")
    out = paths.at(FLAGS.out)
    paths.check_can_write(out.parent, "--out")
    if out.is_dir():
        raise UserError(f"--out={FLAGS.out} is a folder")

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
