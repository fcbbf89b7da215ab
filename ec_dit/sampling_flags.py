"""The flags of what draws pictures of a run, and what they change in its config."""

import math
import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from ec_dit import cli
from ec_dit.core.errors import UserError

_KEYS = (
    "steps",
    "sampler",
    "guidance",
    "guidance_norm",
    "time_shift",
    "time_shift_rise",
    "final_time",
    "spacing",
    "capacity",
    "room",
    "capacity_factor",
    "group_size",
    "batch_size",
)


_MOST = 10_000_000  # pictures of a call
NAMES = (*_KEYS, "guidance_interval", *cli.FLAG_OF.values())  # of all flags


def define(flag_values: flags.FlagValues) -> None:
    """Adds the flags of what draws: those of the config's `sample` section, --text_encoder and --autoencoder."""

    def number(name: str, meaning: str) -> None:
        flags.DEFINE_integer(name, None, meaning, flag_values=flag_values)

    def text(name: str, meaning: str) -> None:
        flags.DEFINE_string(name, None, meaning, flag_values=flag_values)

    number("steps", "Integration steps.")
    text("sampler", "How to get from noise to pictures, such as heun; a wrong name lists all.")
    cli.define_float("guidance", None, "Classifier-free guidance scale; 1 = off.", flag_values=flag_values)
    meaning = "Two times between which guidance acts, e.g. 0.1,0.9."
    flags.DEFINE_list("guidance_interval", None, meaning, flag_values=flag_values)
    cli.define_float("time_shift", None, "> 1 spends more steps near noise.", flag_values=flag_values)
    meaning = "By how much the logarithm of time_shift grows with each token more than the run's own pictures have."
    cli.define_float("time_shift_rise", None, meaning, flag_values=flag_values)
    meaning = "Where the last step to data begins, before the shift; 0 = all steps are alike."
    cli.define_float("final_time", None, meaning, flag_values=flag_values)
    text("guidance_norm", "token: guided predictions of tokens keep the length of the conditional ones; or none.")
    text("spacing", "Which of DDPM's levels, such as trailing; a wrong name lists all.")
    text("capacity", "Of experts: fixed, or matched to training, by its thresholds.")
    meaning = "Slots of an expert over its even share, where thresholds decide."
    cli.define_float("room", None, meaning, flag_values=flag_values)
    meaning = "Experts per token on average; more may raise quality."
    cli.define_float("capacity_factor", None, meaning, flag_values=flag_values)
    text("group_size", "Tokens routed together: pair, image, or a number.")
    text("model_layout", "Of the model on several devices: auto, copied, fsdp, or mesh, which --mesh gives.")
    number("batch_size", "Images at once.")
    text("text_encoder", "Published text encoders: folders, or names such as OWNER/NAME@REVISION, comma-separated.")
    meaning = "A published autoencoder: folder, or name such as OWNER/NAME@REVISION."
    cli.define_path("autoencoder", meaning, flag_values=flag_values)


def define_prompts(flag_values: flags.FlagValues, num: int) -> None:
    """Adds what says what to draw: --prompt, --prompts_file, --num (its default) and --shape."""
    flags.DEFINE_multi_string("prompt", [], "What to draw; repeat for more.", flag_values=flag_values)
    cli.define_path("prompts_file", "A text file with one prompt a line.", flag_values=flag_values)
    flags.DEFINE_integer("num", num, "Images per prompt.", lower_bound=1, upper_bound=_MOST, flag_values=flag_values)
    meaning = "Pixels, height x width: 384x640; default: the config's square."
    flags.DEFINE_string("shape", None, meaning, flag_values=flag_values)


def prompts(flag_values: flags.FlagValues) -> list[str]:
    """Gives all prompts of the command line, then all lines of the file; '' where one is empty, so that numbers follow the lines.

    Raises:
        UserError: if there are none.
    """
    from ec_dit.layouts.base import lines_of

    num: int = flag_values["num"].value or 1
    found = list(flag_values["prompt"].value or [])
    if flag_values["prompts_file"].value:
        found += lines_of(flag_values["prompts_file"].value)
    found = [p.strip() for p in found]
    for prompt in found:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise UserError(f"the prompt {prompt!r} is no valid Unicode; check the terminal's encoding")
    if not any(found):
        raise UserError('nothing to draw: give --prompt="..." or --prompts_file=F with one prompt a line')
    if len(found) * num > _MOST:
        raise UserError(f"{len(found)} prompts with --num={num} pictures each: a call draws {_MOST:,} at most")
    return found


def pixels(flag_values: flags.FlagValues) -> tuple[int, int] | None:
    """Gives rows and columns of --shape; None where it is not given. Raises UserError for another form."""
    text = flag_values["shape"].value
    if text is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", text):
        raise UserError(f"--shape={text}: give height x width in pixels, e.g. 384x640")
    rows, columns = map(int, text.split("x"))
    return rows, columns


def changes(flag_values: flags.FlagValues) -> dict[str, Any]:
    """Gives what the flags of `define` and --mesh say otherwise than the run's config, by its keys.

    Raises:
        UserError: for what no config may hold, before a run is looked for.
    """
    from ec_dit.core import settings
    from ec_dit.sampling.settings import SampleSpec

    keys, given = settings.keys(SampleSpec), {name: flag_values[name].value for name in _KEYS}
    for name, value in {**given, "layout": flag_values["model_layout"].value}.items():
        if value is not None and (problem := keys[name].problem(value)):
            raise UserError(f"--{cli.FLAG_OF.get(f'sample.{name}', name)}={value}: {problem}.")
    parts = flag_values["guidance_interval"].value
    changes: dict[str, Any] = settings.prefixed("sample", given)
    changes |= {"sample.guidance_interval": None if parts is None else _interval(parts)}
    changes |= {key: flag_values[flag].value for key, flag in cli.FLAG_OF.items()}
    changes |= settings.prefixed("mesh", cli.mesh_of(flag_values))
    if flag_values["mesh"].present and changes["sample.layout"] is None:
        changes["sample.layout"] = "mesh"
    return {key: value for key, value in changes.items() if value is not None}


def _interval(parts: Sequence[str]) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        low = high = math.nan
    if not 0 <= low < high <= 1:
        raise UserError(f"--guidance_interval={','.join(parts)}: give two times, 0 <= low < high <= 1, such as 0.1,0.9")
    return low, high
