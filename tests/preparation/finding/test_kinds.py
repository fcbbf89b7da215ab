"""What files are by their first bytes, as the libraries that write them make them."""

import base64
import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ec_dit.preparation.finding import kinds
from ec_dit.preparation.finding.access import Unusable

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))


def saved(form):
    buffer = io.BytesIO()
    NOISE.save(buffer, form)
    return buffer.getvalue()


def written(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_pictures_that_are_read(form):
    data = saved(form)
    assert kinds.is_picture(data[: kinds.HEAD]) and kinds.name(data) is None
    assert kinds.picture(data) is data


def zipped(buffer):
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"x")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n", "a git-lfs pointer; run git lfs pull"),
        (b"\r\n <HTML lang=en>", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML text"),
        (b'<?xml version="1.0"?>\n<!-- drawn --><svg xmlns="x">', "an SVG drawing"),
        (gzip.compress(b"x"), "a gzip file"),
        (pa.compress(b"x" * 99, "zstd", asbytes=True), "a zstd file"),
        (bz2.compress(b"x"), "a bzip2 file"),
        (lzma.compress(b"x"), "an xz file"),
        (written(zipped), "a zip archive"),
        (tarfile.TarInfo("a").tobuf(), "a tar"),
        (written(lambda file: pq.write_table(pa.table({"a": [1]}), file)), "a parquet table"),
        (written(lambda file: np.save(file, np.zeros(3))), "an array of NumPy"),
        (json.dumps({"error": "x"}).encode(), "a JSON text"),
        (bytes(4096), "nothing but zeros"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture; convert it"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "a video"),
        (b"%PDF-1.7", "a PDF"),
        (b"plain words", None),
        (b"\xff\xd7\x00 no magic", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "bytes",  # those hold the time of day
)
def test_names_of_what_is_no_picture(data, name):
    found = kinds.name(data)
    assert found is None if name is None else found.startswith(name)
    if name is None:
        assert kinds.picture(data) is data  # for the decoder to refuse
    else:
        with pytest.raises(Unusable, match=f"not a readable picture: {name}"):
            kinds.picture(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_base64_texts_of_pictures(form):
    data = saved(form)
    text = base64.b64encode(data)
    for written_so in (
        text,
        b"data:image/png;base64," + text,
        base64.urlsafe_b64encode(data),
        base64.encodebytes(data),
        text.rstrip(b"="),
    ):
        assert kinds.picture(written_so) == kinds.from_base64(written_so) == data
    for other in (base64.b64encode(b"no picture" * 99), text[:99] + b"!", b"images/0001.jpg", b"", b"a" * 100):
        assert kinds.from_base64(other) is None
    for other in (text * 9 + b"!", text[:200] + b"=" + text * 9):
        with pytest.raises(Unusable, match="damaged base64"):
            kinds.picture(other)


def test_urls_are_told_apart():
    with pytest.raises(Unusable, match=r"^a URL and no picture: 'https://a.b/c.jpg'; .*img2dataset"):
        kinds.picture(b"https://a.b/c.jpg\n")
