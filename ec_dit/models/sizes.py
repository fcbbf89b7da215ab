"""Parameters and FLOPs of whole models by formula, without building anything: sums of what stands beside the layers.

Activated parameters are the paper's Algorithm 2: a dense model's, plus per sparse block (f_c - 1) more feed-forward
layers and a router, dense + k (8 d^2 (f_c - 1) + E d) at ffn_factor 4.

    python -m ec_dit.models.sizes [--json | --markdown]     the paper's models
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace

from ec_dit.models.dit import DiT
from ec_dit.models.paper import AUTOENCODER_PARAMS, CAPACITY_FACTOR, PAPER, TEXT_ENCODER_PARAMS
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.spec import DiTSpec
from ec_dit.models.text_spec import TowerSpec
from ec_dit.models.text_tower import TextTower
from ec_dit.nn.cost import Load

_IMAGE_TOKENS, _TEXT_LENGTH = 256, 77  # of the table: 256 x 256 pixels, a CLIP caption


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
    """Counts one model; `capacity_factor` matters to `activated` and `flops_per_token`."""
    load = Load(_IMAGE_TOKENS, _TEXT_LENGTH, capacity_factor)
    ours, dense = DiT.cost(spec, load), DiT.cost(replace(spec, sparse=SparseSpec()), load)
    return Sizes(ours.params, ours.activated, dense.params, spec.num_sparse, ours.flops // _IMAGE_TOKENS)


def forward_flops(
    spec: DiTSpec,
    tokens: int,
    text_length: int,
    capacity_factor: float = CAPACITY_FACTOR,
    *,
    reads_text: bool = True,
) -> int:
    """Counts the FLOPs of one prediction for one image.

    Args:
        tokens, text_length, capacity_factor, reads_text: as in `nn.cost.Load`.
    """
    return DiT.cost(spec, Load(tokens, text_length, capacity_factor, reads_text)).flops


def train_flops_per_image(
    spec: DiTSpec,
    kept_tokens: int,
    text_length: int,
    capacity_factor: float = CAPACITY_FACTOR,
    tower: TowerSpec | None = None,
) -> int:
    """Counts the FLOPs of one image in one training step, the numerator of MFU; the backward pass costs two forward ones."""
    text = TextTower.cost(tower, text_length).flops if tower else 0
    return 3 * (forward_flops(spec, kept_tokens, text_length, capacity_factor) + text)


def paper_sizes() -> dict[str, Sizes]:
    """Counts every model of the paper, by config name."""
    return {name: sizes(row.spec) for name, row in PAPER.items()}


def markdown_page() -> str:
    """Writes docs/models.md: the models of the paper, our figures beside the printed ones."""
    table = [f"| {' | '.join(cells)} |" for cells in (_COLUMNS, ["---"] * len(_COLUMNS), *_table())]
    return "\n".join([_HEADER, *table, _footer()])


def text_table() -> str:
    """Writes the same table for a terminal."""
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
    return max(abs((sizes(row.spec).total + extra) / (row.total * 1e9) - 1) for row in rows if row.total)


def _billions(count: float) -> str:
    return f"{count / 1e9:.2f}"


def _printed(billions: float | None) -> str:
    return "-" if billions is None else f"{billions:.2f}"


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
