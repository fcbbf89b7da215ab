"""The models of the EC-DiT paper (arXiv 2410.02098), one row a model, with the figures that the paper prints.

The structure of every row stands here once: config files and the size table take it from here. Where the paper leaves a
choice open (per-block AdaLN, text width 1280), it is the one whose totals agree with the printed ones.
"""

from dataclasses import dataclass, replace

from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.spec import DiTSpec
from ec_dit.nn.routing.spec import RoutingKind

CAPACITY_FACTOR = 2.0  # f_c, everywhere in the paper

# What the paper's totals hold beside the transformer; here the public parts nearest to the paper's own.
TEXT_ENCODER_PARAMS = 0.69e9  # OpenCLIP bigG's text tower (the paper: about 0.67 B)
AUTOENCODER_PARAMS = 0.08e9  # a KL autoencoder of downsampling 8


@dataclass(frozen=True)
class PaperRow:
    """One model of the paper.

    Attributes:
        title: its name in the paper.
        spec: its structure.
        routing: how its sparse blocks route.
        topology: the slice that it is trained on: the paper's where it names one for the size.
        dense_ways: in how many parts the weights of its dense layers lie: of a size the same, and as many as most experts.
        total, activated: parameters in billions as the paper prints them, text encoder and autoencoder included; None
            where it prints none.
    """

    title: str
    spec: DiTSpec
    routing: RoutingKind
    topology: str
    dense_ways: int
    total: float | None = None
    activated: float | None = None


_SIZES = {  # Table 1
    "xl": DiTSpec(width=1152, num_blocks=28, num_heads=18, num_kv_heads=6),
    "xxl": DiTSpec(width=1536, num_blocks=38, num_heads=24, num_kv_heads=6),
    "3xl": DiTSpec(width=2304, num_blocks=42, num_heads=36, num_kv_heads=6),
    "m": DiTSpec(width=3072, num_blocks=38, num_heads=48, num_kv_heads=12),
}
_DENSE_BLOCKS = {"m": 46}  # Dense-M is deeper than M-64E
_DENSE_TOTAL = {"xl": 1.47, "xxl": 2.35, "3xl": 4.50, "m": 8.03}
_EXPERTS = {"xl": (8, 16, 32), "xxl": (8, 16, 32), "3xl": (8, 16, 32), "m": (64,)}
_SPARSE_FIGURES = {"xl_32e": (6.08, 1.62), "xxl_32e": (13.47, 2.71), "3xl_32e": (32.15, 5.18), "m_64e": (97.21, 8.27)}
_TOKEN_CHOICE_SIZES = ("xl", "xxl")
_TOPOLOGY = {"xl": "v4:4x4x8", "xxl": "v5p:4x8x8", "3xl": "v5p:4x8x8", "m": "v5p:8x8x8"}


def _rows() -> dict[str, PaperRow]:
    rows = {}
    slices = {size: (_TOPOLOGY[size], max(_EXPERTS[size])) for size in _SIZES}
    for size, spec in _SIZES.items():
        for experts in _EXPERTS[size]:
            name = f"{size}_{experts}e"
            sparse = replace(spec, sparse=SparseSpec(experts))
            rows[name] = PaperRow(
                f"EC-DiT-{size.upper()}-{experts}E",
                sparse,
                "expert_choice",
                *slices[size],
                *_SPARSE_FIGURES.get(name, ()),
            )
    for size, spec in _SIZES.items():
        dense = replace(spec, num_blocks=_DENSE_BLOCKS.get(size, spec.num_blocks))
        rows[f"dense_{size}"] = PaperRow(
            f"Dense-{size.upper()}", dense, "dense", *slices[size], _DENSE_TOTAL[size], _DENSE_TOTAL[size]
        )
    for size in _TOKEN_CHOICE_SIZES:
        for experts in _EXPERTS[size]:
            sparse = replace(_SIZES[size], sparse=SparseSpec(experts))
            rows[f"gs_{size}_{experts}e"] = PaperRow(
                f"GS-{size.upper()}-{experts}E", sparse, "token_choice", *slices[size]
            )
    return rows


PAPER: dict[str, PaperRow] = _rows()

# Hours of the paper's runs, 800 k steps at batch 4096, on the topologies that the configs name.
PAPER_HOURS: dict[str, float] = {"xl_32e": 75.6, "xxl_32e": 82.2, "3xl_32e": 96.1, "m_64e": 100.0}
