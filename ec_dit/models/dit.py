"""A diffusion transformer, the paper's or another's by its blocks: noisy latent, time and text in; velocity out."""

import functools
import itertools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.models.block import Condition, Streams
from ec_dit.models.blocks import BLOCKS
from ec_dit.models.spec import DiTSpec
from ec_dit.models.stages import Kind
from ec_dit.nn import modulation, param
from ec_dit.nn.cost import Cost, Load, linear, total
from ec_dit.nn.embeddings import LATENT_PIXEL, PatchEmbed, SizeEmbed, TextEmbed, TimeEmbed, patchify
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.modulation import TimeModulation, adaptive_norm
from ec_dit.nn.moe import RouterStats, stacked_axes
from ec_dit.nn.norms import RMSNorm
from ec_dit.nn.positions import PositionFit, Turn, image_and_text_turns, places, sincos_2d
from ec_dit.nn.routing.spec import RoutingSpec
from ec_dit.nn.stack import Stack

_OUT_VECTORS = 2  # shift and scale of the output layer


class DiT(nnx.Module):
    """Patches, positions, blocks, and an output layer that starts at zero.

    Args:
        spec: the structure.
        dtype: of the computation; parameters and router are float32.
    """

    def __init__(self, spec: DiTSpec, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.spec, self.dtype = spec, dtype
        width, patch_numbers = spec.width, spec.patch * spec.patch
        shares_modulation = spec.modulation == "adaln_single"
        self.patch_embed = PatchEmbed(patch_numbers * spec.channels, width, dtype=dtype, rngs=rngs)
        self.time_embed = TimeEmbed(width, kind=spec.time_embedding, dtype=dtype, rngs=rngs)
        self.pooled_embed = (
            Mlp(spec.pooled_width, width, width, bias=True, act=jax.nn.silu, dtype=dtype, rngs=rngs)
            if spec.pooled_width
            else None
        )
        self.size_embed = SizeEmbed(width, dtype=dtype, rngs=rngs) if spec.size_embedding else None
        self.time_modulation = TimeModulation(width, dtype=dtype, rngs=rngs) if shares_modulation else None
        self.text_projection = (
            Mlp(spec.text_width, width, width, bias=True, dtype=dtype, rngs=rngs) if spec.text_projection else None
        )
        enters = BLOCKS[spec.block].CHANGES_TEXT and not spec.text_projection  # as a stream of the model's width
        self.text_embed = TextEmbed(spec.text_width, width, dtype=dtype, rngs=rngs) if enters else None
        self.text_norm = RMSNorm(spec.text_width) if spec.text_norm else None

        def make_blocks(pattern: tuple[Kind, ...], keys: jax.Array) -> nnx.List:
            blocks = zip(pattern, keys, strict=True)
            return nnx.List(BLOCKS[spec.block](spec, kind, dtype=dtype, rngs=nnx.Rngs(key)) for kind, key in blocks)

        keys_L = jax.random.split(rngs.params(), spec.num_blocks)  # by number: what is alike in two models begins alike
        ends = list(itertools.accumulate(stage.num_blocks for stage in spec.stages()))
        self.stages = nnx.List(
            Stack(
                functools.partial(make_blocks, stage.pattern),
                keys_L[end - stage.num_blocks : end].reshape(stage.repeats, -1),
                remat=spec.remat,
            )
            for stage, end in zip(spec.stages(), ends, strict=True)
        )
        self.out_modulation = modulation.make(spec.modulation, width, _OUT_VECTORS, dtype=dtype, rngs=rngs)
        out_numbers = patch_numbers * spec.out_channels
        self.w_out_DP = param.matrix(rngs, (width, out_numbers), ("embed", None), "io", zero=True, hidden=False)
        self.b_out_P = param.table(jnp.zeros(out_numbers), (None,)) if BLOCKS[spec.block].OUT_BIAS else None

    def __call__(
        self,
        x_BYXZ: jax.Array,
        t_B: jax.Array,
        text_BTM: jax.Array,
        mask_BT: jax.Array,
        *,
        routing: RoutingSpec,
        keep_BS: jax.Array | None = None,
        pooled_BM: jax.Array | None = None,
        kept: Any = None,
    ) -> tuple[jax.Array, RouterStats | None]:
        """The predicted velocity, as patches.

        Args:
            x_BYXZ: noisy latent of any size that the patch divides.
            t_B: time, 0 = data, 1 = noise.
            text_BTM, mask_BT: text embeddings and where they are real.
            routing: how sparse blocks route.
            keep_BS: indices of the tokens to keep, None for all. Dropped tokens enter nothing.
            pooled_BM: a vector of each caption, where the model has a pooled_width.
            kept: what `read` gave with `text_BTM`; None: these are embeddings that nothing has read yet.

        Returns:
            (B, S, P) velocity of the kept tokens in float32 (`nn.embeddings.unpatchify` makes a latent of all of them), and
            the statistics of the sparse blocks stacked on L, None for a dense model.
        """
        keep, pooled = (None if given is None else ("batch", None) for given in (keep_BS, pooled_BM))
        stats = stacked_axes(routing) if self.spec.num_sparse else None
        run = param.per_device(
            self,
            functools.partial(DiT._forward, routing=routing),
            (
                ("batch", None, None, None),
                ("batch",),
                ("batch", None, None),
                ("batch", None),
                keep,
                pooled,
                None if kept is None else self.kept_axes,
            ),
            (("batch", None, None), stats),
            name="images of the batch",
        )
        return run(x_BYXZ, t_B, text_BTM, mask_BT, keep_BS, pooled_BM, kept)

    def read(self, text_BTM: jax.Array, mask_BT: jax.Array, rows: int, columns: int) -> tuple[jax.Array, Any]:
        """Makes of a text what no time changes, for all predictions of latents of one shape.

        Args:
            text_BTM, mask_BT: text embeddings and where they are real.
            rows, columns: of the latents, in patches.

        Returns:
            what `__call__` takes as `text_BTM` and as `kept`.
        """
        axes = ("batch", None, None)
        read = functools.partial(DiT._read, rows=rows, columns=columns)
        run = param.per_device(
            self, read, (axes, ("batch", None)), (axes, self.kept_axes), name="captions of the batch"
        )
        return run(text_BTM, mask_BT)

    @property
    def kept_axes(self) -> list[list[Any]]:
        """The logical axes of what is kept of a text: by stage, and by block of its pattern."""
        return [[BLOCKS[self.spec.block].KEPT] * len(stage.pattern) for stage in self.spec.stages()]

    def _read(self, text_BTM: jax.Array, mask_BT: jax.Array, rows: int, columns: int) -> tuple[jax.Array, Any]:
        """The captions of one device."""
        text_BTM = self._entering(text_BTM)
        condition = Condition(None, text_BTM, mask_BT, *self._turns(rows, columns, text_BTM.shape[1]))

        def apply(blocks: nnx.List, carry: tuple[()]) -> tuple[tuple[()], list[Any]]:
            return carry, [block.read(condition) for block in blocks]

        return text_BTM, [stack((), apply)[1] for stack in self.stages]

    def _entering(self, text_BTM: jax.Array) -> jax.Array:
        """The text as the blocks read it."""
        text_BTM = text_BTM.astype(self.dtype)
        for layer in (self.text_norm, self.text_projection, self.text_embed):
            text_BTM = text_BTM if layer is None else layer(text_BTM)
        return text_BTM

    def _turns(self, rows: int, columns: int, text_tokens: int) -> tuple[Turn | None, Turn | None]:
        """How queries and keys turn by their places, of image tokens and of the text."""
        if self.spec.position == "sincos":
            return None, None
        return image_and_text_turns(*places(rows, columns, *self._fit), text_tokens, self.spec.turning)

    @property
    def _fit(self) -> tuple[int, float, PositionFit, int]:
        spec = self.spec
        return spec.tokens_per_side, spec.position_scale, spec.position_fit, spec.position_grid

    def _forward(
        self,
        x_BYXZ: jax.Array,
        t_B: jax.Array,
        text_BTM: jax.Array,
        mask_BT: jax.Array,
        keep_BS: jax.Array | None,
        pooled_BM: jax.Array | None,
        kept: Any,
        routing: RoutingSpec,
    ) -> tuple[jax.Array, RouterStats | None]:
        """The images of one device."""
        spec = self.spec
        tokens_BSD = self.patch_embed(patchify(x_BYXZ, spec.patch))
        rows, columns = x_BYXZ.shape[1] // spec.patch, x_BYXZ.shape[2] // spec.patch
        if spec.position == "sincos":
            tokens_BSD += jnp.asarray(sincos_2d(rows, columns, spec.width, *self._fit), self.dtype)
        turn, text_turn = self._turns(rows, columns, text_BTM.shape[1])
        if keep_BS is not None:
            tokens_BSD = take_tokens(tokens_BSD, keep_BS)
            turn = None if turn is None else Turn(turn.cos[keep_BS], turn.sin[keep_BS])

        time_BD = self.time_embed(t_B)
        if self.size_embed is not None:
            time_BD += self.size_embed(LATENT_PIXEL * x_BYXZ.shape[1], LATENT_PIXEL * x_BYXZ.shape[2])
        if self.pooled_embed is not None:
            assert pooled_BM is not None, "a model with a pooled_width is given pooled vectors"
            time_BD += self.pooled_embed(pooled_BM)
        text_BTM = self._entering(text_BTM) if kept is None else text_BTM
        shared = time_BD if self.time_modulation is None else self.time_modulation(time_BD)
        condition = Condition(shared, text_BTM, mask_BT, turn, text_turn)

        streams = Streams(tokens_BSD, text_BTM if BLOCKS[spec.block].CHANGES_TEXT else None)

        def apply(
            blocks: nnx.List, streams: Streams, kept: list[Any], factor: float | None
        ) -> tuple[Streams, list[RouterStats]]:
            spec = routing if factor is None else replace(routing, capacity_factor=factor)
            stats = []
            for block, of_block in zip(blocks, kept, strict=True):
                streams, block_stats = block(streams, condition, spec, of_block)
                stats.append(block_stats)
            return streams, [s for s in stats if s is not None]

        stats = []  # of one sparse position in a stage's pattern each, stacked over the repeats
        kept = kept or [[None] * len(stage.pattern) for stage in spec.stages()]
        for stack, stage, of_stage in zip(self.stages, spec.stages(), kept, strict=True):
            streams, stage_stats = stack(streams, functools.partial(apply, factor=stage.factor), of_stage)
            stats += stage_stats

        out_time = time_BD if self.time_modulation is None else time_BD[:, None]
        shift_BD, scale_BD = self.out_modulation(out_time).swapaxes(0, 1)
        tokens_BSD = adaptive_norm(streams.tokens_BSD, shift_BD, scale_BD)
        out_BSP = tokens_BSD @ param.gather(self.w_out_DP, self.dtype)
        if self.b_out_P is not None:
            out_BSP += param.gather(self.b_out_P, self.dtype)
        return out_BSP.astype(jnp.float32), jax.tree.map(lambda *s: jnp.concatenate(s), *stats) if stats else None

    @staticmethod
    def cost(spec: DiTSpec, load: Load) -> Cost:
        """Counts the model's parameters, and the FLOPs of one prediction for one image."""
        width, numbers, block = spec.width, spec.patch * spec.patch, BLOCKS[spec.block]
        parts = [
            PatchEmbed.cost(numbers * spec.channels, width, load.tokens),
            TimeEmbed.cost(width, kind=spec.time_embedding),
            modulation.cost(spec.modulation, width, _OUT_VECTORS),
            linear(width, numbers * spec.out_channels, load.tokens, bias=block.OUT_BIAS),
        ]
        if spec.modulation == "adaln_single":
            parts.append(TimeModulation.cost(width))
        if spec.size_embedding:
            parts.append(SizeEmbed.cost(width))
        if spec.text_projection:
            parts.append(Mlp.cost(spec.text_width, width, width, bias=True, rows=load.read_tokens))
        elif block.CHANGES_TEXT:
            parts.append(TextEmbed.cost(spec.text_width, width, load.read_tokens))
        if spec.text_norm:
            parts.append(RMSNorm.cost(spec.text_width))
        if spec.pooled_width:
            parts.append(Mlp.cost(spec.pooled_width, width, width, bias=True))
        for stage in spec.stages():
            here = load if stage.factor is None else replace(load, capacity_factor=stage.factor)
            parts += [block.cost(spec, kind, here) * stage.repeats for kind in stage.pattern]
        return total(parts)


def take_tokens(tokens_BSD: jax.Array, keep_BS: jax.Array) -> jax.Array:
    """Takes the tokens of each image that `keep_BS` names, in its order."""
    return jax.vmap(lambda tokens_SD, keep_S: tokens_SD[keep_S])(tokens_BSD, keep_BS)
