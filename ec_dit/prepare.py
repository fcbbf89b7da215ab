"""Prepares a data set: python -m ec_dit.prepare --source=webdataset --path=DIR --out=DIR [options].

Writes TFDS files in ArrayRecord and a report of what was kept and why the rest was skipped. Without encoders the records are
pictures, with a sentencepiece tokenizer of their captions; with --vae and --text_encoder, two folders of published models, they
are latents and embeddings; a model is a folder, or a name at Hugging Face, OWNER/NAME[/FOLDER][@REVISION], which is downloaded
once and kept by its commit (pip install 'ec-dit[hub]'). Interrupted, the same command goes on where it was. Options that a
source does not have are refused; --option=key=value gives any that it has. Several processes share the work, with an --out
that all of them see.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from ec_dit import cli
from ec_dit.core import paths, seeds
from ec_dit.core.errors import UserError
from ec_dit.preparation import registry

if TYPE_CHECKING:
    from ec_dit.data.captions import CaptionSpec
    from ec_dit.preparation.units import EncodingPlan

# Flags that are options of a source, with the names they have there.
_OPTIONS = {name: name for name in ("path", "captions", "font", "placement", "ground", "seed", "validation_share")}
_OF_SHAPES = {"num_train": "train", "num_validation": "validation"}
_MOST_DRAWN, _LARGEST = 10**9, 2**16  # pictures, pixels of a side
_FILTERS = ("min_size", "max_pixels", "max_aspect", "min_caption", "max_caption", "duplicate_bits")
_CAPTIONS = {"lower": "lower", "text_join": "join", "text_padding": "padding"}  # of CaptionSpec
_CAPTIONS |= {"text_template": "template", "text_layer": "layer"}
_OF_ENCODED = (
    *("resolution", "buckets", "bucket_step", "bucket_aspect", "text_length", "text_type", "flip"),
    *_CAPTIONS,
    "text_like",
    *("encoder_dtype", "batch_size", "mesh"),
)


def _flags() -> flags.FlagValues:
    """The flags of this entry point, apart from absl's global ones, where another may use the same names."""
    values = flags.FlagValues()

    def text(name: str, meaning: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, meaning, flag_values=values)

    def place(name: str, meaning: str) -> None:
        cli.define_path(name, meaning, flag_values=values)

    def whole(name: str, meaning: str, default: int | None = None, most: int = 2**31 - 1) -> None:
        flags.DEFINE_integer(name, default, meaning, lower_bound=0, upper_bound=most, flag_values=values)

    def real(name: str, meaning: str, default: float | None = None) -> None:
        cli.define_float(name, default, meaning, flag_values=values)

    def switch(name: str, meaning: str) -> None:
        flags.DEFINE_bool(name, False, meaning, flag_values=values)

    text("source", f"What to prepare: {', '.join(registry.NAMES)}.")
    place(
        "out",
        "Folder to write; it must not exist yet, be empty, or hold what an interrupted call of this command left.",
    )
    place(
        "path", "Where the source lies: a folder; webdataset and parquet also take a file, a{000..099}.tar or a*.tar."
    )
    flags.DEFINE_list(
        "captions",
        None,
        "Of found pictures: where captions come from, each with its weight, such as recaption=0.8,txt=0.2 or captions.short.",
        flag_values=values,
    )
    place("font", "emoji: file of a colour emoji font; without it an installed one is used.")
    text("placement", "shapes: where objects stand: cell, jitter or free.")
    text("ground", "shapes: plain or textured.")
    whole("num_train", "shapes: training examples.", most=_MOST_DRAWN)
    whole("num_validation", "shapes: validation examples.", most=_MOST_DRAWN)
    whole("seed", "shapes: seed of the scenes.", most=seeds.LARGEST)
    real(
        "validation_share",
        "Share of the pictures held out for validation, where the source has no such split, or is not to use it.",
    )
    flags.DEFINE_multi_string(
        "option",
        [],
        "key=value: any option of the source, as JSON or a Python literal, such as --option=cells=3. May be repeated.",
        flag_values=values,
    )

    whole("min_size", "Leave out pictures whose shorter side has fewer pixels (16).")
    whole("max_pixels", "Leave out pictures of more pixels, before they are decompressed (64 million).")
    real("max_aspect", "Leave out pictures whose longer side is longer than so many times the shorter one.")
    whole("min_caption", "Leave out captions of fewer letters (1).")
    whole("max_caption", "Leave out captions of more letters.")
    whole(
        "duplicate_bits",
        "Leave out pictures whose perceptual hash differs in so few bits from one before in its shard; try 4.",
    )
    flags.DEFINE_multi_string(
        "keep",
        [],
        "A condition on the metadata of what is kept, such as 'aesthetic>=5' or 'punsafe<0.1'. May be repeated.",
        flag_values=values,
    )
    real("max_skipped_share", "Fail if more than this share of the examples, from 0 to 1, cannot be used.", 0.1)

    whole(
        "image_size",
        "Of pictures: side of what shapes, emoji and icons draw; others are shrunk to it, if their shorter side is longer.",
        most=_LARGEST,
    )
    whole("vocab_size", "Of pictures: pieces of the tokenizer, at most.", 4096)
    place("tokenizer", "Of pictures: a sentencepiece model to copy instead of training one.")

    place("vae", "A published autoencoder, folder or name at Hugging Face: store latents, their mean and deviation.")
    text("text_encoder", "Published text encoders, folders or names, comma-separated: store embeddings.")
    whole("resolution", "Side in pixels to which pictures are cropped before they are encoded.", 256)
    switch(
        "buckets",
        "Keep the shape of pictures: crop each to the nearest of several that have about resolution^2 pixels.",
    )
    whole("bucket_step", "Sides of buckets are multiples of this; default 64, or 32 where the resolution is under 512.")
    real("bucket_aspect", "Longer side over shorter side of the longest bucket.", 2.0)
    whole("text_length", "Tokens of a caption, at most.", 77)
    flags.DEFINE_enum("text_type", "bfloat16", ["bfloat16", "int8"], "How embeddings are stored.", flag_values=values)
    switch("flip", "Store a second latent, of the mirror image, where the caption allows it.")
    switch("lower", "Captions in lower case, as PixArt's.")
    place("text_like", "Read captions as the model of this workdir does: their length, and what the flags below say.")
    text("text_join", "Of several text encoders: sd3 (CLIPs side by side, T5 behind them) or flux.")
    text("text_padding", "What fills up a short caption: masked, or read, as SD3 does.")
    text("text_template", "What encoders read in place of a caption, with {caption} where it stands.")
    whole("text_layer", "Of a decoder: states of so many layers before the last.")
    flags.DEFINE_enum(
        "encoder_dtype",
        "auto",
        ["auto", "float32", "bfloat16"],
        "Of the text encoders: auto is float32 on CPUs.",
        flag_values=values,
    )
    whole("batch_size", "Pictures encoded at a time.", 32)
    whole("num_shards", "Files of each split, and pieces in which the work is done; default: as the source comes.")
    flags.DEFINE_bool("overwrite", False, "Replace a finished data set at --out.", flag_values=values)
    cli.define_mesh(values)
    cli.define_processes(values)
    cli.define_help(values)
    return values


