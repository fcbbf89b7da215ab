"""Parameters and FLOPs by formula, without building anything: tests hold the formulas to the model itself.

Activated parameters are the paper's Algorithm 2: a dense model's, plus per sparse block (f_c - 1) more feed-forward
layers and a router, dense + k (8 d^2 (f_c - 1) + E d) at ffn_factor 4. FLOPs count matrix products only, two for a
multiply-add; norms, activations, gathers and recomputation (remat) count nothing, as in model FLOPs utilisation.

    python -m ec_dit.models.sizes [--json | --markdown]     the paper's models
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace

from ec_dit.models.paper import AUTOENCODER_PARAMS, CAPACITY_FACTOR, PAPER, TEXT_ENCODER_PARAMS
from ec_dit.models.spec import DiTSpec, SparseSpec, TowerSpec
from ec_dit.nn.embeddings import TimeEmbed
from ec_dit.nn.modulation import VECTORS

_IMAGE_TOKENS, _TEXT_LENGTH = 256, 77  # of the table: 256 x 256 pixels, a CLIP caption
_OUT_VECTORS = 2  # shift and scale of the output layer


@dataclass(frozen=True)
class Sizes:
    """Parameters of one model, transformer only.

    Attributes:
        total: all of them.
        activated: those that work on a token on average (Algorithm 2).
        dense_total: of the same model with a dense feed-forward layer in place of the experts.
        sparse_blocks: k.
        flops_per_token: of one velocity of a 256-token image with 77 text tokens, spread over its image tokens.
    """

    total: int
    activated: int
    dense_total: int
    sparse_blocks: int
    flops_per_token: int


def sizes(spec: DiTSpec, capacity_factor: float = CAPACITY_FACTOR) -> Sizes:
    """All the counts of one model; `capacity_factor` matters to `activated` and `flops_per_token`."""
    dense = num_params(replace(spec, sparse=SparseSpec()))
    router = spec.width * spec.sparse.num_experts
    more = spec.num_sparse * ((capacity_factor - 1) * _feed_forward(spec) + router)
    flops = forward_flops(spec, _IMAGE_TOKENS, _TEXT_LENGTH, capacity_factor) // _IMAGE_TOKENS
    return Sizes(num_params(spec), dense + round(more), dense, spec.num_sparse, flops)


def num_params(spec: DiTSpec) -> int:
    """All parameters of the transformer."""
    return sum(part_params(spec).values())


def part_params(spec: DiTSpec) -> dict[str, int]:
    """Parameters of each part, over all blocks."""
    d, blocks, sparse = spec.width, spec.num_blocks, spec.num_sparse
    patch_in, patch_out = (spec.patch**2 * z for z in (spec.channels, spec.out_channels))
    per_block, shared = VECTORS * (d * d + d), 0
    out_modulation = _OUT_VECTORS * (d * d + d)
    if spec.modulation == "adaln_single":
        per_block, shared, out_modulation = VECTORS * d, VECTORS * (d * d + d), _OUT_VECTORS * d
    return {
        "patch_embed": _linear(patch_in, d),
        "time_embed": _linear(TimeEmbed.FEATURES, d) + _linear(d, d),
        "size_embed": 2 * (_linear(TimeEmbed.FEATURES, d // 3) + _linear(d // 3, d // 3)) if spec.size_embedding else 0,
        "text_projection": _linear(spec.text_width, d) + _linear(d, d) if spec.text_projection else 0,
        "modulation": blocks * per_block + shared,
        "self_attention": blocks * _attention(spec, d),
        "cross_attention": blocks * _attention(spec, _context_width(spec)),
        "feed_forward": (blocks - sparse) * _feed_forward(spec),
        "router": sparse * d * spec.sparse.num_experts,
        "experts": sparse * spec.sparse.num_experts * _feed_forward(spec),
        "output": out_modulation + _linear(d, patch_out),
    }


def tower_params(tower: TowerSpec) -> int:
    """All parameters of a jointly trained text tower."""
    m = tower.width
    return (tower.vocab_size + tower.length) * m + tower.num_blocks * 12 * m * m


def forward_flops(spec: DiTSpec, tokens: int, text_length: int, capacity_factor: float = CAPACITY_FACTOR) -> int:
    """FLOPs of one velocity of one image. The picture's size, embedded once for a whole batch, is not counted.

    Args:
        tokens: image tokens that enter the model: the kept ones in training, all of them in sampling.
        text_length: T, padding included, since it is multiplied too.
        capacity_factor: f_c, feed-forward layers per token in a sparse block; every slot counts, filled or not.
    """
    d, blocks, sparse, experts = spec.width, spec.num_blocks, spec.num_sparse, spec.sparse.num_experts
    single, context = spec.modulation == "adaln_single", _context_width(spec)
    inner, kv_inner = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim

    per_image = TimeEmbed.FEATURES * d + d * d + (VECTORS if single else VECTORS * blocks + _OUT_VECTORS) * d * d
    per_text_token = blocks * context * 2 * kv_inner
    per_text_token += (spec.text_width * d + d * d) if spec.text_projection else 0
    per_token = spec.patch**2 * (spec.channels + spec.out_channels) * d
    per_token += blocks * d * (2 * inner + 2 * kv_inner)  # self-attention's projections
    per_token += blocks * d * 2 * inner  # cross-attention's queries and output
    per_token += blocks * 2 * inner * (tokens + text_length)  # q k^T and weights v, to the image and to the text
    per_token += sparse * d * experts
    feed_forwards = blocks - sparse + sparse * capacity_factor
    per_token += round(feed_forwards * 2 * d * spec.ffn_factor * d)
    return 2 * (per_image + text_length * per_text_token + tokens * per_token)


def tower_forward_flops(tower: TowerSpec, text_length: int) -> int:
    """FLOPs of one caption through the text tower."""
    m = tower.width
    return 2 * tower.num_blocks * text_length * (12 * m * m + 2 * m * text_length)


def train_flops_per_image(
    spec: DiTSpec,
    kept_tokens: int,
    text_length: int,
    capacity_factor: float = CAPACITY_FACTOR,
    tower: TowerSpec | None = None,
) -> int:
    """FLOPs of one image in one training step, the numerator of MFU; the backward pass costs two forward ones."""
    text = tower_forward_flops(tower, text_length) if tower else 0
    return 3 * (forward_flops(spec, kept_tokens, text_length, capacity_factor) + text)


def paper_sizes() -> dict[str, Sizes]:
    """Sizes of every model of the paper, by config name."""
    return {name: sizes(row.spec) for name, row in PAPER.items()}


def markdown_page() -> str:
    """docs/models.md: the models of the paper, ours beside the printed figures."""
    table = [f"| {' | '.join(cells)} |" for cells in (_COLUMNS, ["---"] * len(_COLUMNS), *_table())]
    return "\n".join([_HEADER, *table, _footer()])


def text_table() -> str:
    """The same table for a terminal."""
    rows = [_COLUMNS, *_table()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("  ".join(map(str.rjust, cells, widths)) + "\n" for cells in rows)


_COLUMNS = (
    "config,width,blocks,heads,KV heads,experts,sparse blocks,total,activated,"
    "total + encoders,paper's,activated + encoders,paper's,GFLOPs / token"
).split(",")
_HEADER = f"""# The models of the paper

