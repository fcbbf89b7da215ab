"""What a model is made of, as plain frozen data: enough to build it, to count it and to shard it."""

from dataclasses import dataclass
from typing import Literal

from ec_dit.core.errors import UserError
from ec_dit.nn.attention import AttentionKernel
from ec_dit.nn.embeddings import PositionFit
from ec_dit.nn.modulation import ModulationKind

RematPolicy = Literal["none", "dots", "full"]


@dataclass(frozen=True)
class SparseSpec:
    """Which blocks are sparse, and how many experts they have. num_experts = 0: a dense model.

    Block i is sparse when i >= first and (i - first) is a multiple of every: the paper's 1, 3, 5, ...
    """

    num_experts: int = 0
    first: int = 1
    every: int = 2

    def is_sparse(self, block: int) -> bool:
        """Whether the block of that index has experts."""
        return bool(self.num_experts) and block >= self.first and (block - self.first) % self.every == 0


@dataclass(frozen=True)
class DiTSpec:
    """A diffusion transformer.

    Attributes:
        width, num_blocks, num_heads, num_kv_heads, head_dim: D, blocks, H, N, K.
        ffn_factor: F / D.
        patch: latent pixels per side of a token.
        latent_size: latent rows and columns trained on; positions count in its patches. Other sizes work too.
        channels, out_channels: Z in and out; out differs only where a model also predicts a variance, in its second half.
        text_width: M of the text embeddings that cross-attention reads.
        text_projection: a two-layer perceptron M -> D before cross-attention (PixArt-alpha), or none.
        modulation: how time enters, see nn/modulation.py.
        qk_norm: RMSNorm on queries and keys.
        bias: biases in attention and feed-forward layers (PixArt-alpha's weights have them, the paper's counts do not).
        position_scale: PixArt-alpha's interpolation scale.
        position_fit: how positions of another size than `latent_size` count, see nn/embeddings.py.
        size_embedding: rows, columns and aspect ratio of the picture enter beside the time (PixArt-alpha at 1024 pixels).
        sparse: which blocks have experts.
        remat: what the backward pass recomputes.
        attention: which kernel computes attention.
    """

    width: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 64
    ffn_factor: int = 4
    patch: int = 2
    latent_size: int = 32
    channels: int = 4
    out_channels: int = 4
    text_width: int = 1280
    text_projection: bool = False
    modulation: ModulationKind = "adaln"
    qk_norm: bool = False
    bias: bool = False
    position_scale: float = 1.0
    position_fit: PositionFit = "area"
    size_embedding: bool = False
    sparse: SparseSpec = SparseSpec()
    remat: RematPolicy = "none"
    attention: AttentionKernel = "xla"

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
        if self.sparse.num_experts and not 0 <= self.sparse.first < self.num_blocks:
            raise UserError(f"model: first sparse block {self.sparse.first} is not among {self.num_blocks} blocks.")

    @property
    def grid(self) -> int:
        """Tokens per side at the trained resolution."""
        return self.latent_size // self.patch

    @property
    def image_tokens(self) -> int:
        """Tokens of one image at the trained resolution."""
        return self.grid**2

    @property
    def num_sparse(self) -> int:
        """k, the number of sparse blocks."""
        return sum(self.sparse.is_sparse(i) for i in range(self.num_blocks))

    def stages(self) -> list[tuple[tuple[bool, ...], int]]:
        """The blocks as (pattern of sparse flags, repeats): a scan runs over the repeats of each pattern.

        At most three stages, so that what is compiled does not grow with depth.
        """
        flags = [self.sparse.is_sparse(i) for i in range(self.num_blocks)]
        if not any(flags):
            return [((False,), self.num_blocks)]
        every = self.sparse.every
        head = max(0, self.sparse.first + 1 - every)  # dense blocks before the first whole period
        repeats = (self.num_blocks - head) // every
        tail = flags[head + repeats * every :]
        stages = [((False,), head), (tuple(flags[head : head + every]), repeats), (tuple(tail), 1)]
        return [(pattern, count) for pattern, count in stages if pattern and count]


@dataclass(frozen=True)
class TowerSpec:
    """A small text encoder trained together with the model.

    Attributes:
        vocab_size: V of the data set's tokenizer.
        width, num_blocks, num_heads: of its transformer.
        length: T, tokens per caption.
    """

    vocab_size: int
    width: int = 128
    num_blocks: int = 2
    num_heads: int = 4
    length: int = 24