def prepare(values: flags.FlagValues) -> None:
    """Writes the data set and prints the report's table.

    Raises:
        UserError: a needed flag is missing, or the source, its options or its files are no good.
    """
    for name in ("source", "out"):
        if not values[name].value:
            raise UserError(f"--{name}=... is needed; see --help")
    for name in ("vae", "text_encoder"):
        if values[name].value == "":  # a variable of the shell that is not set, perhaps
            raise UserError(f"--{name} is empty; give a folder, or leave it out to store pictures as they are")
    if bool(values.vae) != bool(values.text_encoder):
        raise UserError("--vae and --text_encoder go together: give both, or none to store pictures as they are")
    _check_unused(values)

    from ec_dit.data.layout import SKIPPED
    from ec_dit.preparation import filters, ownership, writing

    chosen: dict[str, Any] = {
        option: values[flag].value for flag, option in _OPTIONS.items() if values[flag].value is not None
    }
    if values.source == "shapes":
        chosen |= {option: values[flag].value for flag, option in _OF_SHAPES.items() if values[flag].value is not None}
    if "captions" in chosen:
        chosen["captions"] = tuple(chosen["captions"])
    drawn = values.source in registry.DRAWN
    if drawn and values.image_size is not None:
        chosen["image_size"] = values.image_size
    others = registry.parse_options(values.source, values.option)
    for name in chosen.keys() & others.keys():
        raise UserError(f"option {name!r} is given twice, by its own flag and by --option")
    given: dict[str, Any] = {name: values[name].value for name in _FILTERS if values[name].value is not None}
    wanted = filters.Filters(**given, keep=tuple(values.keep))
    paths.check_can_write(values.out, "--out")
    ownership.check_free(values.out, values.overwrite)  # before encoders are loaded for nothing
    source = registry.make_source(values.source, chosen | others)
    report = writing.write(
        source,
        values.out,
        encoding=_encoding(values) if values.vae else None,
        chosen=wanted,
        image_size=None if drawn else values.image_size,
        num_shards=values.num_shards,
        vocab_size=values.vocab_size,
        tokenizer_path=values.tokenizer,
        max_skipped_share=values.max_skipped_share,
        overwrite=values.overwrite,
        say=cli.say,
    )
    cli.say(f"{report.table()}\n\n{paths.at(values.out) / SKIPPED} lists every example that was skipped.")


