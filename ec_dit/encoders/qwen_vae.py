"""The autoencoder of Qwen-Image, of which Nucleus-Image has the latents, where diffusers' files keep its parameters.

It is one of videos. A picture is their first frame: its convolutions over time see nothing before it, so that of each the last of
three taps remains, and what joins frames is not used.
"""

import functools
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ec_dit.core import hub, name_map
from ec_dit.core.errors import UserError
from ec_dit.core.name_map import SAME, Way
from ec_dit.encoders.vae import VaeSpec

CLASS = "AutoencoderKLQwenImage"
_FRAMES = 3  # taps of a convolution over time
_CONV = Way(lambda _: [(3,), (2,), (), (0,), (1,)])  # (row, column, in, out) <- (out, in, frame, row, column)
_LAST = _CONV.cut(2, _FRAMES - 1, _FRAMES)
_FLAT_CONV = name_map.CONV  # of a picture: (out, in, row, column)
_MATRIX = Way(lambda _: [(1,), (0,), (), ()])  # (in, out) <- (out, in, 1, 1)


def spec_of(found: Mapping[str, Any], where: str) -> VaeSpec:
    """The spec that a config.json describes.

    Raises:
        UserError: naming `where` and what is not this autoencoder's, or not supported.
    """
    hub.supported(found, where, _class_name=CLASS, input_channels=3, attn_scales=([], None))
    values = hub.fields(found, where, base_dim=int, z_dim=int, dim_mult=list, num_res_blocks=int)
    steps = hub.fields(found, where, temperal_downsample=list, latents_mean=list, latents_std=list)
    multiples, channels = values["dim_mult"], values["z_dim"]
    if not multiples or not all(type(m) is int and m > 0 for m in multiples):
        raise UserError(f"{where}: dim_mult is {multiples}, not whole numbers above 0. {hub.AGAIN}")
    if len(steps["temperal_downsample"]) != len(multiples) - 1:
        raise UserError(f"{where}: temperal_downsample and dim_mult do not go together. {hub.AGAIN}")
    for key in ("latents_mean", "latents_std"):
        numbers = steps[key]
        good = all(isinstance(n, int | float) and math.isfinite(n) for n in numbers) and len(numbers) == channels
        if not good or (key == "latents_std" and min(numbers) <= 0):
            raise UserError(f"{where}: {key} is {numbers}, not a number for each of {channels} channels. {hub.AGAIN}")
    return VaeSpec(
        widths=tuple(values["base_dim"] * multiple for multiple in multiples),
        depth=values["num_res_blocks"],
        channels=channels,
        groups=0,
        scale=tuple(1 / float(std) for std in steps["latents_std"]),
        shift=tuple(float(mean) for mean in steps["latents_mean"]),
        quant=True,
        post_quant=True,
        attention=True,
        sample_size=256,
        narrows=True,
    )


def unread(spec: VaeSpec) -> Collection[str]:
    """Starts of the names of what joins frames."""
    levels = range(len(spec.widths) - 1)
    down = [f"encoder.down_blocks.{_resize_at(level, spec)}.time_conv." for level in levels]
    return [*down, *(f"decoder.up_blocks.{level}.upsamplers.0.time_conv." for level in levels)]


def entries(names: Iterable[str], spec: VaeSpec) -> name_map.Table:
    """Where diffusers' files keep the parameters `names` of a `Vae`."""
    names = list(names)
    return name_map.table(names, {name: _theirs(name, spec) for name in names}, {})


_PIECES = {"q": 0, "k": 1, "v": 2}  # of one matrix


def _theirs(name: str, spec: VaeSpec) -> tuple[str, Way]:
    *path, leaf = name.split("/")
    where, last = _place(path, spec), path[-1]
    if leaf == "scale_D":
        dimensions = 2 if "attention" in path else 3
        return f"{where}.gamma", Way(functools.partial(_vector, dimensions=dimensions))
    if last in _PIECES or last == "out":
        kind = "weight" if leaf == "w_ID" else "bias"
        way = _MATRIX if leaf == "w_ID" else SAME
        return f"{where}.{kind}", way if last == "out" else way.cut(0, _PIECES[last], 3)
    if leaf == "b_D":
        return f"{where}.bias", SAME
    if last in ("halve", "double"):
        return f"{where}.weight", _FLAT_CONV
    return f"{where}.weight", _CONV if last in ("quant", "post_quant", "shortcut") else _LAST


def _vector(_: int, dimensions: int) -> list[tuple[int, ...]]:
    """(width,) <- (width, 1, 1) and the like."""
    return [(0,), *((),) * dimensions]


def _place(path: list[str], spec: VaeSpec) -> str:
    """Their name of one of our layers."""
    half, *rest = path
    if half in ("quant", "post_quant"):
        return f"{half}_conv"
    if rest[0] == "mid":
        inner = {"attention": "attentions.0", "q": "to_qkv", "k": "to_qkv", "v": "to_qkv", "out": "proj"}
        inner["shortcut"] = "conv_shortcut"
        return ".".join([half, "mid_block", *(inner.get(word, word) for word in rest[1:])])
    if rest[0] not in ("down", "up"):  # conv_in, norm_out, conv_out
        return f"{half}.{rest[0]}"
    level, what = int(rest[1]), rest[2:]
    tail = ["conv_shortcut" if word == "shortcut" else word for word in what[2:]]
    if rest[0] == "down":
        if what == ["halve"]:
            return f"{half}.down_blocks.{_resize_at(level, spec)}.resample.1"
        return ".".join([half, "down_blocks", str(level * (spec.depth + 1) + int(what[1])), *tail])
    if what == ["double"]:
        return f"{half}.up_blocks.{level}.upsamplers.0.resample.1"
    return ".".join([half, "up_blocks", str(level), "resnets", what[1], *tail])


def _resize_at(level: int, spec: VaeSpec) -> int:
    """Number of the layer that halves rows and columns: behind the resnets of its level, in one row with those of all."""
    return level * (spec.depth + 1) + spec.depth
