"""GenEval's detector with transformers: Mask2Former trained on COCO's instances, fed and read as mmdet does it.

GenEval takes mmdet 2.27's weights of mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco. Those that transformers loads, such as
facebook/mask2former-swin-small-coco-instance, are of another training run: `name` says which gave a figure.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ec_dit.core import hub
from ec_dit.core.errors import UserError
from ec_dit.judges.detections import Detection
from ec_dit.layouts.geneval import CLASSES

_SHORTEST, _LONGEST = 800, 1333  # pixels of a picture as the network sees it
_MULTIPLE = 32
_PADDING = 128.0  # mmdet pads pictures with grey before it normalises them
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_MOST = 100  # candidates of a picture
# COCO's name -> GenEval's.
_RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}


class Mask2Former:
    """Finds objects of COCO's classes in pictures; see `judges.detections.Detector`.

    Args:
        path: of a folder that save_pretrained of Mask2FormerForUniversalSegmentation wrote, or a name on a hub. It computes on
            a GPU if PyTorch sees one.

    Raises:
        UserError: PyTorch or transformers are missing, or the folder holds another model, or not all of it.
    """

    def __init__(self, path: str | Path):
        self._torch, transformers = _libraries()
        folder = hub.folder_of(hub.local(path))
        self._labels = hub.described(folder, _labels)
        hub.TensorFiles(folder)  # which names what is wrong with the files
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        kind = transformers.Mask2FormerForUniversalSegmentation
        model, info = kind.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
        unread = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        if lacking := sorted(unread & {name for name, _ in model.named_parameters()}):
            raise UserError(
                f"{folder}: its weights are not those that its config.json describes: {hub.flag_names(lacking)} are missing or "
                f"of other shapes. {hub.AGAIN}"
            )
        self._model = model.eval().to(self._device)
        self.name = f"Mask2Former of {hub.pinned(path)}"
        self.classes: Sequence[str] = CLASSES

    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, list[Detection]]]:
        """Finds the candidates in pictures, uint8 (Y, X, 3), at most 100 in each; no two pictures share a batch."""
        with self._torch.inference_mode():
            return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> dict[str, list[Detection]]:
        rows, columns = _seen_size(image.shape[0], image.shape[1])
        resize = functools.partial(self._torch.nn.functional.interpolate, mode="bilinear", align_corners=False)
        pixels = self._torch.from_numpy(np.array(image.transpose(2, 0, 1)[None], np.float32)).to(self._device)
        # OpenCV, which mmdet resizes with, has no antialiasing either, and gives whole numbers.
        pixels = resize(pixels, size=(rows, columns)).round()
        padding = (0, -columns % _MULTIPLE, 0, -rows % _MULTIPLE)
        pixels = self._torch.nn.functional.pad(pixels, padding, value=_PADDING)
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        out = self._model(pixel_values=(pixels - mean) / std)
        logits = resize(out.masks_queries_logits, size=pixels.shape[2:])[..., :rows, :columns]
        return self._read(out.class_queries_logits[0], resize(logits, size=image.shape[:2])[0])

    def _read(self, class_logits: Any, mask_logits: Any) -> dict[str, list[Detection]]:
        """The candidates of a picture.

        Args:
            class_logits: (queries, classes + 1), the last being no object.
            mask_logits: (queries, Y, X) in the size of the picture.
        """
        scores = class_logits.softmax(-1)[:, :-1].flatten()
        best, indices = scores.topk(min(_MOST, len(scores)))
        inside = mask_logits > 0
        certain = (mask_logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        masks, means = inside.cpu().numpy(), certain.tolist()
        boxes = [_box(mask) for mask in masks]
        found: dict[str, list[Detection]] = {}
        for value, index in zip(best.tolist(), indices.tolist(), strict=True):
            query, label = divmod(index, len(self._labels))
            if (box := boxes[query]) is not None:  # mmdet gives an empty mask the score 0, with which it never counts
                found.setdefault(self._labels[label], []).append(Detection(box, value * means[query], masks[query]))
        return found


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"GenEval's detector needs PyTorch and transformers ({error}); run: pip install 'ec_dit[geneval]'"
        ) from error
    return torch, transformers


def _labels(found: Mapping[str, Any], where: str) -> list[str]:
    """GenEval's name for each output of the network that a config.json describes."""
    hub.supported(found, where, model_type="mask2former")
    names = hub.fields(found, where, id2label={})["id2label"]
    labels = [_RENAMED.get(names[key], names[key]) for key in sorted(names, key=int)]
    if sorted(labels) != sorted(CLASSES):
        strange = [label for label in labels if label not in CLASSES]
        raise UserError(
            f"{where}: the {len(labels)} labels are not COCO's {len(CLASSES)}"
            f"{f', {hub.flag_names(strange)} among them' if strange else ''}; take a model of COCO's instances, such as "
            "facebook/mask2former-swin-small-coco-instance."
        )
    return labels


def _seen_size(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a picture as the network sees it: enlarged or reduced as far as both bounds allow."""
    scale = min(_LONGEST / max(rows, columns), _SHORTEST / min(rows, columns))
    return int(rows * scale + 0.5), int(columns * scale + 0.5)


def _box(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """The box round a mask (Y, X), up to beyond its last column and row; None round nothing."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1.0, float(rows[-1]) + 1.0
