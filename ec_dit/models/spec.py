"""What a model is made of, as plain frozen data: enough to build it, to count it and to shard it."""

from dataclasses import dataclass
from typing import Literal

from ec_dit.core.errors import UserError
from ec_dit.core.settings import SIZE, key, only
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.stages import Kind, Stage, stages
from ec_dit.nn.attention import AttentionKernel
from ec_dit.nn.embeddings import TimeKind
from ec_dit.nn.mlp import Activation
from ec_dit.nn.modulation import ModulationKind
from ec_dit.nn.positions import PositionFit, PositionKind

BlockKind = Literal["cross_attention", "joint_kv", "mmdit"]
RematPolicy = Literal["none", "dots", "full"]  # from the one that keeps most to the one that keeps least


def _axes(value: tuple[object, ...]) -> str | None:
    good = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= SIZE for n in value)
    return None if good and len(value) in (0, 3) else "give three numbers, such as (16, 56, 56)"


@dataclass(frozen=True)
class ModelSpec:
    """The `model` section: a diffusion transformer, whatever it is fed and however it routes."""

    width: int = key(1152, "D, numbers of a token", at_least=1, at_most=SIZE, params="shape")
    num_blocks: int = key(28, "blocks, dense and sparse", at_least=1, at_most=SIZE, params="shape")
    num_heads: int = key(18, "H, heads of attention", at_least=1, at_most=SIZE, params="shape")
    num_kv_heads: int = key(
        6, "grouped key-value heads, in self- and cross-attention", at_least=1, at_most=SIZE, params="shape"
    )
    head_dim: int = key(64, "K, numbers of a head", at_least=1, at_most=SIZE, params="shape")
    ffn_factor: int = key(
        4,
        "F / D, how many times wider the feed-forward layers are",
        at_least=1,
        at_most=SIZE,
        use=only("model.ffn_width", 0),
        params="shape",
    )
    ffn_width: int = key(0, "F itself; 0 = ffn_factor x width", at_least=0, at_most=SIZE, params="shape")
    activation: Activation = key(
        "gelu", "of feed-forward layers and experts: gelu, or swiglu, gated by a third matrix", params="shape"
    )
    patch: int = key(2, "latent pixels per side of a token", at_least=1, at_most=SIZE, params="shape")
    block: BlockKind = key(
        "cross_attention",
        "what blocks are made of: cross_attention, the paper's, reads the text in each; joint_kv, one attention of image tokens "
        "to image and text (Nucleus-Image); mmdit, a stream of image and one of text with joint attention (SD3)",
        params="shape",
    )
    modulation: ModulationKind = key(
        "adaln", "how time enters: each block with a map of its own, or one map for all (PixArt-alpha)", params="shape"
    )
    qk_norm: bool = key(False, "RMSNorm on queries and keys", params="shape")
    bias: bool = key(
        False,
        "biases in attention and feed-forward layers (PixArt-alpha's weights have them, the paper's counts do not)",
        params="shape",
    )
    position: PositionKind = key(
        "sincos",
        "how tokens know where they are: sines and cosines are added to them, or queries and keys turn (RoPE)",
        params="meaning",
    )
    position_scale: float = key(
        1.0,
        "divides positions (PixArt-alpha's interpolation scale); < 1 tells few patches apart",
        above=0,
        params="meaning",
    )
    position_fit: PositionFit = key(
        "area",
        "of sizes other than data.size: area stretches both sides alike; sides each (PixArt-alpha); crop counts from the corner "
        "of a grid from whose centre the image is cut (SD3); centred from the middle of the image (Nucleus-Image)",
        params="meaning",
    )
    position_grid: int = key(
        0,
        "sides, in patches, of the grid that position_fit crop cuts from",
        at_least=0,
        at_most=SIZE,
        use=only("model.position_fit", "crop"),
        params="meaning",
    )
    rope_axes: tuple[int, ...] = key(
        (),
        "numbers of a head that turn with (the place in the text, the row, the column); () = half of head_dim with each of the "
        "last two",
        check=_axes,
        use=only("model.position", "rope"),
        params="meaning",
    )
    dual_blocks: int = key(
        0,
        "so many first blocks have attention among image tokens beside the joint one (SD3.5)",
        at_least=0,
        at_most=SIZE,
        use=only("model.block", "mmdit"),
        params="shape",
    )
    time_embedding: TimeKind = key(
        "dit",
        "of 256 sinusoids by a perceptron of width D; wide: of D of them, by one of 4 D, then RMSNorm (Nucleus-Image)",
        params="shape",
    )
    text_norm: bool = key(False, "RMSNorm on text embeddings before anything reads them", params="shape")
    text_projection: bool = key(
        False, "a two-layer perceptron M -> D on the text before cross-attention (PixArt-alpha)", params="shape"
    )
    size_embedding: bool = key(
        False,
        "the picture's sides and aspect ratio enter beside the time (PixArt-alpha at 1024 pixels)",
        params="shape",
    )
    learned_sigma: bool = key(
        False, "the output has a second half, a variance, that nothing uses (PixArt-alpha's weights)", params="shape"
    )
    attention: AttentionKernel = key("xla", "kernel: xla, or cudnn on GPUs in bfloat16", resumable=True)
    remat: RematPolicy = key("none", "what the backward pass recomputes: dots, all but weight products", resumable=True)
    dtype: Literal["auto", "bfloat16", "float32"] = key(
        "auto", "of the computation: auto is bfloat16 on accelerators, float32 on CPU"
    )