Written by `make docs`. Every row is a file in `configs/`; the structure stands in `ec_dit/models/paper.py`.
Parameters in billions: "total" and "activated" count the transformer, "+ encoders" adds a text encoder
({TEXT_ENCODER_PARAMS / 1e9:.2f}, OpenCLIP bigG's) and an autoencoder ({AUTOENCODER_PARAMS / 1e9:.2f}), which the
paper's figures include.
"""


def _table() -> list[list[str]]:
    encoders = TEXT_ENCODER_PARAMS + AUTOENCODER_PARAMS
    rows = []
    for name, row in PAPER.items():
        spec, ours = row.spec, sizes(row.spec)
        structure = (
            spec.width,
            spec.num_blocks,
            spec.num_heads,
            spec.num_kv_heads,
            spec.sparse.num_experts,
            spec.num_sparse,
        )
        params = [_billions(count) for count in (ours.total, ours.activated)]
        params += [_billions(ours.total + encoders), _printed(row.total)]
        params += [_billions(ours.activated + encoders), _printed(row.activated)]
        rows.append([name, *(str(number) for number in structure), *params, f"{ours.flops_per_token / 1e9:.2f}"])
    return rows


def _footer() -> str:
    sparse, dense = (_worst_ratio(dense=flag) for flag in (False, True))
    ours = sizes(PAPER["3xl_32e"].spec)
    by_formula = (PAPER["dense_3xl"].total or 0) + (ours.activated - ours.dense_total) / 1e9
    return f"""
- Activated parameters (Algorithm 2): the dense model's + k (8 d^2 (f_c - 1) + E d), for k sparse blocks of E experts,
  width d and capacity factor f_c = {CAPACITY_FACTOR:g}. For 3XL-32E this formula gives {by_formula:.2f} from the
  paper's own dense total, where the paper prints {PAPER["3xl_32e"].activated}; we keep the formula.
- From dense to sparse the total rises by exactly k ((E - 1) 8 d^2 + E d): the paper's own differences.
- M-64E has {PAPER["m_64e"].spec.num_blocks} blocks, Dense-M {PAPER["dense_m"].spec.num_blocks}.
- The paper does not print its block in every detail. With a time modulation of its own in every block (6 d^2) the
  sparse totals lie within {sparse:.1%} of the printed ones; the dense ones, in which the same surplus weighs more,
  within {dense:.0%}.
- GFLOPs / token: one forward pass of a 256 x 256 image with {_IMAGE_TOKENS} tokens and {_TEXT_LENGTH} text tokens, spread
  over the image tokens; matrix products only.
"""


def _worst_ratio(*, dense: bool) -> float:
    """Largest relative distance of our totals from the printed ones."""
    extra = TEXT_ENCODER_PARAMS + AUTOENCODER_PARAMS
    rows = [row for row in PAPER.values() if (row.routing == "dense") == dense]
    return max(abs((num_params(row.spec) + extra) / (row.total * 1e9) - 1) for row in rows if row.total)


def _billions(count: float) -> str:
    return f"{count / 1e9:.2f}"


def _printed(billions: float | None) -> str:
    return "-" if billions is None else f"{billions:.2f}"


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _context_width(spec: DiTSpec) -> int:
    return spec.width if spec.text_projection else spec.text_width


def _feed_forward(spec: DiTSpec) -> int:
    hidden = spec.ffn_factor * spec.width
    return 2 * spec.width * hidden + (hidden + spec.width if spec.bias else 0)


def _attention(spec: DiTSpec, context: int) -> int:
    inner, kv_inner = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    weights = 2 * spec.width * inner + 2 * context * kv_inner
    biases = inner + 2 * kv_inner + spec.width if spec.bias else 0
    return weights + biases + (2 * spec.head_dim if spec.qk_norm else 0)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Parameters of the paper's models, in billions, by formula.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one object per config name; transformer only, in units")
    form.add_argument("--markdown", action="store_true", help="docs/models.md")
    arguments = parser.parse_args()
    if arguments.json:
        text = json.dumps({name: asdict(size) for name, size in paper_sizes().items()}, indent=2) + "\n"
    else:
        text = markdown_page() if arguments.markdown else text_table()
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
