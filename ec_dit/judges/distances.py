"""How far two sets of pictures are apart, by their features: the distances of FID, KID and CMMD."""

from collections.abc import Iterator

import numpy as np

from ec_dit.core.errors import UserError
from ec_dit.judges.moments import Moments

KID_SUBSETS, KID_SIZE = 100, 1000  # clean-fid's
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # of the Gaussian kernel, and of the figure (Jayasumana et al. 2024)
_ROWS = 1024  # of a kernel's matrix that are in memory at a time


def root(covariance_DD: np.ndarray) -> np.ndarray:
    """Gives a matrix whose product with its transpose is the covariance; a column for each eigenvalue that is not 0."""
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    some_D = values_D > _least(values_D)
    return vectors_DD[:, some_D] * np.sqrt(values_D[some_D])


def frechet(a: Moments, b: Moments, root_a: np.ndarray | None = None) -> float:
    """Computes the squared Fréchet distance of two normal distributions: |mean difference|^2 + tr(A + B - 2 (A B)^1/2).

    With A = R R^T, (A B)^1/2 has the trace of (R^T B R)^1/2, which is symmetric: its eigenvalues are real, however many are 0.

    Args:
        root_a: R, where it is known.
    """
    apart_D = a.mean_D - b.mean_D
    root_a = root(a.covariance_DD) if root_a is None else root_a
    values_D = np.linalg.eigvalsh(root_a.T @ b.covariance_DD @ root_a)
    shared = np.sqrt(values_D[values_D > _least(values_D)]).sum()
    return float(apart_D @ apart_D + np.trace(a.covariance_DD) + np.trace(b.covariance_DD) - 2 * shared)


def _least(values_D: np.ndarray) -> float:
    """What an eigenvalue has to be above; smaller ones are rounding errors of 0, whose square roots would not be small."""
    return max(0.0, float(values_D.max(initial=0)) * len(values_D) * float(np.finfo(np.float64).eps))


def kid(
    a_BD: np.ndarray, b_BD: np.ndarray, rng: np.random.Generator, subsets: int = KID_SUBSETS, size: int = KID_SIZE
) -> tuple[float, float]:
    """Computes the kernel distance: the squared MMD of the kernel (x.y / D + 1)^3, without bias, averaged over random subsets.

    Args:
        a_BD, b_BD: features.
        rng: chooses the subsets.
        size: of a subset, at most.

    Returns:
        the distance, and its standard error by the subsets' spread (subsets overlap, so that it is a little too small).

    Raises:
        UserError: a set has fewer than two pictures.
    """
    size = min(len(a_BD), len(b_BD), size)
    if size < 2:
        raise UserError(f"KID compares two pictures of each set at least, and here is {size}.")
    values = np.empty(subsets)
    for i in range(subsets):
        y_BD = b_BD[rng.choice(len(b_BD), size, replace=False)].astype(np.float64)
        x_BD = a_BD[rng.choice(len(a_BD), size, replace=False)].astype(np.float64)
        within = _cubic(x_BD, x_BD) + _cubic(y_BD, y_BD)
        within = (within.sum() - np.trace(within)) / (size - 1)
        values[i] = (within - 2 * _cubic(x_BD, y_BD).sum() / size) / size
    error = values.std(ddof=1) / np.sqrt(subsets) if subsets > 1 else float("nan")
    return float(values.mean()), float(error)


def _cubic(x_BD: np.ndarray, y_BD: np.ndarray) -> np.ndarray:
    return (x_BD @ y_BD.T / x_BD.shape[1] + 1) ** 3


def cmmd(a_BD: np.ndarray, b_BD: np.ndarray) -> float:
    """Computes 1000 times the squared MMD of the kernel exp(-|x - y|^2 / (2 10^2)) (CMMD, eq. 4), each picture with itself too.

    Args:
        a_BD, b_BD: features, as the network gives them, of length 1.
    """
    return CMMD_SCALE * (_gaussian(a_BD, a_BD) + _gaussian(b_BD, b_BD) - 2 * _gaussian(a_BD, b_BD))


def _gaussian(x_BD: np.ndarray, y_BD: np.ndarray) -> float:
    """The kernel's mean over all pairs."""
    y_BD = y_BD.astype(np.float64)
    norms_B = (y_BD**2).sum(1)
    total = 0.0
    for part_BD in _parts(x_BD):
        squares_BB = (part_BD**2).sum(1)[:, None] + norms_B - 2 * part_BD @ y_BD.T
        total += float(np.exp(squares_BB / (-2 * CMMD_SIGMA**2)).sum())
    return total / (len(x_BD) * len(y_BD))


def _parts(x_BD: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(x_BD), _ROWS):
        yield x_BD[start : start + _ROWS].astype(np.float64)
