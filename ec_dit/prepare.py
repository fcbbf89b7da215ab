"""Prepares a data set: python -m ec_dit.prepare --source=shapes|emoji|folder --out=DIR [options].

Writes a TFDS data set in ArrayRecord, a sentencepiece tokenizer of its captions and a report of what was kept and why
the rest was skipped. Options that a source does not have are refused; --option=key=value gives any that it has. Several
processes share the work, with an --out that all of them see.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ec_dit import cli
from ec_dit.core import paths, processes
from ec_dit.core.errors import UserError
from ec_dit.data import dataset, registry, together

# Flags that are options of a source, with the names they have there.
_OPTIONS = {name: name for name in ("path", "font", "placement", "ground", "image_size", "seed", "validation_share")}
_OPTIONS |= {"num_train": "train", "num_validation": "validation"}


def _flags() -> flags.FlagValues:
    """The flags of this entry point, apart from absl's global ones, where another may use the same names."""
    values = flags.FlagValues()

    def text(name: str, meaning: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, meaning, flag_values=values)

    def whole(name: str, meaning: str, default: int | None = None) -> None:
        flags.DEFINE_integer(name, default, meaning, lower_bound=0, flag_values=values)

    def real(name: str, meaning: str, default: float | None = None) -> None:
        flags.DEFINE_float(name, default, meaning, flag_values=values)

    text("source", f"What to prepare: {', '.join(registry.NAMES)}.")
    text("out", "Folder to write; it must not exist yet, or be empty.")
    text("path", "folder: the images, with captions in x.txt beside x.jpg or in captions.jsonl.")
    text("font", "emoji: file of a colour emoji font; without it an installed one is used.")
    text("placement", "shapes: where objects stand: cell, jitter or free.")
    text("ground", "shapes: plain or textured.")
    text("tokenizer", "A sentencepiece model to copy instead of training one.")
    whole("image_size", "shapes, emoji: side in pixels. folder: shrink images whose shorter side is longer.")
    whole("num_train", "shapes: training examples.")
    whole("num_validation", "shapes: validation examples.")
    whole("seed", "shapes: seed of the scenes.")
    whole("vocab_size", "Pieces of the tokenizer, at most.", 4096)
    real("validation_share", "folder: share of the images held out for validation.")
    real("max_skipped_share", "Fail if more than this share of the examples, from 0 to 1, cannot be used.", 0.1)
    flags.DEFINE_multi_string(
        "option",
        [],
        "key=value: any option of the source, as JSON or a Python literal, such as --option=cells=3. May be repeated.",
        flag_values=values,
    )
    flags.DEFINE_bool("overwrite", False, "Replace a finished data set at --out.", flag_values=values)
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
    chosen = {option: values[flag].value for flag, option in _OPTIONS.items() if values[flag].value is not None}
    others = registry.parse_options(values.source, values.option)
    for name in chosen.keys() & others.keys():
        raise UserError(f"option {name!r} is given twice, by its own flag and by --option")
    try:
        source = registry.make_source(values.source, chosen | others)
        dataset.refuse_taken(values.out, values.overwrite)
        with together.divided(source, values.out) as source:
            if not processes.is_first():
                return
            report = dataset.write(
                source,
                values.out,
                vocab_size=values.vocab_size,
                tokenizer_path=values.tokenizer,
                max_skipped_share=values.max_skipped_share,
                overwrite=values.overwrite,
            )
    except OSError as error:  # a full disk, a folder one may not write to
        raise UserError(str(error)) from error
    cli.say(f"{report.table()}\n\n{paths.at(values.out) / dataset.REPORT} lists every example that was skipped.")


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    values = _flags()
    return cli.run("prepare", __doc__ or "", values, lambda: prepare(values), argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
