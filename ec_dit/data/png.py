"""The chunks of a PNG that decide what is seen, apart from those that only tell of it.

Pillow refuses a whole picture for a text or a profile that is long or damaged; what is told beside pixels is no part of them.
"""

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"tRNS", b"eXIf")  # beside the critical chunks
_ORIENTING = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # texts that may say which side is up
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_MAX_TEXT = 2**20  # bytes, unpacked; Pillow's own limit
_MAX_PROFILE = 2**24


def essence(data: bytes) -> tuple[bytes, bytes | None]:
    """Takes a PNG apart: (the PNG with only what decoding and turning it upright need, its ICC profile).

    Bytes of another kind, and what follows the first chunk that is cut, stay as they are. The profile is None where there is
    none, or a damaged one, or one of more than 16 MiB.
    """
    if not data.startswith(SIGNATURE):
        return data, None
    parts, start, profile = [], 0, None
    for kind, at, body in _chunks(data):
        end = at + 12 + len(body)
        if kind == b"iCCP":
            profile = profile or _profile(body)
        if not _is_kept(kind, body):
            parts.append(memoryview(data)[start:at])
            start = end
    if not parts:
        return data, profile
    return b"".join([*parts, memoryview(data)[start:]]), profile


def size(data: bytes) -> tuple[int, int]:
    """Reads width and height by the header of a PNG; (0, 0) where it is cut."""
    return struct.unpack(">II", data[16:24]) if len(data) >= 24 else (0, 0)


def layout(data: bytes) -> tuple[int, int]:
    """Reads (bits of a sample, kind of colour) by the header of a PNG: of kind 0 are greys, of 2 colours without a palette."""
    return data[24], data[25]


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, memoryview]]:
    """(name, place, content) of every whole chunk up to the last."""
    at, view = len(SIGNATURE), memoryview(data)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        if at + 12 + length > len(data):
            return
        yield kind, at, view[at + 8 : at + 8 + length]
        if kind == b"IEND":
            return
        at += 12 + length


def _is_kept(kind: bytes, body: memoryview) -> bool:
    if not kind[0] & 0x20 or kind in _KEPT:  # names of critical chunks begin with a capital letter
        return True
    if kind not in _TEXTS:
        return False
    key = next((key for key in _ORIENTING if bytes(body[: len(key)]) == key), None)
    if key is None:
        return False
    packed = kind == b"zTXt" or (kind == b"iTXt" and bytes(body[len(key) : len(key) + 1]) == b"\1")
    return not packed or _unpack(body[_packed_from(kind, bytes(body), len(key)) :], _MAX_TEXT) is not None


def _packed_from(kind: bytes, body: bytes, after_key: int) -> int:
    """Where the packed text of a chunk begins: after its method, of iTXt also after the names of its language."""
    if kind == b"zTXt":
        return after_key + 1
    language = body.find(b"\0", after_key + 2)
    return body.find(b"\0", language + 1) + 1


def _profile(body: memoryview) -> bytes | None:
    name = bytes(body[:80]).find(b"\0")
    return None if name < 0 else _unpack(body[name + 2 :], _MAX_PROFILE)


def _unpack(packed: memoryview, most: int) -> bytes | None:
    """What is packed, if it is sound and no more than `most` bytes."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(packed, most)
    except zlib.error:
        return None
    return found if stream.eof else None
