"""Draws: python -m ec_dit.sample --workdir=DIR --prompt="a red circle" [--prompt=...] [--prompts_file=F] --out=DIR.

Writes one PNG per image, 00000_0000.png by prompt and index, a contact sheet and settings.json, which lists them: what an earlier
call listed there is replaced, anything else is left alone. Prompts are numbered as they are given, those of a file by its lines:
an empty line keeps its number, a prompt that stands on two lines has its pictures under both numbers. An image depends on its
prompt, seed, index and settings only. Sampling settings default to those of the run's config. --shape=384x640 draws pictures of
384 rows by 640 columns (height x width).
"""

import collections
import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli, sampling_flags
from ec_dit.core import processes, terminal
from ec_dit.core.errors import UserError

FLAGS = flags.FlagValues()
sampling_flags.define_prompts(FLAGS, num=8)
cli.define_path("out", "Folder to write.", flag_values=FLAGS)
sampling_flags.define(FLAGS)
cli.define_run(FLAGS)
cli.define_processes(FLAGS)
cli.define_help(FLAGS)


def work() -> None:
    """Loads the run and draws."""
    for name in ("workdir", "out"):
        if not FLAGS[name].value:
            raise UserError(f"--{name}=DIR is needed; see --help")
    texts = sampling_flags.prompts(FLAGS)
    pixels = sampling_flags.pixels(FLAGS)
    changes = sampling_flags.changes(FLAGS)

    from ec_dit.runs import loaded
    from ec_dit.runs.pictures import PictureFolder, describe

    out = PictureFolder(FLAGS.out, texts, FLAGS.num)
    if processes.is_first():
        out.check()  # before the model is loaded for nothing
    run = loaded.load(FLAGS.workdir, ema=FLAGS.ema, step=FLAGS.step, changes=changes)
    generator = run.generator(pixels)
    cut = out.numbers_of(run.captions.cuts)
    if cut:
        shown = ", ".join(map(str, cut[:5])) + (", ..." if len(cut) > 5 else "")
        cli.say(
            f"warning: cut, as the model reads {run.config.text.length} tokens at most: {len(cut)} prompts, {shown}"
        )

    prompts_drawn, indices = zip(*out.jobs, strict=True)
    made = generator.batches(run.params, prompts_drawn, indices, FLAGS.seed)
    if not processes.is_first():
        collections.deque(made, maxlen=0)  # the first process writes
        return
    facts = {
        "seed": FLAGS.seed,
        "workdir": FLAGS.workdir,
        "config": run.config.name,
        "step": run.step,
        "weights": "ema" if FLAGS.ema else "params",
        "shape": "x".join(str(side * run.factor) for side in generator.shape_YXZ[:2]),
        **describe(run.system, generator.settings),
        "cut": cut,
    }
    with out.writing(facts) as record, terminal.Progress("drawing", len(out.jobs), "images") as progress:
        for part, batch in made:
            for text, index, image in zip(prompts_drawn[part], indices[part], batch, strict=True):
                out.write(text, index, image)
            progress.update(len(batch))
        record["images_not_finite"] = generator.broken
    told = f"{out.told}; {generator.settings.evaluations} network evaluations each"
    cli.say("\n".join(filter(None, (told, generator.warning))))


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    return cli.run("sample", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
