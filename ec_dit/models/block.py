"""What a transformer block is, whatever its kind, and the layers that every kind shares.

A kind of block is a class in a module of its own, with its formulas beside it, and a row of `models/blocks.py`.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.models.spec import DiTSpec
from ec_dit.models.stages import Kind
from ec_dit.nn.cost import Cost, Load
from ec_dit.nn.mlp import Mlp, is_gated
from ec_dit.nn.moe import MoE, RouterContext, RouterStats
from ec_dit.nn.positions import Turn
from ec_dit.nn.routing.spec import RoutingSpec


class Condition(NamedTuple):
    """What every block reads and none changes.

    Attributes:
        time: (B, D) embedding for `adaln`, (B, A, D) shared modulation for `adaln_single`; None where text alone is read.
        text_BTM: text embeddings, as they enter the first block.
        mask_BT: True where a text token is real.
        turn, text_turn: by which queries and keys of image tokens and of text tokens turn; None: positions are in the tokens.
    """

    time: Any
    text_BTM: jax.Array
    mask_BT: jax.Array
    turn: Turn | None = None
    text_turn: Turn | None = None

    def joint_mask(self, tokens: int) -> jax.Array:
        """Gives which keys of so many image tokens, and of the text behind them, are real: (B, 1, 1, S + T)."""
        image_BS = jnp.ones((self.mask_BT.shape[0], tokens), bool)
        return jnp.concatenate([image_BS, self.mask_BT], axis=1)[:, None, None]


KEYS_VALUES = ((None, "batch", None, "heads", None),) * 2  # logical axes of both, of several blocks


class Streams(NamedTuple):
    """What passes from block to block.

    Attributes:
        tokens_BSD: image tokens.
        text_BTM: text, of the shape and type of `Condition.text_BTM`; None where blocks leave it as it is.
    """

    tokens_BSD: jax.Array
    text_BTM: jax.Array | None


class Block(nnx.Module):
    """A transformer block.

    Its sparse layer, where it has one, is its attribute `ffn`, by which a dense model's weights become experts
    (`models/upcycle.py`).

    Args:
        spec: the model's structure.
        kind: what sets it apart from the model's other blocks.
        dtype: of the computation; parameters stay float32.

    Raises:
        UserError: if this kind of block cannot have that structure.
    """

    CHANGES_TEXT: ClassVar[bool] = False  # whether there is a text stream
    KEPT: ClassVar[Any] = None  # logical axes of what `read` gives
    OUT_BIAS: ClassVar[bool] = True  # whether the layer behind the last block has a bias

    def __init__(self, spec: DiTSpec, kind: Kind, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        raise NotImplementedError

    def read(self, condition: Condition) -> Any:
        """Makes of the text what no time changes, by `condition` without a time; None where there is nothing like that."""
        return None

    def __call__(
        self, streams: Streams, condition: Condition, routing: RoutingSpec, kept: Any = None
    ) -> tuple[Streams, RouterStats | None]:
        """Computes one block.

        Args:
            kept: what `read` gave; None: it is made here.

        Returns:
            the streams, and statistics of the router, None for a dense block.
        """
        raise NotImplementedError

    @staticmethod
    def cost(spec: DiTSpec, kind: Kind, load: Load) -> Cost:
        """Counts what the constructor makes and a call multiplies."""
        raise NotImplementedError


def make_feed_forward(spec: DiTSpec, sparse: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> MoE | Mlp:
    """Makes the feed-forward layer of the image tokens."""
    if sparse:
        return MoE(*_expert_sizes(spec), **_expert_kinds(spec), dtype=dtype, rngs=rngs)
    return Mlp(spec.width, spec.hidden, bias=spec.bias, gated=is_gated(spec.activation), dtype=dtype, rngs=rngs)


def feed_forward(
    ffn: MoE | Mlp, x_BSD: jax.Array, routing: RoutingSpec, context: RouterContext
) -> tuple[jax.Array, RouterStats | None]:
    """Applies it; the second result is None for a dense one."""
    return ffn(x_BSD, routing, context) if isinstance(ffn, MoE) else (ffn(x_BSD), None)


def feed_forward_cost(spec: DiTSpec, sparse: bool, load: Load) -> Cost:
    """Counts it."""
    if sparse:
        return MoE.cost(*_expert_sizes(spec), **_expert_kinds(spec), load=load)
    return Mlp.cost(spec.width, spec.hidden, bias=spec.bias, gated=is_gated(spec.activation), rows=load.tokens)


def _expert_sizes(spec: DiTSpec) -> tuple[int, int, int]:
    return spec.width, spec.sparse.expert_width or spec.hidden, spec.sparse.num_experts


def _expert_kinds(spec: DiTSpec) -> dict[str, Any]:
    sparse = spec.sparse
    return {
        "bias": spec.bias,
        "activation": spec.activation,
        "shared": sparse.shared_width,
        "reads": sparse.router_input,
        "records": sparse.record,
        "thresholds": sparse.thresholds,
        "predictor": sparse.predictor,
        "biases": sparse.biases,
    }
