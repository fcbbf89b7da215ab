"""GenEval's namer of colours: CLIP's zero-shot choice between colours for each object, cut out of its picture.

The embeddings of a colour's sentences are averaged as clip_benchmark's zero_shot_classifier does it; the cut-out is that of
djghosh13/geneval, evaluation/evaluate_images.py. There CLIP is OpenAI's ViT-L/14.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ec_dit.judges.detections import Detection
from ec_dit.layouts.geneval import COLOURS

_SENTENCES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
_GREY = np.uint8(0x99)  # what stands in for pixels of other objects and of the ground
_LEAST_NORM = 1e-12


class ClipColours:
    """Names colours; see `judges.detections.Colours`.

    Args:
        embed_images: from pictures, uint8 (Y, X, 3) of any sizes, to CLIP's embeddings, float (N, D), of any length.
        embed_texts: from texts to the same.
        colours: to choose between.
    """

    def __init__(
        self,
        embed_images: Callable[[list[np.ndarray]], np.ndarray],
        embed_texts: Callable[[list[str]], np.ndarray],
        colours: Sequence[str] = COLOURS,
    ):
        self._embed_images, self._embed_texts = embed_images, embed_texts
        self._colours = tuple(colours)
        self._directions: dict[str, np.ndarray] = {}  # by class: (colours, D)

    def __call__(self, image: np.ndarray, detections: Sequence[Detection], class_name: str) -> list[str]:
        """Names the colour of each object."""
        if not detections:
            return []
        embedded = _normalised(self._embed_images([cut_out(image, detection) for detection in detections]))
        best = (embedded @ self._directions_of(class_name).T).argmax(axis=1)
        return [self._colours[index] for index in best]

    def _directions_of(self, class_name: str) -> np.ndarray:
        if class_name not in self._directions:
            texts = [text.format(colour=colour, name=class_name) for colour in self._colours for text in _SENTENCES]
            embedded = _normalised(self._embed_texts(texts))
            means = embedded.reshape(len(self._colours), len(_SENTENCES), -1).mean(axis=1)
            self._directions[class_name] = _normalised(means)
        return self._directions[class_name]


def cut_out(image: np.ndarray, detection: Detection) -> np.ndarray:
    """Cuts the box of an object out of a picture, uint8 (Y, X, 3); where it has a mask, pixels outside are grey."""
    if detection.mask is not None:
        image = np.where(detection.mask[..., None], image, _GREY)
    return np.asarray(Image.fromarray(image).crop(detection.box))


def _normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _LEAST_NORM)
