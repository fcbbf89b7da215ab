"""Which captions go through the tower."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ec_dit.data.batch import Text
from ec_dit.models.spec import DiTSpec
from ec_dit.models.text_spec import TowerSpec
from ec_dit.models.text_to_image import TextToImage

DIT = DiTSpec(width=16, num_blocks=1, num_heads=2, num_kv_heads=2, head_dim=8, text_width=16, latent_size=4)
MASK_BT = jnp.ones((2, 3), bool)


def test_embeddings_of_a_frozen_encoder_pass_through(randomise):
    graphdef, params = randomise(lambda: TextToImage(DIT, None, rngs=nnx.Rngs(0)))
    text = Text(jnp.ones((2, 3, 16)), MASK_BT)
    assert nnx.merge(graphdef, params).encode(text) is text


def test_ids_become_the_tower_s_embeddings(randomise):
    tower = TowerSpec(vocab_size=5, width=16, num_blocks=1, num_heads=2, length=3)
    graphdef, params = randomise(lambda: TextToImage(DIT, tower, rngs=nnx.Rngs(0)))
    model = nnx.merge(graphdef, params)
    ids_BT = jnp.array([[1, 2, 3], [4, 0, 1]])
    encoded = model.encode(Text(ids_BT, MASK_BT))
    np.testing.assert_array_equal(encoded.tokens, model.tower(ids_BT, MASK_BT))
    assert encoded.tokens.shape == (2, 3, 16)
    assert encoded.mask_BT is MASK_BT
