"""The KL autoencoder of Stable Diffusion 1 and 2, SDXL, SD3 and Flux, and where diffusers' files keep its parameters."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.core import hub, name_map
from ec_dit.core.errors import UserError
from ec_dit.encoders.vae_layers import Conv, Level, Middle, norm
from ec_dit.nn import param

_IMAGE = 3  # channels
_LOG_VARIANCE = (-30.0, 20.0)  # what the published models were trained with


@dataclass(frozen=True)
class VaeSpec:
    """The structure, and how latents are normalised.

    Attributes:
        widths: of the levels, from the full resolution down; each level but the last halves it.
        depth: resnets of a level of the encoder; the decoder has one more.
        channels: Z, of the latent.
        groups: of GroupNorm; 0: of each pixel's channels by themselves, without their mean (`ChannelNorm`).
        scale, shift: a normalised latent is (z - shift) * scale; of all channels, or of each.
        quant, post_quant: whether a matrix over channels follows the encoder, and precedes the decoder.
        attention: whether the smallest level has it.
        sample_size: side of the images of training, in pixels.
        narrows: whether what doubles a level of the decoder also halves its width.
    """

    widths: tuple[int, ...]
    depth: int
    channels: int
    groups: int
    scale: float | tuple[float, ...]
    shift: float | tuple[float, ...]
    quant: bool
    post_quant: bool
    attention: bool
    sample_size: int
    narrows: bool = False

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, along a side."""
        return 2 ** (len(self.widths) - 1)

    @classmethod
    def from_config(cls, found: Mapping[str, Any], where: str) -> "VaeSpec":
        """The spec that a config.json describes.

        Raises:
            UserError: naming `where` and what is not an autoencoder's, or not supported.
        """
        hub.supported(
            found,
            where,
            _class_name="AutoencoderKL",
            in_channels=_IMAGE,
            out_channels=_IMAGE,
            act_fn=("silu", "swish"),
            latents_mean=None,
            latents_std=None,
        )
        values = hub.fields(
            found,
            where,
            block_out_channels=list,
            layers_per_block=int,
            latent_channels=int,
            norm_num_groups=32,
            down_block_types=list,
            up_block_types=list,
            scaling_factor=0.18215,
            shift_factor=0.0,
            use_quant_conv=True,
            use_post_quant_conv=True,
            mid_block_add_attention=True,
        )
        widths, groups = values["block_out_channels"], values["norm_num_groups"]
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            for block in values[key]:
                hub.supported({key: block}, where, **{key: kind})
            if len(values[key]) != len(widths):
                raise UserError(
                    f"{where}: {len(values[key])} {key} for {len(widths)} block_out_channels {widths}. {hub.AGAIN}"
                )
        for key in ("layers_per_block", "latent_channels", "norm_num_groups", "scaling_factor"):
            if values[key] <= 0:
                raise UserError(f"{where}: {key} is {values[key]}, not above 0. {hub.AGAIN}")
        if not widths or not all(type(width) is int and width > 0 and width % groups == 0 for width in widths):
            raise UserError(
                f"{where}: block_out_channels are {widths}, not whole multiples of norm_num_groups {groups}. "
                f"{hub.AGAIN}"
            )
        size = found.get("sample_size")
        side = {"sample_size": size[0] if isinstance(size, list) and size else size}
        return cls(
            widths=tuple(widths),
            depth=values["layers_per_block"],
            channels=values["latent_channels"],
            groups=groups,
            scale=float(values["scaling_factor"]),
            shift=float(values["shift_factor"]),
            quant=values["use_quant_conv"],
            post_quant=values["use_post_quant_conv"],
            attention=values["mid_block_add_attention"],
            sample_size=hub.fields(side, where, sample_size=32)["sample_size"],
        )


class Encoder(nnx.Module):
    """Images (B, Y, X, Z) -> mean and log variance (B, Y / factor, X / factor, 2 Z)."""

    def __init__(self, spec: VaeSpec, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        widths, last = spec.widths, spec.widths[-1]
        self.conv_in = Conv(_IMAGE, widths[0], dtype=dtype, rngs=rngs)
        self.down = nnx.List(
            Level(i, d, spec.depth, spec.groups, "halve" if left else None, dtype=dtype, rngs=rngs)
            for i, d, left in _levels(widths)
        )
        self.mid = Middle(last, spec.groups, spec.attention, dtype=dtype, rngs=rngs)
        self.norm_out = norm(last, spec.groups)
        self.conv_out = Conv(last, 2 * spec.channels, dtype=dtype, rngs=rngs)

    def __call__(self, image_BYXZ: jax.Array) -> jax.Array:
        """Mean and log variance, side by side in Z."""
        x_BYXD = self.conv_in(image_BYXZ)
        for level in self.down:
            x_BYXD = level(x_BYXD)
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x_BYXD))))


