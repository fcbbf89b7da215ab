"""GenEval's detector: from picture to detections as mmdet does it, spelled out in NumPy round the raw outputs of the network."""

import json
import shutil
import sys

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.judges import mask2former
from ec_dit.judges.mask2former import Mask2Former
from ec_dit.layouts.geneval import CLASSES
from tests.judges import detectors
from tests.judges.detectors import COCO

pytestmark = [pytest.mark.slow, pytest.mark.extra("conformance")]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(folder, model) of a tiny network with random weights, large enough that its masks and classes differ."""
    folder = tmp_path_factory.mktemp("mask2former") / "published"
    return folder, detectors.write_mask2former(folder)


@pytest.fixture(scope="module")
def detector(published):
    return Mask2Former(published[0])


def stretch(old, new):
    """(new, old) weights of bilinear interpolation between centres of pixels, with edges held."""
    weights = np.zeros((new, old))
    for i in range(new):
        place = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
        low = int(place)
        weights[i, low] += 1.0 - (place - low)
        weights[i, min(low + 1, old - 1)] += place - low
    return weights


def resized(maps, rows, columns):
    """Maps (..., Y, X) in another size."""
    return stretch(maps.shape[-2], rows) @ maps @ stretch(maps.shape[-1], columns).T


def plainly_seen(image, shortest, longest):
    """(3, Y, X) as the network sees a picture, and the rows and columns that are not padding."""
    height, width = image.shape[:2]
    scale = min(shortest / min(height, width), longest / max(height, width))
    rows, columns = int(height * scale + 0.5), int(width * scale + 0.5)
    pixels = np.full((3, (rows + 31) // 32 * 32, (columns + 31) // 32 * 32), 128.0)
    pixels[:, :rows, :columns] = np.rint(resized(image.transpose(2, 0, 1).astype(float), rows, columns))
    for channel, (mean, std) in enumerate(((123.675, 58.395), (116.28, 57.12), (103.53, 57.375))):
        pixels[channel] = (pixels[channel] - mean) / std
    return pixels, rows, columns


def plainly_read(out, seen, rows, columns, size):
    """{class: [(box, score, mask)]} of outputs of the network for a picture seen in the size `seen`, and all logits."""
    logits = resized(out.masks_queries_logits[0].double().numpy(), *seen)[:, :rows, :columns]
    logits = resized(logits, *size)
    powers = np.exp(out.class_queries_logits[0].double().numpy())
    shares = [(row[label] / row.sum(), query, label) for query, row in enumerate(powers) for label in range(80)]
    found = {}
    for share, query, label in sorted(shares, reverse=True)[:100]:
        mask = logits[query] > 0
        ys, xs = np.nonzero(mask)
        if len(ys):
            certain = np.mean(1 / (1 + np.exp(-logits[query][mask])))
            box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            found.setdefault(CLASSES[label], []).append((box, share * certain, mask))
    return found, logits


def picture(rows, columns):
    """Waves of other lengths in each channel, and noise."""
    rng = np.random.default_rng(rows)
    y, x = np.mgrid[:rows, :columns]
    waves = [np.sin(y / 7 + x / 11), np.sin(x / 5), np.cos(y / 13 - x / 17)]
    return np.clip(128 + 90 * np.stack(waves, -1) + rng.normal(0, 25, (rows, columns, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "size", [(97, 89), (61, 173), (307, 83), (400, 420), (200, 200)], ids=["small", "wide", "tall", "large", "as it is"]
)
def test_detections_are_those_of_the_raw_outputs(published, detector, monkeypatch, size):
    """With a quarter of mmdet's sizes, which `_seen_size` has tested whole."""
    calls = []

    def model(pixel_values):
        calls.append((pixel_values[0].numpy(), published[1](pixel_values=pixel_values)))
        return calls[0][1]

    monkeypatch.setattr(detector, "_model", model)
    monkeypatch.setattr(mask2former, "_SHORTEST", 200)
    monkeypatch.setattr(mask2former, "_LONGEST", 333)
    image = picture(*size)
    (found,) = detector([image])

    ((seen, out),) = calls
    pixels, rows, columns = plainly_seen(image, 200, 333)
    assert seen.shape == pixels.shape and all(side % 32 == 0 for side in seen.shape[1:])
    apart = np.abs(seen - pixels)
    assert apart.max() < 1.01 / 57 and (apart > 1e-5).mean() < 0.002  # halves may be rounded either way

    expected, logits = plainly_read(out, seen.shape[1:], rows, columns, size)
    sure = np.abs(logits).min(0) > 1e-4  # elsewhere float32 may put a pixel on either side
    assert sure.mean() > 0.99
    assert sum(map(len, found.values())) == 100
    assert {name: len(many) for name, many in found.items()} == {name: len(many) for name, many in expected.items()}
    for name, detections in found.items():
        ours = sorted(detections, key=lambda one: one.score)
        for one, (box, score, mask) in zip(ours, sorted(expected[name], key=lambda row: row[1]), strict=True):
            assert one.score == pytest.approx(score, rel=1e-5)
            assert one.mask.dtype == bool and one.mask.shape == size
            assert (one.mask == mask)[sure].all()
            assert one.box == box
    shares = {one.mask.mean() for many in found.values() for one in many}
    assert min(shares) < 0.9 and max(shares) > 0.1 and len(shares) > 2


