"""Shows routing: python -m ec_dit.routing --workdir=DIR --prompt="a red circle" [--prompt=...] --out=DIR, or --split=validation.

Draws as `sample` does, and keeps how many experts took each token in every sparse block at every evaluation of the network.
Writes routing.npz (the arrays), routing.json (figures by block and time, with standard errors over pictures), routing.png (a map
for each block and time), curves.png and experts.png (the patches that each expert weighs most). --split draws the captions of a
split of the run's data instead, the first --most of them, and parts the figures by a fact about each example (--by; of shapes,
its task). Where the data's world is known (shapes, emoji, icons) the figures tell objects from ground. The plots need matplotlib:
the extra `plots`.
"""

import importlib.util
import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli, sampling_flags
from ec_dit.core import processes, terminal
from ec_dit.core.errors import UserError

FLAGS = flags.FlagValues()
sampling_flags.define_prompts(FLAGS, num=1)
cli.define_path("out", "Folder to write.", flag_values=FLAGS)
flags.DEFINE_string("split", None, "A split of the run's data whose captions are drawn.", flag_values=FLAGS)
flags.DEFINE_integer("most", 200, "Captions of the split, at most.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("by", "task", "A fact of the examples' metadata that parts the figures.", flag_values=FLAGS)
flags.DEFINE_bool(
    "which", False, "Keep which experts took a token, and their gates, in routing.npz.", flag_values=FLAGS
)
flags.DEFINE_bool("plots", True, "Draw the plots.", flag_values=FLAGS)
sampling_flags.define(FLAGS)
cli.define_run(FLAGS)
cli.define_processes(FLAGS)
cli.define_help(FLAGS)


def work() -> None:
    """Loads the run, draws, and writes."""
    for name in ("workdir", "out"):
        if not FLAGS[name].value:
            raise UserError(f"--{name}=DIR is needed; see --help")
    if FLAGS.split and (FLAGS.prompt or FLAGS.prompts_file):
        raise UserError("--split draws the captions of a split: leave --prompt and --prompts_file out, or --split")
    texts = [] if FLAGS.split else [text for text in sampling_flags.prompts(FLAGS) if text]
    pixels, changes = sampling_flags.pixels(FLAGS), sampling_flags.changes(FLAGS)
    if FLAGS.plots and importlib.util.find_spec("matplotlib") is None:
        raise UserError("the plots need matplotlib: pip install 'ec-dit[plots]', or give --noplots")

    from ec_dit.config import specs
    from ec_dit.maps.collection import Collection
    from ec_dit.maps.foreground import MASKS
    from ec_dit.runs import loaded
    from ec_dit.runs.pictures import describe
    from ec_dit.runs.references import References
    from ec_dit.runs.routing_folder import RoutingFolder
    from ec_dit.runs.workdir import Workdir
    from ec_dit.sampling.routes import RouteTracer
    from ec_dit.system import layout

    out = RoutingFolder(FLAGS.out, plots=FLAGS.plots)
    if processes.is_first():
        out.check()  # before the model is loaded for nothing
    workdir = Workdir(FLAGS.workdir)
    system = layout.for_sampling(workdir.system(loaded.changed(workdir.config(), changes)))
    references = References(system, workdir)
    groups = [""] * len(texts)
    if FLAGS.split:
        if FLAGS.split not in references.splits:
            there = ", ".join(references.splits) or "none"
            raise UserError(f"--split={FLAGS.split}: the run's data have {there}")
        examples = references.examples(FLAGS.split, FLAGS.most)
        texts = [example.caption for example in examples]
        groups = [str(example.meta.get(FLAGS.by, "")) for example in examples]
    painter = references.painter
    shape = None
    if pixels is not None:
        shape = loaded.latent_shape(pixels, painter.autoencoder.factor, system.config.model.patch)
    generator = painter.generator(specs.sample_settings(system.config, shape), shape)
    tracer = RouteTracer(generator, min(generator.settings.batch_size, len(texts) * FLAGS.num))
    params, step = workdir.params(system, ema=FLAGS.ema, step=FLAGS.step)

    jobs = [(text, index, group) for text, group in zip(texts, groups, strict=True) for index in range(FLAGS.num)]
    found = Collection(MASKS.get(references.source), which=FLAGS.which)
    prompts, indices, _ = zip(*jobs, strict=True)
    with terminal.Progress("drawing", len(jobs), "images", shown=processes.is_first()) as progress:
        for (text, index, group), routes in zip(jobs, tracer.all(params, prompts, indices, FLAGS.seed), strict=True):
            found.add(routes, text, index, group)
            progress.update(1)
    if not processes.is_first():
        return
    facts = {
        "seed": FLAGS.seed,
        "workdir": FLAGS.workdir,
        "config": system.config.name,
        "step": step,
        "weights": "ema" if FLAGS.ema else "params",
        "routing": system.config.moe.routing,
        **describe(system, generator.settings),
        "files": [],
    }
    files = out.write(found, facts)
    cli.say(f"routes of {len(jobs)} images in {out.path}: {', '.join(files)}")


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    return cli.run("routing", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
