"""Draws: python -m ec_dit.sample --workdir=DIR --prompt="a red circle" [--prompt=...] [--prompts_file=F] --out=DIR.

Writes one PNG per image, 00000_0000.png by prompt and index, a contact sheet and settings.json; pictures that an earlier
call left in the folder are removed. An image depends on its prompt, seed, index and settings only. Sampling settings default
to those of the run's config. --shape=384x640 draws pictures of 384 rows by 640 columns (height x width).
"""

import collections
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from etils import epath

from ec_dit import cli
from ec_dit.core import paths, processes
from ec_dit.core.errors import UserError

_SHEET = 64  # pictures on the contact sheet, at most

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string("prompt", [], "What to draw; repeat for more.", flag_values=FLAGS)
cli.define_path("prompts_file", "A text file with one prompt a line.", flag_values=FLAGS)
cli.define_path("out", "Folder to write.", flag_values=FLAGS)
flags.DEFINE_integer("num", 8, "Images per prompt.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("shape", None, "Pixels, height x width: 384x640; default: the config's square.", flag_values=FLAGS)
flags.DEFINE_integer("steps", None, "Integration steps.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_enum("sampler", None, ["euler", "heun", "ddim", "dpmpp_2m"], "How to get there.", flag_values=FLAGS)
cli.define_float("guidance", None, "Classifier-free guidance scale; 1 = off.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_list("guidance_interval", None, "Two times between which guidance acts, e.g. 0.1,0.9.", flag_values=FLAGS)
cli.define_float("time_shift", None, "> 1 spends more steps near noise.", flag_values=FLAGS)
flags.DEFINE_enum("spacing", None, ["linspace", "leading", "trailing"], "Which of DDPM's levels.", flag_values=FLAGS)
cli.define_float("capacity_factor", None, "Experts per token on average; more may raise quality.", flag_values=FLAGS)
flags.DEFINE_string("group_size", None, "Tokens routed together: pair, image, or a number.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", None, "Images at once.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("text_encoder", None, "Folders of published text encoders, comma-separated.", flag_values=FLAGS)
cli.define_path("autoencoder", "Folder of a published autoencoder.", flag_values=FLAGS)
cli.define_run(FLAGS)
cli.define_processes(FLAGS)
cli.define_help(FLAGS)

_OVERRIDES = ("steps", "sampler", "guidance", "time_shift", "spacing", "capacity_factor", "group_size", "batch_size")


def prompts() -> list[str]:
    """All prompts of the command line and the file, in order, without repeats.

    Raises:
        UserError: if there are none.
    """
    found = list(FLAGS.prompt)
    if FLAGS.prompts_file:
        path = Path(FLAGS.prompts_file)
        if not path.is_file():
            raise UserError(f"there is no prompts file {path}")
        try:
            found += path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"the prompts file {path} is not UTF-8: {error}") from error
    found = list(dict.fromkeys(p.strip() for p in found if p.strip()))
    for prompt in found:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise UserError(f"the prompt {prompt!r} is no valid Unicode; check the terminal's encoding")
    if not found:
        raise UserError('nothing to draw: give --prompt="..." or --prompts_file=F with one prompt a line')
    return found


def work() -> None:
    """Loads the run and draws."""
    for name in ("workdir", "out"):
        if not FLAGS[name].value:
            raise UserError(f"--{name}=DIR is needed; see --help")
    texts = prompts()
    pixels = None if FLAGS.shape is None else _pixels(FLAGS.shape)

    from tqdm import tqdm

    from ec_dit import checks, evaluation, specs
    from ec_dit.data import images
    from ec_dit.data.sheet import contact_sheet
    from ec_dit.workdir import Workdir

    workdir = Workdir(FLAGS.workdir)
    run_config = workdir.config()
    for name in _OVERRIDES:
        if FLAGS[name].value is not None:
            run_config.sample[name] = FLAGS[name].value
    if FLAGS.guidance_interval is not None:
        run_config.sample.guidance_interval = _interval(FLAGS.guidance_interval)
    if FLAGS.text_encoder is not None:
        run_config.text.path = FLAGS.text_encoder
    if FLAGS.autoencoder is not None:
        run_config.data.autoencoder = FLAGS.autoencoder
    run_config.mesh.update(cli.mesh_of(FLAGS))
    checks.validate(run_config)
    system, params, step = workdir.load(run_config, ema=FLAGS.ema, step=FLAGS.step)
    factor = system.autoencoder.factor
    shape = specs.square(run_config) if pixels is None else _latent_shape(pixels, factor, run_config.model.patch)
    settings = specs.sample_settings(run_config, shape)
    generator = system.generator(settings, shape)

    jobs = [(number, text, index) for number, text in enumerate(texts) for index in range(FLAGS.num)]
    numbers, captions, indices = zip(*jobs, strict=True)
    made = generator.batches(params, captions, indices, FLAGS.seed)
    if not processes.is_first():
        collections.deque(made, maxlen=0)  # the first process writes
        return
    out = _empty_folder(FLAGS.out)
    sheet: list[np.ndarray] = []
    with tqdm(total=len(jobs), unit="image") as bar:
        for part, batch in made:
            for number, index, image in zip(numbers[part], indices[part], batch, strict=True):
                (out / f"{number:05d}_{index:04d}.png").write_bytes(images.encode_png(images.to_pil(image)))
            sheet += list(batch[: max(0, _SHEET - len(sheet))])
            bar.update(len(batch))
    columns = min(8, FLAGS.num) if len(texts) > 1 else 8
    contact = contact_sheet(sheet, captions[: len(sheet)], columns, smooth=True)
    (out / "sheet.png").write_bytes(images.encode_png(contact))
    facts = {
        "prompts": texts,
        "num": FLAGS.num,
        "seed": FLAGS.seed,
        "workdir": FLAGS.workdir,
        "config": run_config.name,
        "step": step,
        "weights": "ema" if FLAGS.ema else "params",
        "images_not_finite": generator.broken,
        "shape": "x".join(str(side * factor) for side in shape),
        **evaluation.describe(system, settings),
    }
    (out / "settings.json").write_text(json.dumps(facts, indent=2) + "\n")
    if len(jobs) > len(sheet):
        cli.say(f"the sheet shows the first {len(sheet)}")
    told = f"{len(jobs)} images, {settings.evaluations} network evaluations each, in {out}; all together in {out / 'sheet.png'}"
    cli.say("\n".join(filter(None, (told, generator.warning))))


def _empty_folder(name: str) -> epath.Path:
    """The folder, made, without the pictures of an earlier call."""
    folder = paths.at(name)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9]*_[0-9]*.png"):
        old.unlink()
    return folder


def _pixels(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise UserError(f"--shape={text}: give height x width in pixels, e.g. 384x640")
    rows, columns = map(int, text.split("x"))
    return rows, columns


def _latent_shape(pixels: tuple[int, int], factor: int, patch: int) -> tuple[int, int]:
    """Rows and columns of the latents of such pictures."""
    rows, columns = pixels
    step = factor * patch  # pixels per side of a token
    if rows % step or columns % step:
        near = "x".join(str(max(1, round(side / step)) * step) for side in pixels)
        raise UserError(
            f"--shape={rows}x{columns}: both sides must be multiples of {step} pixels (autoencoder {factor} x patch {patch}); "
            f"the nearest is {near}"
        )
    return rows // factor, columns // factor


def _interval(parts: Sequence[str]) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in parts)
    except ValueError as error:
        raise UserError(f"--guidance_interval={','.join(parts)}: give two numbers, e.g. 0.1,0.9") from error
    return low, high


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    return cli.run("sample", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
