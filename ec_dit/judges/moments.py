"""Mean and covariance of feature vectors, of any number of them in the same memory, and the files that keep them."""

import io
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ec_dit.core import digests, paths
from ec_dit.core.errors import UserError

SUFFIX = ".npz"  # of files as pytorch-fid writes them, with mu and sigma


@dataclass(frozen=True)
class Moments:
    """What is known of a set of pictures by their features.

    Attributes:
        mean_D: float64.
        covariance_DD: float64, of the sample: divided by the number of pictures - 1.
        count: pictures; None: the file does not say.
    """

    mean_D: np.ndarray
    covariance_DD: np.ndarray
    count: int | None = None

    def write(self, path: str | Path) -> None:
        """Writes a file that pytorch-fid reads too."""
        whole = io.BytesIO()
        np.savez_compressed(whole, mu=self.mean_D, sigma=self.covariance_DD, count=np.int64(self.count or 0))
        digests.replace(paths.at(path), whole.getvalue())


class Sums:
    """Adds up features in float64 in the order in which they come.

    They are taken relative to the first ones' mean, so that the covariance of features far from 0 loses no digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._at_D: np.ndarray | None = None

    def add(self, features_BD: np.ndarray, weights_B: np.ndarray | None = None) -> None:
        """Adds some, each as often as its weight says; None = once."""
        features_BD = features_BD.astype(np.float64)
        if self._at_D is None:
            width = features_BD.shape[1]
            self._at_D = features_BD.mean(0)
            self._total_D, self._products_DD = np.zeros(width), np.zeros((width, width))
        features_BD -= self._at_D
        weighted_BD = features_BD if weights_B is None else features_BD * weights_B[:, None]
        self.count += len(features_BD) if weights_B is None else int(weights_B.sum())
        self._total_D += weighted_BD.sum(0)
        self._products_DD += weighted_BD.T @ features_BD

    def moments(self) -> Moments:
        """Gives mean and covariance so far.

        Raises:
            UserError: of fewer than two pictures there is no covariance.
        """
        if self._at_D is None or self.count < 2:
            raise UserError(f"a covariance needs two pictures at least, and here are {self.count}.")
        mean_D = self._total_D / self.count
        products_DD = self._products_DD - self.count * np.outer(mean_D, mean_D)
        return Moments(self._at_D + mean_D, products_DD / (self.count - 1), self.count)


def moments(features: Iterable[np.ndarray]) -> Moments:
    """Gives mean and covariance of features, which come as arrays (B, D). Raises UserError where there are fewer than two."""
    sums = Sums()
    for features_BD in features:
        sums.add(features_BD)
    return sums.moments()


def read(path: str | Path, width: int) -> Moments:
    """Reads a statistics file of features of `width` numbers, as pytorch-fid writes them.

    Raises:
        UserError: it is none, or one of other features.
    """
    whole = paths.at(path)
    try:
        with np.load(io.BytesIO(whole.read_bytes())) as file:
            found = {name: np.asarray(file[name]) for name in ("mu", "sigma", "count") if name in file}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is no statistics file: {error}") from error
    if not {"mu", "sigma"} <= found.keys():
        raise UserError(f"{path} is no statistics file: it has no arrays mu and sigma.")
    mean_D, covariance_DD = (found[name].astype(np.float64) for name in ("mu", "sigma"))
    if mean_D.shape != (width,) or covariance_DD.shape != (width, width):
        raise UserError(
            f"{path} has mu {mean_D.shape} and sigma {covariance_DD.shape}, but the features here are of {width} numbers: "
            "it was made with another network."
        )
    if not (np.isfinite(mean_D).all() and np.isfinite(covariance_DD).all()):
        raise UserError(f"{path} holds numbers that are not finite; make it again.")
    return Moments(mean_D, covariance_DD, int(found["count"]) or None if "count" in found else None)
