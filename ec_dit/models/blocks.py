"""The kinds of block that a model can be made of."""

from ec_dit.models.block import Block
from ec_dit.models.cross_attention import CrossAttentionBlock
from ec_dit.models.joint_kv import JointKVBlock
from ec_dit.models.mmdit import MMDiTBlock
from ec_dit.models.spec import BlockKind

BLOCKS: dict[BlockKind, type[Block]] = {
    "cross_attention": CrossAttentionBlock,
    "joint_kv": JointKVBlock,
    "mmdit": MMDiTBlock,
}
