"""Options of suites that compare pictures with real ones by the features of a network."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from ec_dit.core import hub, paths
from ec_dit.core.errors import UserError
from ec_dit.core.settings import COUNT, SIZE, key
from ec_dit.data import images
from ec_dit.encoders import inception
from ec_dit.encoders.features import BATCH, Features
from ec_dit.encoders.resizing import RESIZES
from ec_dit.evaluators.base import Reference, RunFacts
from ec_dit.evaluators.prompted import PromptedSuite
from ec_dit.judges.moments import Moments


@dataclass(frozen=True)
class ComparedSuite(PromptedSuite):
    """Compares drawn pictures with a reference."""

    reference: str = key(
        "", "a split of the run's data, or a path: data set (:SPLIT), folder of pictures, statistics; '' = validation"
    )
    reference_most: int = key(
        0, "pictures of the reference at most, the first ones; 0 = all", at_least=0, at_most=COUNT
    )
    crop: int = key(
        0,
        "pixels of a square, cut from the middle of the reference's pictures; 0 = as they are",
        at_least=0,
        at_most=SIZE,
    )
    batch_size: int = key(BATCH, "pictures that a device reads at a time", at_least=1, at_most=100_000)

    def real(self, facts: RunFacts) -> Reference:
        """Finds the reference. Raises UserError where there is none."""
        found = facts.reference(self.reference, self.reference_most)
        read = found.images
        if read is None and (self.crop or self.reference_most):
            raise UserError(f"suite {self.label}: statistics of pictures have neither crop nor reference_most.")
        if not self.crop or read is None:
            return found
        found.facts["crop"] = self.crop
        return replace(found, images=lambda: map(self._cropped, read()))

    def _cropped(self, image: np.ndarray) -> np.ndarray:
        return np.asarray(images.center_crop(images.to_pil(image), self.crop))


def needed(path: str, option: str, what: str) -> str:
    """Gives the path of a network back.

    Raises:
        UserError: none is given; `option` names it, and `what` says what is wanted.
    """
    if not path:
        raise UserError(f"{what} is needed: --{option}=PATH, or {option}=PATH among the suite's options in a config.")
    return path


def check_can_write(file: str) -> None:
    """Finds out whether a file may be written, before its content is made. Raises UserError where its folder is not there."""
    folder = paths.at(file).parent
    if not paths.is_remote(folder) and not folder.is_dir():
        raise UserError(f"write={file}: there is no folder {folder}.")
    paths.check_can_write(folder, "write")


def network_facts(path: str) -> dict[str, Any]:
    """Lists what identifies a network: where it is, and the hash of its weights."""
    files = sorted({info.file for info in hub.TensorFiles(path).tensors.values()})
    return {"path": hub.pinned(path), "sha256": hub.sha256(files)}


def inception_features(path: str, resize: str, facts: RunFacts, batch: int) -> Features:
    """Loads FID's Inception, and what makes pictures ready for it.

    Raises:
        UserError: no file is given, or it is of another network.
    """
    path = needed(path, "inception", "FID's Inception, as safetensors in pytorch-fid's layout,")
    network = inception.load(path, facts.mesh, jnp.float32)
    return Features(network, RESIZES[resize], facts.mesh, batch)


class RealFeatures:
    """Features of the reference, read once.

    Args:
        width: of a feature.
    """

    def __init__(self, reference: Reference, features: Features, width: int):
        self._reference, self._features = reference, features
        self._moments: Moments | None = None if reference.moments is None else reference.moments(width)
        self._all_BD: np.ndarray | None = None

    def moments(self, make: Callable[[Iterator[np.ndarray]], Moments]) -> Moments:
        """Gives mean and covariance, of the pictures or as the statistics file has them."""
        if self._moments is None:
            self._moments = make(self._read())
        return self._moments

    def check_pictures(self) -> None:
        """Raises UserError where the reference is a statistics file, which has no pictures."""
        if self._reference.images is None:
            raise UserError("this suite compares pictures one by one: a reference of statistics alone will not do.")

    def all(self) -> np.ndarray:
        """Gives the features of all pictures, float32 (B, D); `check_pictures` came before."""
        if self._all_BD is None:
            self._all_BD = np.concatenate(list(self._read()))
        return self._all_BD

    def _read(self) -> Iterator[np.ndarray]:
        assert self._reference.images is not None
        return self._features(self._reference.images())
