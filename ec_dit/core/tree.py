"""Small tools on pytrees: names, sizes."""

import math
from collections.abc import Container
from typing import Any

import jax


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(slash-separated path, leaf) of every leaf, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def num_params(tree: Any) -> int:
    """How many numbers the arrays (or ShapeDtypeStructs) of `tree` hold."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def is_key(leaf: Any) -> bool:
    """Whether an array is one of typed random keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def owner(name: str, names: Container[str]) -> str | None:
    """Gives which of `names` ends the name of a leaf: the parameter that an optimizer keeps it for; None where none does."""
    parts = name.split("/")
    return next((suffix for i in range(len(parts)) if (suffix := "/".join(parts[i:])) in names), None)
