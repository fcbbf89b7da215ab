"""The routes of many pictures, gathered: arrays for routing.npz, figures for routing.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ec_dit.maps import figures
from ec_dit.maps.foreground import Mask, share_of_patches
from ec_dit.sampling.routes import Routes

_LEAST_WITH_WORDS = 20  # pictures, below which words say nothing


class Collection:
    """Routes of pictures that were drawn with the same settings.

    Args:
        mask: tells the objects of a picture; None: unknown.
        which: keeps every gate, not only the number of experts.

    Attributes:
        images: uint8 (rows, columns, 3) of every picture.
        prompts, indices, groups: of every picture; a group is '' where there is none.
        block_L: of each sparse block its number among all blocks.
        time_U: of each evaluation.
    """

    def __init__(self, mask: Mask | None = None, *, which: bool = False):
        self._mask, self._which = mask, which
        self.images, self.prompts, self.indices, self.groups = list[np.ndarray](), list[str](), list[int](), list[str]()
        self.block_L, self.time_U = np.zeros(0, int), np.zeros(0, np.float32)
        self._counts, self._objects, self._figures = list[np.ndarray](), list[np.ndarray](), list[dict[str, Any]]()
        self._gates, self._sums = list[np.ndarray](), list[np.ndarray]()
        self._whole = list[tuple[np.ndarray, np.ndarray]]()

    def add(self, routes: Routes, prompt: str, index: int, group: str = "") -> None:
        """Adds a picture."""
        count_LUYX = routes.taken_LUYXE.sum(-1)
        rows, columns = count_LUYX.shape[2:]
        known = None if self._mask is None else share_of_patches(self._mask(routes.image_YXZ), rows, columns)
        self.images.append(routes.image_YXZ)
        self.prompts.append(prompt)
        self.indices.append(index)
        self.groups.append(group)
        self.block_L, self.time_U = routes.block_L, routes.time_U
        self._counts.append(count_LUYX.astype(np.uint16))
        self._figures.append(figures.of_picture(count_LUYX, known))
        gate_LYXE = routes.gate_LUYXE.mean(1)
        self._gates.append(gate_LYXE)
        self._sums.append(gate_LYXE.sum((1, 2)))
        if known is not None:
            self._objects.append(known)
        if self._which:
            self._whole.append((routes.gate_LUYXE, routes.taken_LUYXE))

    @property
    def count_NLUYX(self) -> np.ndarray:
        """Gives the experts that took each token of each picture."""
        return np.stack(self._counts)

    @property
    def gate_NLYXE(self) -> np.ndarray:
        """Gives each expert's gate of each token, the mean over evaluations; 0 where it did not take the token."""
        return np.stack(self._gates)

    def lifts(self) -> list[figures.Lift]:
        """Finds the words that each expert has the most to do with; none of a few pictures."""
        if len(self.images) < _LEAST_WITH_WORDS:
            return []
        return figures.words(np.stack(self._sums), self.block_L.tolist(), self.prompts)

    def arrays(self) -> dict[str, np.ndarray]:
        """Gives what routing.npz holds, by the names that docs/routing.md explains."""
        found = {
            "count_NLUYX": self.count_NLUYX,
            "time_U": self.time_U,
            "block_L": self.block_L,
            "image_NYXZ": np.stack(self.images),
            "prompt_N": np.array(self.prompts),
            "index_N": np.array(self.indices),
        }
        if self._objects:
            found["object_NYX"] = np.stack(self._objects).astype(np.float32)
        if self._whole:
            found["gate_NLUYXE"], found["taken_NLUYXE"] = (np.stack(each) for each in zip(*self._whole, strict=True))
        return found

    def told(self, lifts: Sequence[figures.Lift]) -> dict[str, Any]:
        """Gives what routing.json says of the pictures: every figure by block and evaluation, of all and of each group; words."""
        groups = sorted(set(self.groups) - {""})
        found: dict[str, Any] = {
            "pictures": len(self.images),
            "blocks": self.block_L.tolist(),
            "times": [round(float(t), 6) for t in self.time_U],
            "meaning": {name: text for name, text in figures.FIGURES.items() if any(name in f for f in self._figures)},
            "figures": _spreads(self._figures),
        }
        if groups:
            found["by_group"] = {
                group: _spreads([f for f, own in zip(self._figures, self.groups, strict=True) if own == group])
                for group in groups
            }
        if lifts:
            found["words"] = [vars(each) for each in lifts]
        return found

    def spreads(self) -> dict[str, figures.Spread]:
        """Gives every figure over all pictures."""
        return figures.over_pictures(self._figures)


def _spreads(found: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    return {
        name: {
            "mean": _plain(spread.mean_LU),
            "standard_error": _plain(spread.standard_error_LU),
            "pictures": spread.pictures,
        }
        for name, spread in figures.over_pictures(found).items()
    }


def _plain(values_LU: np.ndarray) -> list[list[float | None]]:
    """Numbers as JSON has them, which knows no NaN."""
    return [[None if np.isnan(value) else round(float(value), 6) for value in row] for row in values_LU]