class Decoder(nnx.Module):
    """Latents (B, Y, X, Z) -> images (B, Y * factor, X * factor, Z)."""

    def __init__(self, spec: VaeSpec, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        widths = spec.widths[::-1]
        first, last = widths[0], widths[-1]
        self.conv_in = Conv(spec.channels, first, dtype=dtype, rngs=rngs)
        self.mid = Middle(first, spec.groups, spec.attention, dtype=dtype, rngs=rngs)
        self.up = nnx.List(
            Level(
                i // 2 if n and spec.narrows else i,
                d,
                spec.depth + 1,
                spec.groups,
                "double" if left else None,
                width_out=d // 2 if spec.narrows else d,
                dtype=dtype,
                rngs=rngs,
            )
            for n, (i, d, left) in enumerate(_levels(widths))
        )
        self.norm_out = norm(last, spec.groups)
        self.conv_out = Conv(last, _IMAGE, dtype=dtype, rngs=rngs)

    def __call__(self, latent_BYXZ: jax.Array) -> jax.Array:
        """The images."""
        x_BYXD = self.mid(self.conv_in(latent_BYXZ))
        for level in self.up:
            x_BYXD = level(x_BYXD)
        return self.conv_out(jax.nn.silu(self.norm_out(x_BYXD)))


def _levels(widths: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(width going in, width, how many levels follow) of every level."""
    before = (widths[0], *widths[:-1])
    return [(i, d, len(widths) - 1 - n) for n, (i, d) in enumerate(zip(before, widths, strict=True))]


class Vae(nnx.Module):
    """Images to normalised latents and back.

    Args:
        spec: the structure.
        dtype: of the computation but for norms, softmax, and what goes in and out, which are float32.
    """

    def __init__(self, spec: VaeSpec, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.spec = spec
        both, one = 2 * spec.channels, spec.channels
        self.encoder = Encoder(spec, dtype=dtype, rngs=rngs)
        self.quant = Conv(both, both, kernel=1, dtype=dtype, rngs=rngs) if spec.quant else None
        self.post_quant = Conv(one, one, kernel=1, dtype=dtype, rngs=rngs) if spec.post_quant else None
        self.decoder = Decoder(spec, dtype=dtype, rngs=rngs)

    def encode(self, image_BYXZ: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation (B, Y / factor, X / factor, Z), of normalised latents."""
        run = param.per_device(self, Vae._encode, (_PICTURES,), (_PICTURES, _PICTURES), name="images of the batch")
        return run(image_BYXZ)

    def decode(self, latent_BYXZ: jax.Array) -> jax.Array:
        """Images (B, Y * factor, X * factor, 3) of normalised latents."""
        run = param.per_device(self, Vae._decode, (_PICTURES,), _PICTURES, name="latents of the batch")
        return run(latent_BYXZ)

    def _encode(self, image_BYXZ: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The images of one device."""
        moments_BYXZ = self.encoder(image_BYXZ)
        if self.quant is not None:
            moments_BYXZ = self.quant(moments_BYXZ)
        mean_BYXZ, log_BYXZ = jnp.split(moments_BYXZ.astype(jnp.float32), 2, axis=-1)
        std_BYXZ = jnp.exp(0.5 * jnp.clip(log_BYXZ, *_LOG_VARIANCE))
        scale, shift = jnp.asarray(self.spec.scale), jnp.asarray(self.spec.shift)
        return (mean_BYXZ - shift) * scale, std_BYXZ * scale

    def _decode(self, latent_BYXZ: jax.Array) -> jax.Array:
        """The latents of one device."""
        latent_BYXZ = latent_BYXZ / jnp.asarray(self.spec.scale) + jnp.asarray(self.spec.shift)
        if self.post_quant is not None:
            latent_BYXZ = self.post_quant(latent_BYXZ)
        return self.decoder(latent_BYXZ).astype(jnp.float32)


_PICTURES = ("batch", None, None, None)

# Our path is theirs but for these words.
_WORDS = {
    "quant": "quant_conv",
    "post_quant": "post_quant_conv",
    "down": "down_blocks",
    "mid": "mid_block",
    "up": "up_blocks",
    "halve": "downsamplers.0.conv",
    "double": "upsamplers.0.conv",
    "shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
    "attention": "attentions.0",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "out": "to_out.0",
}
_LEAVES = {
    "w_YXID": ("weight", name_map.CONV),
    "w_ID": ("weight", name_map.LINEAR),
    "b_D": ("bias", name_map.SAME),
    "scale_D": ("weight", name_map.SAME),
    "shift_D": ("bias", name_map.SAME),
}


def entries(names: Iterable[str]) -> name_map.Table:
    """Where diffusers' files keep the parameters `names` of a `Vae`."""

    def theirs(name: str) -> tuple[str, name_map.Way]:
        *path, leaf = name.split("/")
        word, way = _LEAVES[leaf]
        return ".".join([*(_WORDS.get(part, part) for part in path), word]), way

    names = list(names)
    return name_map.table(names, {name: theirs(name) for name in names}, {})


_OLD_WORDS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def rename(theirs: str) -> str:
    """Today's name of a tensor that files of Stable Diffusion 1 and 2 may have under an old one; other names as they are."""
    return re.sub(
        r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)",
        lambda old: _OLD_WORDS[old[0]],
        theirs,
    )
