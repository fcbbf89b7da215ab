"""What a file is, told by its first bytes: names never decide whether something is read, and a report says what was found."""

import base64
import binascii
import json
import re
from typing import Any

from ec_dit.data.signatures import HEAD, is_picture
from ec_dit.preparation.finding.access import Unusable, a_url

_NAME = 255  # letters of the longest name of a file

# Endings that pictures have. What has another, or none, is looked into.
PICTURES = tuple(
    f".{name}"
    for name in (
        "png apng jpg jpeg jpe jfif webp gif bmp dib tif tiff avif avifs jp2 j2k jpx ppm pgm pbm pnm heic heif jxl".split()
    )
)
# Endings of what stands beside pictures, which need not be looked into.
OTHERS = tuple(
    f".{name}"
    for name in (
        "txt caption json jsonl csv tsv md html xml yaml yml toml log pdf svg npy npz pt pth pkl safetensors parquet arrow h5 db "
        "lock py tar gz tgz zst zip 7z rar xz bz2 mp4 webm mkv mov mp3 wav"
    ).split()
)

GZIP, ZSTD, _JSON, _EMPTY = "a gzip file", "a zstd file", "a JSON text", "an empty file"
_NAMED = {
    _EMPTY: rb"\Z",
    "a git-lfs pointer; run git lfs pull where it comes from": rb"version https://git-lfs\.github\.com/spec/",
    "an HTML page": rb"\s*<(!doctype html|html|head|body)\b",
    "an SVG drawing": rb"\s*<(\?xml.{0,400}<)?(!doctype )?svg\b",
    "an XML text": rb"\s*<\?xml\b",
    GZIP: rb"\x1f\x8b\x08",
    ZSTD: rb"\x28\xb5\x2f\xfd",
    "a tar": rb".{257}ustar",
    "a zip archive; unpack it": rb"PK(\x03\x04|\x05\x06)",
    "an xz file; unpack it": rb"\xfd7zXZ\0",
    "a bzip2 file; unpack it": rb"BZh[1-9]1AY&SY",
    "a 7z archive; unpack it": rb"7z\xbc\xaf\x27\x1c",
    "a RAR archive; unpack it": rb"Rar!\x1a\x07",
    "a parquet table": rb"PAR1",
    "an Arrow file": rb"ARROW1",
    "a PDF": rb"%PDF-",
    "a HEIC picture; convert it to JPEG": rb".{4}ftyp(hei[cxms]|hev[cx]|mif1|msf1)",
    "a JPEG XL picture; convert it to PNG": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "a video": rb".{4}ftyp|\x1a\x45\xdf\xa3|\0\0\x01\xba",
    "an array of NumPy": rb"\x93NUMPY",
    "an HDF5 file": rb"\x89HDF\r\n",
    "nothing but zeros": rb"\0{16,}\Z",
    _JSON: rb"\s*(\{\s*[\"}]|\[\s*[\[{\"\d\]])[\t\n\r -~\x80-\xff]*\Z",
}
_PATTERNS = {name: re.compile(pattern, re.DOTALL | re.IGNORECASE) for name, pattern in _NAMED.items()}
_BASE64 = re.compile(rb"(?:data:[\w/+.;=-]*;base64,)?([A-Za-z0-9+/_-]{32}[A-Za-z0-9+/_=\s-]*)\s*")
_URL = re.compile(rb"[a-z][a-z0-9+.-]{1,9}://[^\s\0-\x1f]+\s*", re.IGNORECASE)


def name(head: bytes) -> str | None:
    """Names the file that begins with these bytes, such as 'an HTML page'; None for a picture and for what is unknown."""
    head = head[:HEAD]
    if is_picture(head):
        return None
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.match(head)), None)


def no_text(head: bytes) -> str | None:
    """Names a file that should be a text or a table of lines; None where it may be one."""
    kind = name(head)
    return None if kind in (_JSON, _EMPTY) else kind


def parsed(text: bytes) -> Any:
    """Parses a JSON text. Unusable where it is damaged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        kind = name(text)
        shown = f"it begins with {text[:40]!r}" if kind in (None, _JSON) else kind
        raise Unusable(f"damaged json: {shown}") from None


def picture(data: bytes) -> bytes:
    """Gives the bytes of a picture, which come themselves or as base64 text.

    What is unknown passes, for the decoder to refuse.

    Raises:
        Unusable: it is a URL, or known to be something else.
    """
    if is_picture(data[:HEAD]):
        return data
    if (decoded := from_base64(data)) is not None:
        return decoded
    if len(data) < HEAD * 8 and _URL.fullmatch(data):
        raise a_url(data.decode(errors="replace"))
    if kind := name(data[:HEAD]):
        raise Unusable(f"not a readable picture: {kind}")
    return data


def from_base64(text: bytes) -> bytes | None:
    """Decodes the picture that a base64 text stands for; None where it is no such text, but may be a path.

    Raises:
        Unusable: it is too long for a path, and is damaged or stands for something else that is known.
    """
    head = _BASE64.match(text[:HEAD])
    if not head:
        return None
    no_path = len(text) > _NAME and head.end() == len(text[:HEAD])
    if is_picture(_decoded(head[1][:32]) or b""):
        whole = _BASE64.fullmatch(text)
        picture = _decoded(whole[1]) if whole else None
        if picture is None and no_path:
            raise Unusable(f"damaged base64: {len(text):,} letters that begin with {text[:16].decode()!r}")
        return picture
    letters = b"".join(head[1].split())
    first = _decoded(letters[: len(letters) // 4 * 4])
    if no_path and first and (kind := name(first)):
        raise Unusable(f"not a readable picture: {kind}")
    return None


def _decoded(text: bytes) -> bytes | None:
    text = b"".join(text.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return None
