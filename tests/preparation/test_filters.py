import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ec_dit.core.errors import UserError
from ec_dit.data.records import VALIDATION, Record
from ec_dit.preparation import filters as filters_lib
from ec_dit.preparation.filters import Filters, Picture, Seen, fingerprint, look
from ec_dit.preparation.source import Skipped


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def blank(width=20, height=20, **options):
    return encoded(Image.new("RGB", (width, height), "red"), **options)


def record(image=None, captions=("a cat",), **fields):
    return Record("one", blank() if image is None else image, captions, **fields)


def reason(found, asked=True):
    """The reason of a skipped example, once all else about it is as it should be."""
    assert isinstance(found, Skipped)
    assert (found.id, found.asked) == ("one", asked)
    return found.reason


def scene(seed, width=240, height=180):
    """Soft light with a few sharp things in it: each seed another picture."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(40, 216, (4, 5, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(soft)
    for _ in range(5):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(10, 50)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return soft


def bits_between(a, b):
    return sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(fingerprint(a), fingerprint(b), strict=True))


def test_what_passes_is_handed_on_decoded():
    whole = record(weights=(3.0,), split=VALIDATION, flip=True, meta={"a": 1})
    picture = look(whole, Filters())
    assert isinstance(picture, Picture)
    assert picture.record is whole
    assert picture.image.size == (20, 20) and picture.image.getpixel((0, 0)) == (255, 0, 0)
    assert picture.fingerprint is None
    marked = look(whole, Filters(duplicate_bits=0))
    np.testing.assert_array_equal(marked.fingerprint, fingerprint(picture.image))


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ("x>=5", 5, True),
        ("x>=5", 4.9, False),
        ("x <= 5", "5.0", True),  # Numbers that are stored as text.
        ("x>5", 5, False),
        ("x<0.5", "0.49", True),
        (" x > -1e-3 ", 0, True),
        ("x==5", 5.0, True),
        ("x==5", "5.00", True),
        ("x!=5", 5, False),
        ("x==en", "en", True),
        ("x==en", "de", False),
        ("x==en", "EN", False),
        ("x==en", 3, False),
        ("x!=en", 3, True),
        ("x!=de", "en", True),
        ("x!=de", "de", False),
        ("x==a b=c", "a b=c", True),
        ("x==true", True, True),
        ("x!=true", True, False),
        ("x==false", False, True),
        ("x==True", True, True),  # As Python and its users write them.
        ("x==FALSE", True, False),
        ("x!=True", False, True),
        ("x==True", "true", False),  # Texts are compared as they are.
    ],
)
def test_conditions(condition, value, holds):
    found = look(record(meta={"x": value}), Filters(keep=(condition,)))
    if holds:
        assert isinstance(found, Picture)
    else:
        assert reason(found) == f"not {condition.strip()}: {value}"


@pytest.mark.parametrize("value", [None, [5], {"a": 5}, True, "high", float("nan"), "nan"])
def test_a_value_of_another_kind_is_as_good_as_none(value):
    keep = Filters(keep=("x>=1",))
    assert reason(look(record(meta={"x": value}), keep)) == "no column x: what it has cannot be compared"
    assert reason(look(record(meta={"xx": 5, "y": 5}), keep)) == "no column x: it has xx, y (did you mean xx?)"


def test_an_absent_column_meets_no_condition():
    for condition in ("lang!=de", "lang==de", "lang!=5"):
        keep = Filters(keep=(condition,))
        assert reason(look(record(), keep)) == "no column lang: nothing is known of it"
        assert reason(look(record(meta={"lang": None}), keep)) == "no column lang: what it has cannot be compared"


def test_all_conditions_must_hold():
    keep = Filters(keep=("aesthetic score>=5", "lang==en"))
    assert isinstance(look(record(meta={"aesthetic score": 6, "lang": "en"}), keep), Picture)
    assert reason(look(record(meta={"aesthetic score": 6, "lang": "de"}), keep)) == "not lang==en: de"
    assert reason(look(record(meta={"aesthetic score": 4, "lang": "de"}), keep)) == "not aesthetic score>=5: 4"


def test_conditions_come_before_captions_and_both_before_the_image():
    broken = record(b"no image", ("",), meta={"x": 1})
    assert reason(look(broken, Filters(keep=("x>1",)))) == "not x>1: 1"
    assert reason(look(broken, Filters(keep=("x==1",))), asked=False) == "empty caption"
    assert reason(look(record(b"no image"), Filters(min_caption=6))) == "caption too short: 5 characters"
    assert reason(look(record(b"no image"), Filters()), asked=False) == "not a picture"


def test_captions_are_dropped_with_their_weights():
    captions = ("a", "just right", " ", "far too long a text", "fits")
    limits = Filters(min_caption=2, max_caption=10)
    kept = look(record(captions=captions, weights=(1, 2, 3, 4, 5), meta={"x": 1}), limits).record
    assert kept == record(captions=("just right", "fits"), weights=(2, 5), meta={"x": 1})
    assert look(record(captions=captions), limits).record.weights == ()


def test_captions_left_without_any_weight_count_alike():
    kept = look(record(captions=("a", "bb", "cc"), weights=(1.0, 0.0, 0.0)), Filters(min_caption=2)).record
    assert kept.captions == ("bb", "cc") and kept.weights == ()


def test_no_caption_left():
    assert reason(look(record(captions=("x" * 812,)), Filters(max_caption=811))) == "caption too long: 812 characters"
    assert reason(look(record(captions=("x", "y" * 9)), Filters(min_caption=2, max_caption=8))) == (
        "caption too short: 1 character"
    )
    for captions in ((), ("",), (" \n", "")):
        assert reason(look(record(captions=captions), Filters()), asked=False) == "empty caption"
    assert isinstance(look(record(captions=("x" * 8,)), Filters(min_caption=8, max_caption=8)), Picture)


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((12, 40), {}, "tiny: 12x40, shorter side under 16"),
        ((1, 1), {"min_size": 2}, "tiny: 1x1, shorter side under 2"),
        ((1, 1), {"min_size": 1}, None),
        ((16, 16), {}, None),
        ((100, 20), {"max_aspect": 5.0}, None),
        ((101, 20), {"max_aspect": 5.0}, "long: 101x20, longer side over 5 times the shorter"),
        ((20, 51), {"max_aspect": 2.5}, "long: 20x51, longer side over 2.5 times the shorter"),
        ((20, 20), {"max_aspect": 1}, None),
    ],
)
def test_sizes(size, limits, expected):
    found = look(record(blank(*size)), Filters(**limits))
    if expected is None:
        assert found.image.size == size
    else:
        assert reason(found) == expected


def test_a_lower_limit_of_pixels_is_a_filter():
    assert reason(look(record(blank(40, 30)), Filters(max_pixels=1199))) == "huge: 40x30 is more than 1,199 pixels"
    assert isinstance(look(record(blank(40, 30)), Filters(max_pixels=1200)), Picture)


def test_huge_and_damaged_images_are_no_choice_of_the_user():
    huge = record(encoded(Image.new("1", (8001, 8000))))
    default = "huge: 8001x8000 is more than 64,000,000 pixels"
    assert reason(look(huge, Filters()), asked=False) == default
    assert reason(look(huge, Filters(max_pixels=63_999_999)), asked=True).startswith("huge: ")
    assert reason(look(huge, Filters(max_pixels=64_000_001)), asked=False).startswith("huge: ")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    cut = encoded(noise)[:2000]
    assert reason(look(record(cut), Filters()), asked=False).startswith("damaged image: ")


def test_sizes_are_those_of_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # Shown turned by 90 degrees.
    turned = record(blank(90, 30, exif=exif))
    assert look(turned, Filters()).image.size == (30, 90)
    assert reason(look(turned, Filters(max_aspect=2))) == "long: 30x90, longer side over 2 times the shorter"
    assert reason(look(turned, Filters(min_size=31))) == "tiny: 30x90, shorter side under 31"


def test_the_split_goes_with_what_is_skipped():
    for fields, limits in (
        ({}, {"keep": ("x>1",)}),
        ({"captions": ("",)}, {}),
        ({"captions": ("a",)}, {"min_caption": 2}),
        ({"image": b""}, {}),
        ({}, {"min_size": 30}),
    ):
        assert look(record(**fields, split=VALIDATION), Filters(**limits)).split == VALIDATION
    seen, twin = Seen(Filters(duplicate_bits=0)), look(record(split=VALIDATION), Filters(duplicate_bits=0))
    assert seen.first(twin) is twin
    assert seen.first(twin).split == VALIDATION


def test_threads_see_what_one_sees():
    chosen = Filters(min_caption=2, keep=("x>=3",), duplicate_bits=4)
    records = [
        Record(str(i), encoded(scene(i, 40, 40)), ("a", "b" * (i % 4)), meta={"x": i % 7}, weights=(1, 2))
        for i in range(60)
    ]
    alone = [look(each, chosen) for each in records]
    filters_lib._condition.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: look(each, chosen), records))
    assert 10 < sum(isinstance(found, Picture) for found in alone) < 50
    for one, other in zip(alone, together, strict=True):
        if isinstance(one, Skipped):
            assert one == other
        else:
            assert one.record == other.record
            np.testing.assert_array_equal(one.fingerprint, other.fingerprint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_size": 0}, "min_size is 0; it must be at least 1"),
        ({"max_pixels": 0}, "max_pixels is 0; it must be at least 1"),
        ({"max_pixels": 89_478_486}, "max_pixels is 89478486; it must be at most 89478485, Pillow's limit"),
        ({"max_aspect": 0.99}, "max_aspect is 0.99; it must be at least 1"),
        ({"max_aspect": float("nan")}, "max_aspect is nan; it must be at least 1"),
        ({"max_aspect": float("inf")}, "max_aspect is inf; it must be at least 1, and finite"),
        ({"min_size": float("nan")}, "min_size is nan; it must be at least 1"),
        ({"min_caption": 0}, "min_caption is 0; it must be at least 1"),
        ({"max_caption": 0}, r"max_caption is 0; it must be at least 1 \(min_caption\)"),
        ({"min_caption": 9, "max_caption": 8}, r"max_caption is 8; it must be at least 9 \(min_caption\)"),
        ({"duplicate_bits": -1}, "duplicate_bits is -1; it must be at least 0"),
        ({"keep": ("a>=1", "a=5")}, "keep has 'a=5', which is no condition; .* such as aesthetic>=5 or lang==en"),
        ({"keep": ("",)}, "keep has '', which is no condition"),
        ({"keep": (">=5",)}, "keep has '>=5', which is no condition"),
        ({"keep": ("lang==",)}, "keep has 'lang==', which is no condition"),
        ({"keep": ("a=>5",)}, "keep has 'a=>5', which is no condition"),
        ({"keep": ("a>=b",)}, "keep has 'a>=b'; >= compares numbers, such as aesthetic>=5; texts take == or !="),
        ({"keep": ("a<nan",)}, "keep has 'a<nan'; < compares numbers"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        Filters(**options)


def test_the_limit_of_pillow_is_allowed():
    assert Filters(max_pixels=89_478_485).max_pixels == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("seed", range(8))
def test_fingerprints_stay_with_a_picture(seed):
    whole = scene(seed)
    jpeg = Image.open(io.BytesIO(encoded(whole, "JPEG", quality=60)))
    half = whole.resize((120, 90), Image.Resampling.BICUBIC)
    assert bits_between(whole, whole) == 0
    assert bits_between(whole, jpeg) <= 4
    assert bits_between(whole, half) <= 4
    assert bits_between(whole, whole.crop((2, 2, 238, 178))) <= 8


def test_fingerprints_tell_pictures_apart():
    scenes = [scene(seed) for seed in range(20)]
    assert min(bits_between(a, b) for i, a in enumerate(scenes) for b in scenes[:i]) > 15


def test_fingerprints_see_colour():
    def hand(skin):
        picture = Image.new("RGB", (128, 128), "white")
        ImageDraw.Draw(picture).rounded_rectangle((40, 20, 90, 110), 20, fill=skin)
        return picture

    tones = [hand(skin) for skin in ("#fadcbc", "#e0bb95", "#bf8f68", "#9b643d", "#594539")]
    assert min(bits_between(a, b) for i, a in enumerate(tones) for b in tones[:i]) > 6
    red, green = hand((200, 0, 0)), hand((0, 102, 0))  # Of one luma: 0.299 * 200 = 0.587 * 102.
    assert abs(red.convert("L").getpixel((64, 64)) - green.convert("L").getpixel((64, 64))) <= 1
    assert bits_between(red, green) > 6


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2), (5000, 1), (8, 8)])
def test_fingerprints_of_any_size(size):
    mark = fingerprint(Image.new("RGB", size, (10, 200, 30)))
    assert (mark.shape, mark.dtype) == ((4,), np.uint64)
    np.testing.assert_array_equal(mark, fingerprint(Image.new("RGB", (64, 64), (10, 200, 30))))


def test_duplicates_name_the_earlier_one():
    chosen = Filters(duplicate_bits=4)
    first, other = scene(1), scene(2)
    shard = [
        ("a", encoded(first)),
        ("b", encoded(other)),
        ("c", encoded(first, "JPEG", quality=60)),
        ("d", encoded(scene(3))),
        ("e", encoded(other.resize((120, 90), Image.Resampling.BICUBIC))),
    ]
    seen = Seen(chosen)
    found = [seen.first(look(Record(name, image, ("x",)), chosen)) for name, image in shard]
    assert [each.record.id for each in found if isinstance(each, Picture)] == ["a", "b", "d"]
    assert found[2] == Skipped("c", "duplicate: of a", asked=True)
    assert found[4] == Skipped("e", "duplicate: of b", asked=True)


def marked(name, *words):
    return Picture(Record(name, b"", ("x",)), Image.new("RGB", (8, 8)), np.array(words, np.uint64))


def test_bits_are_counted_over_the_whole_fingerprint():
    seen = Seen(Filters(duplicate_bits=3))
    assert isinstance(seen.first(marked("a", 0, 0, 0, 0)), Picture)
    assert isinstance(seen.first(marked("b", 1, 1, 1, 2**63)), Picture)  # Four bits.
    assert seen.first(marked("c", 1, 1, 1, 0)).reason == "duplicate: of b"  # One bit, where a has three.
    assert isinstance(seen.first(marked("d", 255, 0, 255, 0)), Picture)
    assert seen.first(marked("e", 1, 0, 0, 1)).reason == "duplicate: of a"


def test_what_is_left_out_is_not_compared_with():
    seen = Seen(Filters(duplicate_bits=1))
    assert isinstance(seen.first(marked("a", 0, 0, 0, 0)), Picture)
    assert seen.first(marked("b", 1, 0, 0, 0)).reason == "duplicate: of a"
    assert isinstance(seen.first(marked("c", 3, 0, 0, 0)), Picture)  # One bit from b, two from a.


def test_long_shards_are_remembered_whole():
    seen = Seen(Filters(duplicate_bits=0))
    for i in range(1000):
        assert isinstance(seen.first(marked(f"n{i}", i, 0, 0, 2**64 - 1 - i)), Picture)
    for i in (0, 255, 256, 511, 512, 999):
        assert seen.first(marked("late", i, 0, 0, 2**64 - 1 - i)).reason == f"duplicate: of n{i}"


def test_without_the_filter_all_are_kept():
    seen = Seen(Filters())
    picture = look(record(), Filters())
    assert seen.first(picture) is picture and seen.first(picture) is picture
