"""What a model reads of a caption: the `text` section, and the structure of a text encoder that is trained along."""

from dataclasses import dataclass
from typing import Literal

from ec_dit.core.settings import SIZE, key, only
from ec_dit.data.captions import CaptionSpec


@dataclass(frozen=True)
class TextSpec(CaptionSpec):
    """The `text` section: what the model reads of a caption."""

    encoder: Literal["cached", "tower"] = key(
        "cached", "embeddings stored with the data, or a small text encoder trained jointly", params="shape"
    )
    width: int = key(
        1280,
        "M; OpenCLIP bigG's text tower, the nearest public encoder to the paper's",
        at_least=1,
        at_most=SIZE,
        params="shape",
    )
    length: int = key(77, "T, tokens per caption", at_least=1, at_most=SIZE, params="shape")
    pooled_width: int = key(
        0,
        "of the vector of a whole caption that CLIP gives, which then enters beside the time (SD3: 2048); 0 = it is not used",
        at_least=0,
        at_most=SIZE,
        use=only("text.encoder", "cached"),
        params="shape",
    )
    path: str = key(
        "",
        "folders of the published encoders of cached embeddings, comma-separated; sampling reads prompts with them",
        use=only("text.encoder", "cached"),
        resumable=True,
    )
    tower_blocks: int = key(
        2, "of the tower", at_least=1, at_most=SIZE, use=only("text.encoder", "tower"), params="shape"
    )
    tower_heads: int = key(
        4, "of the tower", at_least=1, at_most=SIZE, use=only("text.encoder", "tower"), params="shape"
    )

    @property
    def pooled(self) -> int:
        """M of the pooled vectors that the model reads; 0: none, as beside a tower, which gives none."""
        return self.pooled_width if self.encoder == "cached" else 0


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