def _check_unused(values: flags.FlagValues) -> None:
    """Flags that would change nothing are mistakes."""
    of_pictures = (
        ("vocab_size", "tokenizer") if values.source in registry.DRAWN else ("image_size", "vocab_size", "tokenizer")
    )
    for name in of_pictures if values.vae else _OF_ENCODED:
        if values[name].present:
            raise UserError(
                f"--{name} is of pictures stored as they are; with encoders give --resolution"
                if values.vae
                else f"--{name} is of encoded data sets: give --vae and --text_encoder too"
            )
    for name in _OF_SHAPES:
        if values[name].present and values.source != "shapes":
            raise UserError(f"--{name} is of the source shapes, not of {values.source}")
    if not values.buckets and (values["bucket_step"].present or values["bucket_aspect"].present):
        raise UserError("--bucket_step and --bucket_aspect need --buckets")


def _encoding(values: flags.FlagValues) -> "EncodingPlan":
    """Loads the encoders."""
    cli.quiet()
    import jax
    import jax.numpy as jnp

    from ec_dit.core.mesh import MESH_AXES, make_mesh
    from ec_dit.encoders.frozen import FrozenEncoders, folders
    from ec_dit.preparation import resolution
    from ec_dit.preparation.units import EncodingPlan

    side, step = values.resolution, values.bucket_step
    if step is None:
        step = 64 if side >= 512 else 32
    shapes = resolution.buckets(side, step, values.bucket_aspect) if values.buckets else resolution.square(side)
    spec, length = _captions(values)
    if values.batch_size < 1 or length < 1:
        raise UserError("--batch_size and --text_length must be at least 1")
    mesh = make_mesh([cli.mesh_of(values)[axis] for axis in MESH_AXES], jax.local_devices())  # each process for itself
    on_cpu = jax.local_devices()[0].platform == "cpu"
    dtype = {"auto": "float32" if on_cpu else "bfloat16"}.get(values.encoder_dtype, values.encoder_dtype)
    encoders = FrozenEncoders(
        values.vae,
        folders(values.text_encoder),
        length,
        mesh,
        spec=spec,
        dtype=jnp.dtype(dtype),
    )
    for shape in shapes:
        if any(side % encoders.factor for side in shape):
            raise UserError(
                f"pictures of {shape[0]} x {shape[1]} pixels do not divide into the autoencoder's {encoders.factor} x "
                f"{encoders.factor}: change --resolution or --bucket_step"
            )
    facts: dict[str, Any] = encoders.facts()
    facts["text"]["type"] = values.text_type
    facts["pictures"] = {
        "resolution": side,
        "shapes": [list(shape) for shape in shapes],
        "resize": "the largest centred part of the shape's aspect ratio, upright, RGB, on white, by Lanczos with antialiasing",
        "flip": values.flip,
        "batch_size": values.batch_size,
    }
    return EncodingPlan(encoders, facts, shapes, values.batch_size, values.text_type, values.flip)


def _captions(values: flags.FlagValues) -> tuple["CaptionSpec", int]:
    """How captions are read, and in how many tokens.

    Raises:
        UserError: naming a flag whose value is none, or that another one decides.
    """
    from ec_dit.core import settings
    from ec_dit.data.captions import CaptionSpec

    if values.text_like:
        from ec_dit import config

        if given := [flag for flag in (*_CAPTIONS, "text_length") if values[flag].present]:
            raise UserError(f"--{given[0]} is what --text_like takes from the workdir: leave one of them out")
        path = paths.at(values.text_like) / "config.json"
        if not path.exists():
            raise UserError(f"--text_like={values.text_like}: there is no workdir, no {path}")
        text = config.from_json(path.read_text(), str(path)).text
        return settings.narrow(CaptionSpec, text), text.length
    chosen: dict[str, Any] = {
        name: values[flag].value for flag, name in _CAPTIONS.items() if values[flag].value is not None
    }
    for flag, name in _CAPTIONS.items():
        if name in chosen and (problem := settings.keys(CaptionSpec)[name].problem(chosen[name])):
            raise UserError(f"--{flag}={chosen[name]}: {problem}")
    return CaptionSpec(**chosen), values.text_length


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    values = _flags()
    return cli.run("prepare", __doc__ or "", values, lambda: prepare(values), argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
