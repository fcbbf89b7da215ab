"""How the pictures begin that are read: their formats, told by the first bytes."""

import re

HEAD = 512  # bytes that are looked at
_FORMATS = {
    "JPEG": rb"\xff\xd8",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{4}\0{4}",
    "TIFF": rb"II\*\0|MM\0\*",
    "AVIF": rb".{4}ftyp(avi[fs]|m[is]f1.{4,64}avi[fs])",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "PNM": rb"P[1-6]\s+(\d|#)",
}
_PICTURE = re.compile(b"|".join(b"(?:%s)" % pattern for pattern in _FORMATS.values()), re.DOTALL)


def is_picture(head: bytes) -> bool:
    """Tells whether bytes begin as those pictures do that are read."""
    return _PICTURE.match(head) is not None