_DENSE = SparseSpec()


@dataclass(frozen=True)
class DiTSpec(ModelSpec):
    """A diffusion transformer with its input and its sparse blocks.

    Attributes:
        latent_size: latent rows and columns trained on; positions count in its patches. Other sizes work too.
        channels: Z.
        text_width: M of the text embeddings that blocks read.
        pooled_width: of a vector of the whole caption that enters beside the time; 0: there is none.
        sparse: which blocks have experts.
    """

    latent_size: int = 32
    channels: int = 4
    text_width: int = 1280
    pooled_width: int = 0
    sparse: SparseSpec = _DENSE

    def __post_init__(self) -> None:
        if min(self.width, self.num_blocks, self.num_kv_heads, self.head_dim, self.patch, self.sparse.every) < 1:
            raise UserError(f"model: every size must be at least 1, not {self}.")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"model: {self.num_kv_heads} key-value heads do not divide {self.num_heads} heads.")
        if self.latent_size % self.patch:
            raise UserError(f"model: patch {self.patch} does not divide the latent size {self.latent_size}.")
        if self.width % 4:
            raise UserError(f"model: width {self.width} must be a multiple of 4 (sine and cosine of row and column).")
        if self.size_embedding and self.width % 3:
            raise UserError(f"model: size_embedding needs a width that 3 divides, not {self.width}.")
        self._check_block()
        if self.sparse.router_input == "normed_time" and self.modulation != "adaln":
            raise UserError(
                f"moe.router_input=normed_time reads the time embedding, which blocks of modulation {self.modulation} do not get."
            )
        factors = self.sparse.capacity_factors
        if self.sparse.num_experts and factors and len(factors) != self.num_sparse:
            raise UserError(
                f"moe.capacity_factors has {len(factors)} numbers, and the model {self.num_sparse} sparse blocks: give one each."
            )
        if self.sparse.num_experts and not self.num_sparse and self.sparse.first < self.num_blocks:
            raise UserError(
                f"moe.first {self.sparse.first} and moe.stop {self.sparse.stop} leave no block with experts."
            )
        if self.sparse.num_experts and not 0 <= self.sparse.first < self.num_blocks:
            raise UserError(f"model: first sparse block {self.sparse.first} is not among {self.num_blocks} blocks.")

    def _check_block(self) -> None:
        """Refuses what a kind of block, or of positions, cannot have."""
        if self.block != "cross_attention" and self.modulation != "adaln":
            raise UserError(f"model.modulation={self.modulation}: blocks {self.block} have maps of their own, adaln.")
        if self.block == "joint_kv" and self.text_projection:
            raise UserError("model.text_projection: blocks joint_kv project the text themselves; leave it off.")
        if self.dual_blocks > self.num_blocks:
            raise UserError(f"model.dual_blocks is {self.dual_blocks}, and there are {self.num_blocks} blocks.")
        if self.position == "rope" and (sum(self.turning) != self.head_dim or any(n % 2 for n in self.turning)):
            raise UserError(
                f"model.rope_axes {self.turning}: give three even numbers that add up to head_dim, {self.head_dim}."
            )
        if self.position_fit == "crop" and self.position_grid < self.tokens_per_side:
            raise UserError(
                f"model.position_grid is {self.position_grid}, but an image has {self.tokens_per_side} patches a side."
            )

    @property
    def turning(self) -> tuple[int, ...]:
        """Numbers of a head that turn with the place in the text, with the row and with the column."""
        return self.rope_axes or (0, self.head_dim // 2, self.head_dim - self.head_dim // 2)

    @property
    def out_channels(self) -> int:
        """Z out: twice that in where the model also predicts a variance, in its second half."""
        return self.channels * (2 if self.learned_sigma else 1)

    @property
    def hidden(self) -> int:
        """F, the inner width of feed-forward layers."""
        return self.ffn_width or self.ffn_factor * self.width

    @property
    def heads(self) -> tuple[int, int, int]:
        """H, N, K: heads, key-value heads, head dim."""
        return self.num_heads, self.num_kv_heads, self.head_dim

    @property
    def context_width(self) -> int:
        """M, of the text as blocks read it: a stream of its own has the model's width."""
        return self.width if self.text_projection or self.block == "mmdit" else self.text_width

    @property
    def tokens_per_side(self) -> int:
        """Tokens per side at the trained resolution."""
        return self.latent_size // self.patch

    @property
    def image_tokens(self) -> int:
        """Tokens of one image at the trained resolution."""
        return self.tokens_per_side**2

    @property
    def num_sparse(self) -> int:
        """k, the number of sparse blocks."""
        return sum(kind.sparse for kind in self.kinds())

    def kinds(self) -> list[Kind]:
        """Gives what each block is."""
        streams = self.block == "mmdit"
        last = self.num_blocks - 1
        return [
            Kind(self.sparse.is_sparse(i), streams and i < self.dual_blocks, streams and i == last)
            for i in range(self.num_blocks)
        ]

    def stages(self) -> list[Stage]:
        """Gives the blocks as scans run through them."""
        return stages(self.kinds(), self.sparse.capacity_factors, self.sparse.every)
