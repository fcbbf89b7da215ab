"""Converts models: python -m ec_dit.convert --from=pixart --path=DIR --out=DIR [--upcycle --experts=8] [--to=workdir].

--from: pixart (published PixArt-alpha or PixArt-Sigma, diffusers' layout), nucleus (Nucleus-Image), sd3 (Stable Diffusion 3
and 3.5), workdir (a run), safetensors (what --to=safetensors wrote). --to: workdir (to sample from, and to start a run with:
--config.train.init_from=DIR), diffusers (its transformer of the same blocks loads it), safetensors (any model, with a
config.json). --upcycle copies the feed-forward layers of a dense model to experts. Several processes share the work, with an
--out that all of them see.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from ec_dit.core import paths
from ec_dit.core.errors import UserError

PUBLISHED = ("pixart", "nucleus", "sd3")
SOURCES, TARGETS = (*PUBLISHED, "workdir", "safetensors"), ("workdir", "diffusers", "safetensors")


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_enum("from", None, SOURCES, "What --path holds.", flag_values=values)
    cli.define_path("path", "What to read: a folder, or OWNER/NAME[@REVISION] at Hugging Face.", flag_values=values)
    flags.DEFINE_enum("to", "workdir", TARGETS, "What to write.", flag_values=values)
    cli.define_path("out", "Folder to write; it must not exist yet, or be empty.", flag_values=values)
    flags.DEFINE_bool("upcycle", False, "Copy the feed-forward layers of a dense model to experts.", flag_values=values)
    flags.DEFINE_integer("experts", 8, "upcycle: experts of a sparse block.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("first", 1, "upcycle: the first sparse block.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("every", 2, "upcycle: a sparse block every so many.", lower_bound=1, flag_values=values)
    cli.define_float(
        "capacity_factor", 2.0, "upcycle: experts per token on average.", lower_bound=0, flag_values=values
    )
    cli.define_float(
        "noise",
        0.0,
        "upcycle: noise on the copies, as a share of their weights' spread.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "text_length",
        None,
        "Of published models: text tokens; default by the pipeline.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16", "float16"],
        "diffusers, safetensors: of the tensors.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "step", None, "workdir: checkpoint to use; the newest by default.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_bool("ema", True, "workdir: the moving average of the parameters.", flag_values=values)
    cli.define_seed("upcycle: of routers and noise.", values)
    cli.define_mesh(values)
    cli.define_processes(values)
    cli.define_help(values)
    return values


def convert(values: flags.FlagValues) -> None:
    """Reads, perhaps upcycles, writes.

    Raises:
        UserError: for everything a user can mend.
    """
    for name in ("from", "path", "out"):
        if not values[name].value:
            raise UserError(f"--{name}=... is needed; see --help")

    source, target = values["from"].value, values.to
    for names, read, of in (
        (("text_length",), source in PUBLISHED, f"--from={' or '.join(PUBLISHED)}"),
        (("step", "ema"), source == "workdir", "--from=workdir"),
        (("dtype",), target != "workdir", "--to=diffusers and --to=safetensors"),
        (("experts", "first", "every", "capacity_factor", "noise", "seed"), values.upcycle, "--upcycle"),
    ):
        if useless := [name for name in names if values[name].present and not read]:
            raise UserError(f"--{useless[0]} belongs to {of}; here it would do nothing.")

    from ec_dit.conversion import (  # these imports take seconds that a typo need not cost
        growing,
        published,
        reading,
        writing,
    )

    paths.check_can_write(values.out, "--out")
    writing.refuse_taken(values.out)
    mesh = cli.mesh_of(values)
    if source in PUBLISHED:
        model = published.from_published(source, values.path, mesh, values.text_length, cli.say)
    elif source == "workdir":
        model = reading.from_workdir(values.path, mesh, ema=values.ema, step=values.step)
    else:
        model = reading.from_safetensors(values.path, mesh, cli.say)
    if values.upcycle:
        how = growing.Growth(
            values.experts, values.first, values.every, values.capacity_factor, values.noise, values.seed
        )
        model = growing.grow(model, how, cli.say)
    writing.refuse_broken(model)
    if values.to == "workdir":
        writing.to_workdir(model, values.out)
    elif values.to == "diffusers":
        writing.to_diffusers(model, values.out, values.dtype, cli.say)
    else:
        writing.to_safetensors(model, values.out, values.dtype)
    cli.say(f"done: {values.out}")


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    values = _flags()
    return cli.run("convert", __doc__ or "", values, lambda: convert(values), argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