def test_pictures_do_not_change_each_other(detector, monkeypatch):
    monkeypatch.setattr(mask2former, "_SHORTEST", 64)
    images = [picture(64, 96), picture(80, 64)]
    together, alone = detector(images), [detector([image])[0] for image in images]
    for many, single in zip(together, alone, strict=True):
        assert many.keys() == single.keys()
        assert [one.score for name in many for one in many[name]] == [
            one.score for name in single for one in single[name]
        ]
    assert detector([]) == []


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((512, 512), (800, 800)),
        ((1024, 1024), (800, 800)),
        ((480, 640), (800, 1067)),
        ((640, 427), (1199, 800)),
        ((1000, 3000), (444, 1333)),
        ((768, 1344), (762, 1333)),
        ((800, 1333), (800, 1333)),
    ],
)
def test_pictures_are_seen_in_the_sizes_of_mmdet(size, seen):
    assert mask2former._seen_size(*size) == seen


def test_boxes_end_beyond_the_last_pixel():
    mask = np.zeros((6, 8), bool)
    assert mask2former._box(mask) is None
    mask[2, 3] = mask[4, 5] = True
    assert mask2former._box(mask) == (3, 2, 6, 5)
    mask[:] = True
    assert mask2former._box(mask) == (0, 0, 8, 6)


def test_empty_masks_are_no_candidates(detector):
    """mmdet gives them the score 0."""
    import torch

    class_logits, mask_logits = torch.zeros(2, 81), torch.full((2, 4, 4), -1.0)
    class_logits[1, 3], mask_logits[1, 1:3, 1] = 9.0, 2.0
    found = detector._read(class_logits, mask_logits)
    assert {one.box for many in found.values() for one in many} == {(1, 1, 2, 3)}
    best = found[CLASSES[3]][0]
    assert best.score == pytest.approx(np.exp(9) / (np.exp(9) + 80) / (1 + np.exp(-2)), rel=1e-5)


def test_names_are_those_of_geneval_and_say_whose_weights_they_are(published, detector):
    assert tuple(detector.classes) == CLASSES
    assert detector.name == f"Mask2Former of {published[0]}"


def changed(published, tmp_path, **changes):
    """A copy of the folder with another config.json."""
    shutil.copytree(published[0], tmp_path / "copy")
    config = json.loads((published[0] / "config.json").read_text()) | changes
    (tmp_path / "copy/config.json").write_text(json.dumps(config))
    return tmp_path / "copy"


def test_labels_in_another_order_keep_their_names(published, detector, tmp_path, monkeypatch):
    monkeypatch.setattr(mask2former, "_SHORTEST", 64)
    names = {str(i): name for i, name in enumerate([*COCO[1:], COCO[0]])}
    image = picture(64, 64)
    (turned,) = Mask2Former(changed(published, tmp_path, id2label=names))([image])
    (straight,) = detector([image])
    assert {CLASSES[(CLASSES.index(name) + 1) % 80] for name in straight} == turned.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"id2label": {str(i): f"LABEL_{i}" for i in range(80)}},
            r"config.json: the 80 labels are not COCO's 80, LABEL_0, LA",
        ),
        (
            {"id2label": dict(enumerate([*COCO, "rug"]))},
            r"the 81 labels are not COCO's 80, rug among them; take a model of",
        ),
        ({"id2label": dict(enumerate(COCO[1:]))}, r"the 79 labels are not COCO's 80; take a model of"),
        ({"id2label": {"a": "person"}}, r"config.json.*invalid literal for int"),
        ({"model_type": "detr"}, r"model_type is 'detr'; supported: 'mask2former'"),
        (
            {"decoder_layers": 3},
            r"not those that its config.json describes: model.transformer_module.* and \d+ more are miss",
        ),
        (
            {"num_queries": 9},
            r"describes: model.transformer_module.queries_embedder.weight, .*_features.weight are missing or",
        ),
    ],
)
def test_other_models_are_refused(published, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        Mask2Former(changed(published, tmp_path, **changes))


def test_what_is_missing_is_named(published, tmp_path, monkeypatch):
    folder = changed(published, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no safetensors weights"):
        Mask2Former(folder)
    with pytest.raises(UserError, match=r"there is no file or folder .*absent"):
        Mask2Former(tmp_path / "absent")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs PyTorch and transformers .*; run: pip install 'ec_dit\[geneval\]'"):
        Mask2Former(published[0])
