"""CLIP's vision tower (OpenAI's, and OpenCLIP's as transformers publishes it), frozen: alone, or out of a whole CLIP's files."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import hub, name_map
from ec_dit.core.errors import UserError
from ec_dit.core.name_map import LINEAR, SAME, patches
from ec_dit.encoders import clip_tower, vit, weights
from ec_dit.encoders.clip_tower import ClipBlock, TowerSpec
from ec_dit.encoders.vit import PictureTokens
from ec_dit.nn import param
from ec_dit.nn.norms import LayerNorm
from ec_dit.nn.stack import Stack

# Of a whole CLIP; and positions counted from 0, which older files keep as a tensor.
IGNORED = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")
_PROJECTION = "visual_projection.weight"


@dataclass(frozen=True)
class ClipVisionSpec(TowerSpec):
    """Sizes of a vision tower.

    Attributes:
        size: of the pictures, pixels of a side.
        patch: pixels of a patch's side.
    """

    size: int
    patch: int

    @classmethod
    def from_config(cls, found: Mapping[str, Any], where: str) -> "ClipVisionSpec":
        """Reads the spec that a config.json, which comes from `where`, describes; a whole CLIP's, too.

        Values that may be missing there are those of CLIP ViT-B/32, as transformers has it. The spec has a projection where
        the config gives its width; `load` takes it away where the files hold none.

        Raises:
            UserError: for another model's, or a setting that is not supported.
        """
        found, where = clip_tower.config(found, where, "vision")
        hub.supported(found, where, num_channels=vit.CHANNELS)
        sizes = clip_tower.sizes(found, where, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
        pixels = hub.fields(found, where, image_size=224, patch_size=32)
        hub.divisible(pixels, where, image_size="patch_size")
        return cls(**sizes, size=pixels["image_size"], patch=pixels["patch_size"])


class ClipVision(nnx.Module):
    """Pixels (B, Y, X, Z) -> embeddings (B, D), of no particular length; sums over blocks are kept in float32.

    Embeddings are projected if the published model does. Their cosines with a text's compare pictures and texts.
    """

    def __init__(self, spec: ClipVisionSpec, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.spec, self.dtype = spec, dtype
        grid = spec.size // spec.patch
        self.tokens = PictureTokens(spec.width, spec.patch, grid, bias=False, dtype=dtype, rngs=rngs)
        self.norm_in = LayerNorm(spec.width, eps=spec.eps)
        self.stack = Stack(
            lambda key: ClipBlock(spec, causal=False, dtype=dtype, rngs=nnx.Rngs(key)),
            jax.random.split(rngs.params(), spec.num_blocks),
        )
        self.norm_out = LayerNorm(spec.width, eps=spec.eps)
        if spec.projection is not None:
            self.w_pooled_ID = param.matrix(rngs, (spec.width, spec.projection), (None, "embed"), "io")

    def __call__(self, pixels_BYXZ: jax.Array) -> jax.Array:
        """Embeds pictures that `pixels.Processor` made.

        Raises:
            UserError: for pictures of another size than `spec.size`.
        """
        size, (_, y, x, _) = self.spec.size, pixels_BYXZ.shape
        if (y, x) != (size, size):
            raise UserError(f"this vision tower takes pictures of {size} x {size} pixels, not {y} x {x}.")
        images = (("batch", None, None, None),)
        run = param.per_device(self, ClipVision._forward, images, ("batch", None), name="pictures of the batch")
        return run(pixels_BYXZ)

    def _forward(self, pixels_BYXZ: jax.Array) -> jax.Array:
        """The pictures of one device."""
        x_BSD = self.norm_in(self.tokens(pixels_BYXZ))
        x_BSD, _ = self.stack(x_BSD, lambda block, x: (block(x), None))
        pooled_BD = self.norm_out(x_BSD[:, 0]).astype(self.dtype)  # of the class token
        return pooled_BD if self.spec.projection is None else pooled_BD @ param.gather(self.w_pooled_ID, self.dtype)


def entries(names: Iterable[str], spec: ClipVisionSpec) -> name_map.Table:
    """Lists which tensors of the published files hold the parameters `names`."""
    plain: name_map.Rules = {
        "tokens/w_PD": ("vision_model.embeddings.patch_embedding.weight", patches(spec.patch)),
        "tokens/class_D": ("vision_model.embeddings.class_embedding", SAME),
        "tokens/position_SD": ("vision_model.embeddings.position_embedding.weight", SAME),
        "norm_in/scale_D": ("vision_model.pre_layrnorm.weight", SAME),  # their spelling
        "norm_in/shift_D": ("vision_model.pre_layrnorm.bias", SAME),
        "norm_out/scale_D": ("vision_model.post_layernorm.weight", SAME),
        "norm_out/shift_D": ("vision_model.post_layernorm.bias", SAME),
        "w_pooled_ID": (_PROJECTION, LINEAR),
    }
    return name_map.table(names, plain, {"stack/blocks/": (range(spec.num_blocks), clip_tower.rules("vision"))})


def load(path: str | Path, mesh: Mesh, dtype: jnp.dtype) -> tuple[ClipVisionSpec, weights.Frozen]:
    """Loads the vision tower of a published folder, or of one file in it, over `mesh`, in memory and computing in `dtype`.

    Raises:
        UserError: if the folder holds something else, or damaged files.
    """
    files = hub.TensorFiles(path, functools.partial(clip_tower.name, tower="vision"))
    spec = clip_tower.described(files, ClipVisionSpec.from_config, _PROJECTION, "CLIPVisionModelWithProjection")

    def make(rngs: nnx.Rngs) -> ClipVision:
        return ClipVision(spec, dtype=dtype, rngs=rngs)

    return spec, weights.load(make, functools.partial(entries, spec=spec), files, mesh, dtype, IGNORED)
