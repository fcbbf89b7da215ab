"""Pictures as networks read them: equal to transformers' processors, clean-fid's resizing and torch's, pixel for pixel."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.encoders import pixels
from ec_dit.encoders.pixels import Processor
from tests.encoders.vision_folders import write_processor

SIDES = [(224, 224), (301, 301), (97, 300), (333, 120), (40, 31), (225, 512), (1, 9), (256, 257)]  # Y, X
DINO = {
    "image_processor_type": "BitImageProcessor",
    "feature_extractor_type": None,
    "size": {"shortest_edge": 256},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def noise(rows, columns, seed=0):
    """A picture of coarse and fine structure that reaches black and white."""
    rng = np.random.default_rng(seed)
    coarse_YXZ = np.asarray(
        Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((columns, rows), Image.Resampling.BICUBIC)
    )
    return (coarse_YXZ + rng.normal(0, 40, coarse_YXZ.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.extra("conformance")
@pytest.mark.parametrize("kind", ["CLIPImageProcessorPil", "BitImageProcessorPil"])
def test_processors_equal_transformers(kind, tmp_path):
    import transformers

    settings = {} if kind.startswith("CLIP") else {key: value for key, value in DINO.items() if value is not None}
    theirs = getattr(transformers, kind)(**settings)
    theirs.save_pretrained(tmp_path)
    ours = Processor.load(tmp_path)
    assert ours == (pixels.CLIP if kind.startswith("CLIP") else pixels.DINO)
    for sides in SIDES:
        image_YXZ = noise(*sides)
        (wanted_ZYX,) = theirs(Image.fromarray(image_YXZ), return_tensors="np")["pixel_values"]
        out_YXZ = ours(image_YXZ)
        assert (out_YXZ.shape, out_YXZ.dtype) == ((224, 224, 3), np.float32)
        np.testing.assert_array_equal(out_YXZ, wanted_ZYX.transpose(1, 2, 0))


@pytest.mark.slow
@pytest.mark.extra("conformance")
def test_other_settings_equal_transformers(tmp_path):
    import transformers

    settings = {
        "size": {"shortest_edge": 51},
        "crop_size": {"height": 40, "width": 40},
        "rescale_factor": 1 / 100,
        "image_mean": [0.1, 1, 0.3],
        "image_std": [0.7, 0.2, 2],
    }
    write_processor(tmp_path, **settings)
    theirs = transformers.CLIPImageProcessorPil(**settings)
    for sides in SIDES:
        (wanted_ZYX,) = theirs(Image.fromarray(noise(*sides)), return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(Processor.load(tmp_path)(noise(*sides)), wanted_ZYX.transpose(1, 2, 0))


def test_what_the_published_files_say(tmp_path):
    assert Processor.load(write_processor(tmp_path)) == pixels.CLIP
    assert Processor.load(write_processor(tmp_path, **DINO | {"feature_extractor_type": "CLIPFeatureExtractor"})) == (
        pixels.DINO
    )
    # OpenAI's files of 2022.
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    assert Processor.load(tmp_path) == replace(pixels.CLIP, shorter=336, crop=336)
    assert Processor.from_config({}, "a file") == pixels.CLIP


def test_a_folder_without_the_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert Processor.load(tmp_path, pixels.DINO) == pixels.DINO
    with pytest.raises(UserError, match=r"preprocessor_config.json is missing; download it"):
        Processor.load(tmp_path)
    write_processor(tmp_path)
    assert Processor.load(tmp_path / "model.safetensors", pixels.DINO) == pixels.CLIP
    with pytest.raises(UserError, match="there is no file or folder"):
        Processor.load(tmp_path / "elsewhere", pixels.DINO)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_processor_type": "ViTImageProcessor"},
            r"image_processor_type is 'ViTImageProcessor'; supported: 'CLIP",
        ),
        ({"resample": 2}, r"resample is 2; supported: 3"),
        ({"do_center_crop": False}, r"do_center_crop is False; supported: True"),
        ({"do_resize": False}, r"do_resize is False; supported: True"),
        ({"do_rescale": False}, r"do_rescale is False; supported: True"),
        ({"do_normalize": False}, r"do_normalize is False; supported: True"),
        ({"do_pad": True}, r"do_pad is True; supported: False, None"),
        ({"size": {"height": 224, "width": 224}}, r"size gives height, width; supported: shortest_edge"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, r"size gives shortest_edge, longest_edge; supported"),
        ({"size": {}}, r"size gives nothing; supported: shortest_edge"),
        ({"size": {"shortest_edge": "224"}}, r"size: shortest_edge is '224', not of the kind int"),
        ({"size": [224]}, r"size: shortest_edge is \[224\], not of the kind int"),
        ({"crop_size": {"height": 224, "width": 200}}, r"crop_size is .*; supported: squares"),
        ({"crop_size": 225}, r"crop_size is 225; supported: up to size, 224"),
        ({"crop_size": 0}, r"crop_size: height is 0, not above 0"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean is a list, not a list"),
        ({"image_mean": 0.5}, r"image_mean is 0.5, not a list"),
        ({"image_std": [0.5, 0, 0.5]}, r"image_std \(0.5, 0.0, 0.5\) or rescale_factor .* is not above 0"),
        ({"image_mean": [0, float("nan"), 0]}, r"not above 0|not finite"),
        ({"rescale_factor": -1}, r"is not above 0"),
        ({"rescale_factor": "1/255"}, r"rescale_factor is '1/255', not of the kind float"),
    ],
)
def test_what_is_not_supported_is_named(changes, message, tmp_path):
    write_processor(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as told:
        Processor.load(tmp_path)
    assert str(tmp_path / "preprocessor_config.json") in str(told.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"<html>"])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"preprocessor_config.json is damaged: .* Download it again"):
        Processor.load(tmp_path, pixels.CLIP)


def test_processing_by_hand():
    # Twice as wide as high: the middle is kept, on an even and on an odd side.
    image_YXZ = np.zeros((2, 4, 3), np.uint8)
    image_YXZ[:, 1:3] = (255, 0, 51)
    small = Processor(2, 2, (0.5, 0, 0.1), (0.5, 1, 0.1))
    np.testing.assert_allclose(small(image_YXZ), np.broadcast_to([1, 0, 1], (2, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(replace(small, crop=1)(image_YXZ), [[[1, 0, 1]]], rtol=1e-6)


@pytest.mark.parametrize("sides", SIDES)
def test_clean_resizing(sides):
    """Against Pillow's filter written as two matrices: Keys' kernel, a = -0.5, as wide as the pixels that it makes."""

    def matrix(side, size):
        stretch = max(side / size, 1)
        centre = (np.arange(size)[:, None] + 0.5) * side / size
        # Pillow rounds the support to whole pixels.
        low, high = ((centre + sign * 2 * stretch + 0.5).astype(int).clip(0, side) for sign in (-1, 1))
        places = np.arange(side)
        d = np.abs(places + 0.5 - centre) / stretch
        kernel = np.where(d < 1, 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * (d**3 - 5 * d**2 + 8 * d - 4)) * (d < 2)
        kernel *= (places >= low) & (places < high)
        return kernel / kernel.sum(axis=1, keepdims=True)

    image_YXZ, size = noise(*sides), 75
    rows, columns = (matrix(side, size) for side in sides)
    wanted_YXZ = np.moveaxis(rows @ np.moveaxis(image_YXZ, 2, 0).astype(float) @ columns.T, 0, 2)
    out_YXZ = pixels.clean(image_YXZ, size)
    assert (out_YXZ.shape, out_YXZ.dtype) == ((size, size, 3), np.float32)
    np.testing.assert_allclose(out_YXZ, wanted_YXZ.clip(0, 255), rtol=0, atol=1e-3)
    assert (out_YXZ % 1 > 0).mean() > 0.3 or sides == (1, 9)  # not rounded to bytes


def test_clean_resizing_clips():
    image_YXZ = np.zeros((8, 8, 3), np.uint8)
    image_YXZ[:, 4:] = 255
    out_YXZ = pixels.clean(image_YXZ, 16)
    assert (out_YXZ.min(), out_YXZ.max()) == (0, 255)


@pytest.mark.slow
@pytest.mark.extra("conformance")
@pytest.mark.parametrize("size", [299, 224, 64])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_bilinear_equals_torch(size, dtype):
    import torch

    for sides in [*SIDES, (512, 512), (size, size)]:
        image_YXZ = noise(*sides).astype(dtype)
        if dtype == np.float32:
            image_YXZ /= 255
        out_YXZ = pixels.bilinear(image_YXZ, size)
        assert (out_YXZ.shape, out_YXZ.dtype) == ((size, size, 3), np.float32)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            image = torch.from_numpy(image_YXZ.transpose(2, 0, 1)[None].copy()).float()
            image = image.contiguous(memory_format=memory_format)
            wanted = torch.nn.functional.interpolate(image, (size, size), mode="bilinear", align_corners=False)
            np.testing.assert_allclose(out_YXZ, wanted[0].numpy().transpose(1, 2, 0), rtol=1e-6, atol=1e-7)


def test_bilinear_by_hand():
    image_YXZ = np.array([0, 40, 80, 120], np.uint8).reshape(1, 4, 1) + np.array([0, 8], np.uint8).reshape(2, 1, 1)
    out_YXZ = pixels.bilinear(image_YXZ, 3)
    assert out_YXZ.shape == (3, 3, 1)
    wanted_YX = np.array([20 / 3, 60, 120 - 20 / 3]) + np.array([[0], [4], [8]])
    np.testing.assert_allclose(out_YXZ[..., 0], wanted_YX, rtol=1e-6)
