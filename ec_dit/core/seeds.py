"""Which numbers are seeds."""

LARGEST = 2**32 - 1  # jax.random.key keeps 32 bits: the keys of larger numbers would be those of smaller ones
