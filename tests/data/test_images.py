import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from ec_dit.data import images


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixel(data, at=(0, 0)):
    return images.decode(data).getpixel(at)


def test_every_mode_becomes_rgb():
    half_red = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert pixel(encoded(half_red)) == (255, 127, 127)  # over white: 255 * (1 - 128 / 255)
    assert pixel(encoded(Image.new("LA", (2, 2), (0, 0)))) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(encoded(palette)) == (10, 20, 30)
    assert pixel(encoded(palette, transparency=1)) == (255, 255, 255)
    assert pixel(encoded(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    cyan = pixel(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG"))
    assert cyan[0] < 10 and min(cyan[1:]) > 245
    sixteen = np.full((2, 2), 0x8123, np.uint16)
    assert pixel(encoded(Image.fromarray(sixteen))) == (0x81, 0x81, 0x81)
    assert pixel(encoded(Image.new("RGB", (2, 2), (1, 2, 3)), "WEBP", lossless=True)) == (1, 2, 3)


def with_chunk(data, kind, body):
    """A PNG with one more chunk after its header."""
    return (
        data[:33] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) + data[33:]
    )


def raw_png(bits, kind, rows, clear):
    """A PNG of a few samples, packed by hand, with its transparent colour."""
    packed = []
    for row in rows:
        word = "".join(f"{sample:0{bits}b}" for sample in np.ravel(row))
        word += "0" * (-len(word) % 8)
        packed.append(b"\0" + int(word, 2).to_bytes(len(word) // 8, "big"))
    data = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, kind, 0, 0, 0)
    for name, body in (
        (b"IHDR", header),
        (b"tRNS", struct.pack(f">{len(clear)}H", *clear)),
        (b"IDAT", zlib.compress(b"".join(packed))),
        (b"IEND", b""),
    ):
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_the_one_that_the_file_names(bits):
    most = 2**bits - 1
    greys = np.unique([0, most // 3, most // 2, max(0, most - 1), most])
    for clear in greys:
        found = np.asarray(images.decode(raw_png(bits, 0, [greys], [clear])))[0]
        eight = greys >> 8 if bits == 16 else greys * 255 // most
        np.testing.assert_array_equal(found, np.where(greys == clear, 255, eight)[:, None].repeat(3, 1))


def test_of_16_bit_greys_only_that_one_is_transparent():
    greys = np.arange(0x8000, 0x8010)
    found = np.asarray(images.decode(raw_png(16, 0, [greys], [0x8003])))[0, :, 0]
    assert np.flatnonzero(found == 255).tolist() == [3]
    assert set(found) == {0x80, 255}


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_is_the_one_that_the_file_names(bits):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 2**bits, (3, 5, 3))
    colours[1] = colours[0]
    colours[1, :, 2] ^= 1  # one bit beside
    for clear in (colours[0, 2], colours[1, 4]):
        found = np.asarray(images.decode(raw_png(bits, 2, list(colours), clear)))
        expected = np.where((colours == clear).all(-1, keepdims=True), 255, colours >> (bits - 8))
        np.testing.assert_array_equal(found, expected)


def test_pillow_warns_of_nothing(recwarn, monkeypatch):
    """Whatever filters are set: its warnings name no file."""
    warnings.simplefilter("always")
    picture, palette = Image.new("RGB", (8, 8), "white"), Image.new("P", (2, 2))
    palette.putpalette([1, 2, 3] * 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    for data in (
        encoded(picture, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        encoded(picture, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\0\0\0\xff\xff\0\0"),
        encoded(palette, transparency=b"\x10\x80"),
        with_chunk(encoded(picture), b"acTL", bytes(8)),
        encoded(picture),  # of more than MAX_IMAGE_PIXELS
    ):
        with images.room_for(data):
            assert images.decode(data).mode == "RGB"
    assert not recwarn.list


def test_orientation_is_applied():
    image = Image.new("RGB", (2, 1), "black")
    image.putpixel((1, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # Shown turned 90 degrees clockwise: the right end comes to the bottom.
    turned = images.decode(encoded(image, exif=exif))
    assert turned.size == (1, 2)
    assert turned.getpixel((0, 1)) == (255, 255, 255) and turned.getpixel((0, 0)) == (0, 0, 0)


def test_damaged_exif_is_passed_over():
    data = encoded(Image.new("RGB", (8, 8), "white"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert images.decode(data).size == (8, 8)


def test_unusable_bytes_say_why():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(noise))
    jpeg = encoded(Image.fromarray(noise), "JPEG")
    for data, reason in (
        (b"", "not a picture"),
        (b"hello", "not a picture"),
        (encoded(Image.fromarray(noise), "ICO"), "not a picture"),
        (whole[:8], "damaged image: no more than its beginning is there"),
        (
            encoded(Image.fromarray(noise[..., 0] / np.float32(255)), "TIFF"),
            "pixels of floats: nobody tells which is white",
        ),
        (whole[: len(whole) // 2], "damaged image: .*"),
        (jpeg[: len(jpeg) // 2], "damaged image: .*"),
        (whole[:60] + b"\xff" * 40 + whole[100:], "damaged image: .*"),
    ):
        with pytest.raises(images.ImageError, match=f"^{reason}$"):
            images.decode(data)


@pytest.mark.parametrize(
    ("form", "kept_as", "error"),
    [
        ("BMP", "PNG", 0),
        ("TIFF", "PNG", 0),
        ("PPM", "PNG", 0),
        ("GIF", "PNG", 40),
        ("JPEG2000", "JPEG", 0),
        ("AVIF", "JPEG", 40),
    ],
)
def test_formats_that_a_data_set_does_not_hold(form, kept_as, error):
    rows, columns = np.mgrid[:40, :60]
    pixels = np.stack([rows * 4, columns * 4, rows + columns], -1).astype(np.uint8)
    data = encoded(Image.fromarray(pixels), form)
    image = images.decode(data)
    assert np.abs(np.asarray(image).astype(int) - pixels).max() <= error
    for size, side in ((None, 40), (40, 40), (20, 20)):
        stored = images.shrink(image, data, size)
        assert (Image.open(io.BytesIO(stored)).format, images.decode(stored).height) == (kept_as, side)
    if kept_as == "PNG":
        assert np.array_equal(images.decode(images.shrink(image, data, None)), image)


def test_the_first_frame_of_a_transparent_gif():
    frames = [Image.new("P", (8, 8), colour) for colour in (0, 1)]
    for frame in frames:
        frame.putpalette([255, 0, 0, 0, 0, 255])
    frames[0].putpixel((3, 3), 1)
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=1)
    assert (pixel(data), pixel(data, (3, 3))) == ((255, 0, 0), (255, 255, 255))


@pytest.mark.parametrize("side", [9_000, 10_000, 200_000])
def test_bombs_are_refused_before_they_are_unpacked(side):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(images.HugeImageError, match=r"^huge: "):
        images.decode(bomb)


def test_center_crop_takes_the_middle():
    image = Image.new("RGB", (12, 4), "black")
    image.paste((0, 0, 200), (4, 0, 8, 4))
    np.testing.assert_array_equal(images.center_crop(image, 4), np.full((4, 4, 3), (0, 0, 200)))
    assert images.center_crop(image, 2).shape == (2, 2, 3)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (64, 64), (301, 200), (1000, 37), (1600, 1200)])
@pytest.mark.parametrize("target", [1, 8, 64])
def test_center_crop_is_the_same_to_the_bit_as_ever(size, target):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image, shorter = Image.fromarray(noise), min(size)
    left, top = (size[0] - shorter) / 2, (size[1] - shorter) / 2
    box = (left, top, left + shorter, top + shorter)
    expected = image.resize((target, target), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    np.testing.assert_array_equal(images.center_crop(image, target), np.asarray(expected))


def test_fit_copies_what_fits_already():
    noise = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    np.testing.assert_array_equal(images.fit(Image.fromarray(noise), (6, 10)), noise)
    np.testing.assert_array_equal(images.fit(Image.fromarray(noise), (6, 4)), noise[:, 3:7])
    np.testing.assert_array_equal(images.fit(Image.fromarray(noise), (2, 10)), noise[2:4])


@pytest.mark.parametrize(
    ("size", "shape", "left", "right"),
    [
        ((200, 100), (50, 100), 0, 200),
        ((300, 100), (50, 100), 50, 250),
        ((100, 300), (50, 100), 0, 100),
        ((333, 100), (100, 200), 66.5, 266.5),
        ((640, 480), (192, 320), 0, 640),
        ((640, 480), (320, 192), 176, 464),
        ((1001, 700), (448, 640), 0.5, 1000.5),
    ],
)
def test_fit_takes_the_middle_undistorted(size, shape, left, right):
    """A picture whose red is the place from left to right, and whose green is that from top to bottom."""
    x, y = np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1])
    ramp = np.zeros((size[1], size[0], 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.round(x)[None], np.round(y)[:, None]
    found = images.fit(Image.fromarray(ramp), shape).astype(float)
    assert found.shape == (*shape, 3)
    scale = (right - left) / shape[1]  # One scale for both axes is what undistorted means.
    top = (size[1] - scale * shape[0]) / 2
    assert top >= -1e-9
    columns = (left + scale * (np.arange(shape[1]) + 0.5) - 0.5) * 255 / (size[0] - 1)
    rows = (top + scale * (np.arange(shape[0]) + 0.5) - 0.5) * 255 / (size[1] - 1)
    pixel = 255 / (min(size) - 1)
    np.testing.assert_allclose(found[..., 0], np.broadcast_to(columns, shape), atol=1 + pixel)
    np.testing.assert_allclose(found[..., 1], np.broadcast_to(rows[:, None], shape), atol=1 + pixel)


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (2, 3), (3999, 17)])
@pytest.mark.parametrize("shape", [(1, 1), (8, 4), (4, 8), (40, 1), (7, 13)])
def test_fit_takes_any_picture(size, shape):
    found = images.fit(Image.new("RGB", size, (1, 2, 3)), shape)
    np.testing.assert_array_equal(found, np.full((*shape, 3), (1, 2, 3)))


def test_shrink_keeps_the_bytes_of_small_pictures():
    for form in ("PNG", "JPEG", "WEBP"):
        data = encoded(Image.new("RGB", (40, 20), "red"), form)
        assert images.shrink(images.decode(data), data, 20) is data
        assert images.shrink(images.decode(data), data, 21) is data


@pytest.mark.parametrize(("form", "becomes"), [("PNG", "PNG"), ("JPEG", "JPEG"), ("WEBP", "JPEG")])
def test_shrink_keeps_png_lossless(form, becomes):
    data = encoded(Image.new("RGB", (40, 20), (200, 100, 50)), form)
    small = images.shrink(images.decode(data), data, 10)
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size) == (becomes, (20, 10))
    np.testing.assert_allclose(pixel(small), (200, 100, 50), atol=0 if form == "PNG" else 4)


def test_shrink_goes_by_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (40, 20), "red"), "JPEG", exif=exif)
    small = images.shrink(images.decode(data), data, 10)
    assert images.decode(small).size == (10, 20)


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = images.center_crop(Image.fromarray(stripes), 8).astype(int)
    assert np.abs(small - 127).max() < 20  # Without a filter the stripes would alias to black or white.


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 20), (16, 8)), ((20, 40), (8, 16)), ((3, 2), (12, 8)), ((900, 9), (32, 8))]
)
def test_resize_shorter(size, expected):
    assert images.resize_shorter(Image.new("RGB", size), 8).size == expected


def test_random_crop_reaches_every_place():
    pixels = np.tile(np.arange(7, dtype=np.uint8)[None, :, None], (4, 1, 3))
    rng = np.random.default_rng(0)
    crops = [images.random_crop(pixels, 4, rng) for _ in range(100)]
    assert {crop.shape for crop in crops} == {(4, 4, 3)}
    assert {int(crop[0, 0, 0]) for crop in crops} == {0, 1, 2, 3}


def test_float_and_back():
    every = np.arange(256, dtype=np.uint8)
    values = images.to_float(every)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[[0, 51, 255]], [-1, -0.6, 1], atol=1e-6)
    np.testing.assert_array_equal(images.to_uint8(values), every)
    np.testing.assert_array_equal(images.to_uint8(np.array([-9.0, 9.0, np.nan])), [0, 255, 128])
