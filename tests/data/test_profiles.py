"""Colours of pictures with a profile, against NumPy's arithmetic on profiles written by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from ec_dit.data import images
from ec_dit.data.records import Record
from ec_dit.preparation import filters
from tests.data import icc

P3, ADOBE = icc.rgb_profile("p3", 2.2), icc.rgb_profile("adobe", 2.2)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def colours(count=40):
    """(1, count, 3) uint8: noise, and the corners of the cube."""
    noise = np.random.default_rng(0).integers(0, 256, (1, count - 8, 3))
    return np.concatenate([noise, 255 * np.array([list(np.ndindex(2, 2, 2))])], 1).astype(np.uint8)


def assert_near(found, expected, atol=1.6):
    """Within what bytes, and the library's own fixed point, round."""
    np.testing.assert_allclose(np.asarray(found, float), expected, atol=atol)


@pytest.mark.parametrize("name", ["p3", "adobe"])
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_another_space_comes_out_in_its_true_colours(name, form):
    given, options = colours(), {"lossless": True} if form == "WEBP" else {}
    data = encoded(Image.fromarray(given), form, icc_profile=icc.rgb_profile(name, 2.2), **options)
    found = np.asarray(images.decode(data))
    assert_near(found, icc.from_rgb(given, name, round(2.2 * 256) / 256))
    assert np.abs(found.astype(int) - given).max() > 20  # what they were taken for


def test_photos_and_their_small_copies_too():
    """A JPEG as phones write it: kept as it is, shrunk, cropped to be encoded, and its copies decoded once more."""
    given = np.array([234, 51, 35], np.uint8)  # of P3, about sRGB's red
    picture, expected = Image.new("RGB", (64, 48), tuple(map(int, given))), icc.from_rgb(given, "p3", 2.2)
    for form in ("JPEG", "PNG"):
        data = encoded(picture, form, icc_profile=P3)
        looked = filters.look(Record("a", data, ("a caption",)), filters.DEFAULT)
        assert_near(images.fit(looked.image, (8, 8)), np.broadcast_to(expected, (8, 8, 3)), atol=3)
        for size in (16, 100):  # shrunk, or the same bytes
            again = images.decode(images.shrink(looked.image, data, size))
            assert_near(np.asarray(again)[0, 0], expected, atol=3)


def test_the_profile_of_srgb_changes_no_bit():
    given = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), None):
        np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(given), icc_profile=profile)), given)


def test_greys_with_a_profile():
    given = np.arange(256, dtype=np.uint8)[None]
    light = (given / 255.0)[..., None].repeat(3, -1)
    for mode in ("L", "LA"):
        picture = Image.fromarray(given).convert(mode)
        assert_near(images.decode(encoded(picture, icc_profile=icc.grey_profile(1.0))), icc.srgb_bytes(light))
        # Of a display: greys are its greys.
        bright = icc.rgb_profile("p3", 1.5)
        assert_near(images.decode(encoded(picture, icc_profile=bright)), icc.srgb_bytes(light**1.5))
    deep = Image.fromarray(given.astype(np.uint16) * 257)
    assert_near(images.decode(encoded(deep, icc_profile=icc.grey_profile(1.0))), icc.srgb_bytes(light))


def test_palettes_and_transparency_with_a_profile():
    given = colours(16)
    palette = Image.new("P", (16, 1))
    palette.putpalette(given.ravel().tolist())
    palette.putdata(range(16))
    expected = icc.from_rgb(given, "p3", 2.2)
    assert_near(images.decode(encoded(palette, icc_profile=P3)), expected)
    alpha = np.linspace(0, 255, 16).round().astype(np.uint8)
    rgba = Image.fromarray(np.concatenate([given, alpha[None, :, None]], -1))
    share = alpha[None, :, None] / 255
    for picture, options in ((rgba, {}), (palette, {"transparency": alpha.tobytes()})):
        found = images.decode(encoded(picture, icc_profile=P3, **options))
        assert_near(found, share * expected + (1 - share) * 255, atol=2.1)


