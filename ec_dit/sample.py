"""Draws: python -m ec_dit.sample --workdir=DIR --prompt="a red circle" [--prompt=...] [--prompts_file=F] --out=DIR.

Writes one PNG per image, 00000_0000.png by prompt and index, a contact sheet and settings.json, which lists them: what an earlier
call listed there is replaced, anything else is left alone. Prompts are numbered as they are given, those of a file by its lines:
an empty line keeps its number, a prompt that stands on two lines has its pictures under both numbers. An image depends on its
prompt, seed, index and settings only. Sampling settings default to those of the run's config. --shape=384x640 draws pictures of
384 rows by 640 columns (height x width).
"""

import collections
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from ec_dit import cli
from ec_dit.core import paths, processes, terminal
from ec_dit.core.errors import UserError

_MOST = 10_000_000  # pictures of a call

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string("prompt", [], "What to draw; repeat for more.", flag_values=FLAGS)
cli.define_path("prompts_file", "A text file with one prompt a line.", flag_values=FLAGS)
cli.define_path("out", "Folder to write.", flag_values=FLAGS)
flags.DEFINE_integer("num", 8, "Images per prompt.", lower_bound=1, upper_bound=_MOST, flag_values=FLAGS)
flags.DEFINE_string("shape", None, "Pixels, height x width: 384x640; default: the config's square.", flag_values=FLAGS)
flags.DEFINE_integer("steps", None, "Integration steps.", flag_values=FLAGS)
flags.DEFINE_string(
    "sampler", None, "How to get from noise to pictures, such as heun; a wrong name lists all.", flag_values=FLAGS
)
cli.define_float("guidance", None, "Classifier-free guidance scale; 1 = off.", flag_values=FLAGS)
flags.DEFINE_list("guidance_interval", None, "Two times between which guidance acts, e.g. 0.1,0.9.", flag_values=FLAGS)
cli.define_float("time_shift", None, "> 1 spends more steps near noise.", flag_values=FLAGS)
flags.DEFINE_string(
    "spacing", None, "Which of DDPM's levels, such as trailing; a wrong name lists all.", flag_values=FLAGS
)
cli.define_float("capacity_factor", None, "Experts per token on average; more may raise quality.", flag_values=FLAGS)
flags.DEFINE_string("group_size", None, "Tokens routed together: pair, image, or a number.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", None, "Images at once.", flag_values=FLAGS)
flags.DEFINE_string(
    "text_encoder",
    None,
    "Published text encoders: folders, or names such as OWNER/NAME@REVISION, comma-separated.",
    flag_values=FLAGS,
)
cli.define_path(
    "autoencoder", "A published autoencoder: folder, or name such as OWNER/NAME@REVISION.", flag_values=FLAGS
)
cli.define_run(FLAGS)
cli.define_processes(FLAGS)
cli.define_help(FLAGS)

_OVERRIDES = ("steps", "sampler", "guidance", "time_shift", "spacing", "capacity_factor", "group_size", "batch_size")


def prompts() -> list[str]:
    """All prompts of the command line, then all lines of the file; '' where one is empty, so that numbers follow the lines.

    Raises:
        UserError: if there are none.
    """
    found = list(FLAGS.prompt)
    if FLAGS.prompts_file:
        found += _lines(FLAGS.prompts_file)
    found = [p.strip() for p in found]
    for prompt in found:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise UserError(f"the prompt {prompt!r} is no valid Unicode; check the terminal's encoding")
    if not any(found):
        raise UserError('nothing to draw: give --prompt="..." or --prompts_file=F with one prompt a line')
    if len(found) * FLAGS.num > _MOST:
        raise UserError(f"{len(found)} prompts with --num={FLAGS.num} pictures each: a call draws {_MOST:,} at most")
    return found


def _lines(name: str) -> list[str]:
    """The lines of a prompts file, on a disk or in a bucket."""
    path = paths.at(name)
    if not path.exists():
        raise UserError(f"there is no prompts file {path}")
    if not paths.is_remote(path) and not Path(path).is_file():  # opening a pipe would wait for ever
        raise UserError(f"the prompts file {path} is no plain file")
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"the prompts file {path} is not UTF-8: {error}") from error
    return lines[:-1] if lines[-1] == "" else lines  # what follows the last newline is no line


def work() -> None:
    """Loads the run and draws."""
    for name in ("workdir", "out"):
        if not FLAGS[name].value:
            raise UserError(f"--{name}=DIR is needed; see --help")
    texts = prompts()
    pixels = None if FLAGS.shape is None else _pixels(FLAGS.shape)
    changes = _changes()

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


def _changes() -> dict[str, Any]:
    """Gives what flags say otherwise than the run's config, by its keys.

    Raises:
        UserError: for what no config may hold, before a run is looked for.
    """
    from ec_dit.core import settings
    from ec_dit.sampling.settings import SampleSpec

    keys = settings.keys(SampleSpec)
    for name in _OVERRIDES:
        value = FLAGS[name].value
        if value is not None and (problem := keys[name].problem(value)):
            raise UserError(f"--{name}={value}: {problem}.")
    interval = None if FLAGS.guidance_interval is None else _interval(FLAGS.guidance_interval)
    changes: dict[str, Any] = {f"sample.{name}": FLAGS[name].value for name in _OVERRIDES}
    changes |= {"sample.guidance_interval": interval, "text.path": FLAGS.text_encoder}
    changes |= {"data.autoencoder": FLAGS.autoencoder, **settings.prefixed("mesh", cli.mesh_of(FLAGS))}
    return {key: value for key, value in changes.items() if value is not None}


def _pixels(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", text):
        raise UserError(f"--shape={text}: give height x width in pixels, e.g. 384x640")
    rows, columns = map(int, text.split("x"))
    return rows, columns


def _interval(parts: Sequence[str]) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        low = high = math.nan
    if not 0 <= low < high <= 1:
        raise UserError(f"--guidance_interval={','.join(parts)}: give two times, 0 <= low < high <= 1, such as 0.1,0.9")
    return low, high


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    return cli.run("sample", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
