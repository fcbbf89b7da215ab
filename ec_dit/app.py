"""Shows runs in a browser: python -m ec_dit.app --workdir=DIR[,DIR...] [--port=7860], or --export=FILE.html --prompt="...".

The page draws pictures of one run or of two on the same noise, lays the experts of every token over them (block and time by
sliders, a token's experts under the pointer), and shows the runs' curves, scores and sample grids, and their prepared data with
what was left out. It answers on this machine alone unless --host says otherwise, loads nothing from elsewhere, and reads no file
outside of its runs and their data. --export writes one page with pictures and their routes, to send to somebody, and ends. Needs
the extra `app` (Gradio, matplotlib); --export alone needs Jinja.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from ec_dit import cli, sampling_flags
from ec_dit.core import paths
from ec_dit.core.errors import UserError

if TYPE_CHECKING:
    from ec_dit.studio.artist import Artist

FLAGS = flags.FlagValues()
flags.DEFINE_list("workdir", [], "Folders of runs, with commas between.", flag_values=FLAGS)
flags.DEFINE_integer("port", 7860, "Of the page.", lower_bound=1, upper_bound=65535, flag_values=FLAGS)
flags.DEFINE_string(
    "host", "127.0.0.1", "Who may reach the page: 0.0.0.0 is everybody on the network.", flag_values=FLAGS
)
flags.DEFINE_integer("queue", 16, "Requests that wait at most.", lower_bound=1, upper_bound=1000, flag_values=FLAGS)
flags.DEFINE_bool("ema", True, "The moving average of the parameters.", flag_values=FLAGS)
cli.define_path("export", "Write this page of pictures and routes, such as circle.html, and end.", flag_values=FLAGS)
flags.DEFINE_string("prompt", None, "With --export: what to draw.", flag_values=FLAGS)
sampling_flags.define(FLAGS)
cli.define_mesh(FLAGS)
flags.DEFINE_integer("num", 1, "With --export: pictures of each run.", lower_bound=1, upper_bound=4, flag_values=FLAGS)
cli.define_seed("With --export: of the starting noise.", FLAGS)
cli.define_help(FLAGS)


def work() -> None:
    """Serves the page, or writes one."""
    if not FLAGS.workdir:
        raise UserError("--workdir=DIR is needed; see --help")
    places = [place.rstrip("/") for place in FLAGS.workdir]
    if repeated := [place for place in places if places.count(place) > 1]:
        raise UserError(f"--workdir: {repeated[0]} is given twice")
    workdirs = dict(zip(paths.short_names(places), places, strict=True))
    changes = sampling_flags.changes(FLAGS)
    cli.check_page_needs(("jinja2",) if FLAGS.export else ("gradio", "matplotlib", "jinja2"), "app")

    from ec_dit.runs.workdir import Workdir

    for place in places:
        Workdir(place).config()  # a folder that is no run is said before anything starts

    from ec_dit.studio import artist as artists

    artist = artists.Artist(workdirs, ema=FLAGS.ema, changes=changes, say=cli.say)
    if FLAGS.export:
        _export(artist)
    else:
        _serve(artist)


def _export(artist: "Artist") -> None:
    out = paths.page(FLAGS.export, "--export")

    from ec_dit.studio import viewer
    from ec_dit.studio.artist import Request

    prompt = (FLAGS.prompt or "").strip()
    panels = artist.draw(Request(list(artist.workdirs), prompt, FLAGS.num, FLAGS.seed))
    text = viewer.page(panels, f"“{prompt}”")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    cli.say(
        f"{len(panels)} {'picture' if len(panels) == 1 else 'pictures'} with routes, {len(text) / 1e6:.1f} MB: {out}"
    )


def _serve(artist: "Artist") -> None:
    from ec_dit.studio import serving

    serving.check_free(FLAGS.host, FLAGS.port)
    if not serving.is_local(FLAGS.host):
        cli.say(f"--host={FLAGS.host}: whoever reaches this machine can draw, and see these runs and their data.")
    address = serving.address(FLAGS.host, FLAGS.port)
    with serving.scratch() as folder:

        def build() -> object:
            from ec_dit.studio import tabs

            return tabs.build(artist, folder, cli.say)

        serving.serve(
            build,
            FLAGS.host,
            FLAGS.port,
            FLAGS.queue,
            lambda: cli.say(f"{', '.join(artist.workdirs)}: {address} (Ctrl-C ends it)"),
        )


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    return cli.run("app", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