def test_inks_with_a_profile():
    """A press whose cyan is this cyan, not the cyan of a screen."""

    def lab_of(c, m, y, k):
        return (0, 0, 0) if k else (100 - 40 * c - 45 * m - 10 * y, 12 * (5 * m - 3 * c), 14 * (6 * y - 3 * c))

    profile = icc.cmyk_profile(lab_of)
    for inks in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (1, 1, 0, 0), (0, 0, 0, 1)):
        picture = Image.new("CMYK", (16, 16), tuple(255 * ink for ink in inks))
        found = np.asarray(images.decode(encoded(picture, "JPEG", icc_profile=profile, quality=100)))[8, 8]
        assert_near(found, icc.from_lab(lab_of(*inks)), atol=3)


def damaged():
    flipped = bytearray(P3)
    flipped[36] ^= 255  # its signature
    return {
        "cut": P3[:100],
        "flipped": bytes(flipped),
        "noise": np.random.default_rng(0).bytes(500),
        "empty": b"",
        "inks": icc.cmyk_profile(lambda *_: (50, 0, 0)),
    }


@pytest.mark.parametrize("kind", damaged())
def test_a_profile_that_is_broken_or_of_something_else_loses_no_picture(kind):
    given = colours()
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(Image.fromarray(given), form, icc_profile=damaged()[kind], **options)
        np.testing.assert_array_equal(images.decode(data), given)
    assert images.decode(encoded(Image.fromarray(given), "JPEG", icc_profile=damaged()[kind])).size == (40, 1)


def chunk(kind, body, crc=None):
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def with_chunk(data, *chunks):
    """A PNG with chunks after its header."""
    return data[:33] + b"".join(chunks) + data[33:]


def test_long_or_broken_metadata_is_no_damage():
    given = colours()
    whole = encoded(Image.fromarray(given))
    megabytes = zlib.compress(bytes(5 * 2**20))
    for added in (
        chunk(b"zTXt", b"Comment\0\0" + megabytes),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + megabytes),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + megabytes),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + megabytes),
        chunk(b"tEXt", b"Comment\0" + bytes(2**20)) * 70,  # more than 64 MiB of texts
        chunk(b"zTXt", b"Comment\0\0" + b"no zlib"),
        chunk(b"iCCP", b"profile\0\0" + b"no zlib"),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(P3), crc=0),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**25))),  # a bomb
        chunk(b"pHYs", b"cut"),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff"),
        chunk(b"acTL", bytes(8)),
    ):
        found = np.asarray(images.decode(with_chunk(whole, added)))
        if added[4:8] != b"iCCP":
            np.testing.assert_array_equal(found, given, err_msg=str(added[:60]))
        assert found.shape == given.shape
    after = whole[:-12] + chunk(b"zTXt", b"Comment\0\0" + megabytes) + whole[-12:]
    np.testing.assert_array_equal(images.decode(after), given)


def test_a_long_profile_is_applied():
    given = colours()
    long = P3 + bytes(3 * 2**20)
    data = with_chunk(encoded(Image.fromarray(given)), chunk(b"iCCP", b"profile\0\0" + zlib.compress(long)))
    assert_near(images.decode(data), icc.from_rgb(given, "p3", 2.2))


@pytest.mark.parametrize("packed", [False, True])
def test_texts_that_tell_which_side_is_up_are_read(packed):
    """As ImageMagick and Adobe's programs write them."""
    picture = Image.new("RGB", (3, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    told = PngImagePlugin.PngInfo()
    told.add_text("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}\n", packed)
    assert images.decode(encoded(picture, pnginfo=told)).size == (1, 3)
    told = PngImagePlugin.PngInfo()
    told.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>', zip=packed)
    assert images.decode(encoded(picture, pnginfo=told)).size == (1, 3)
