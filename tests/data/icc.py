"""ICC profiles written by hand, and what their colours are in sRGB by NumPy alone, in float64."""

import struct

import numpy as np

D50 = np.array([0.96422, 1.0, 0.82521])
D65_XY = (0.3127, 0.3290)
PRIMARIES = {  # x, y of red, green, blue
    "srgb": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    "p3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "adobe": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _xyz(xy):
    return np.array([xy[0] / xy[1], 1, (1 - xy[0] - xy[1]) / xy[1]])


def matrix(name):
    """Linear RGB to XYZ with the white of D50, adapted by Bradford's cones."""
    columns = np.stack([_xyz(xy) for xy in PRIMARIES[name]], 1)
    to_xyz = columns * np.linalg.solve(columns, _xyz(D65_XY))
    cones = (_BRADFORD @ D50) / (_BRADFORD @ _xyz(D65_XY))
    return np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD @ to_xyz


def srgb_bytes(linear):
    """Light in 0..1 as sRGB writes it, in 0..255, not rounded."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def from_xyz(xyz):
    """Colours (..., 3) of XYZ, seen in D50's light, in sRGB's bytes, not rounded."""
    return srgb_bytes(xyz @ np.linalg.inv(matrix("srgb")).T)


def from_rgb(colours, name, gamma):
    """Bytes (..., 3) of a space of those primaries and that exponent in sRGB's bytes, not rounded."""
    return from_xyz((np.asarray(colours) / 255) ** gamma @ matrix(name).T)


def from_lab(lab):
    """CIELAB (..., 3) in sRGB's bytes, not rounded."""
    lightness, a, b = np.moveaxis(np.asarray(lab, float), -1, 0)
    middle = (lightness + 16) / 116
    cubed = np.stack([middle + a / 500, middle, middle - b / 200], -1)
    return from_xyz(D50 * np.where(cubed > 6 / 29, cubed**3, 3 * (6 / 29) ** 2 * (cubed - 4 / 29)))


def _fixed(value):
    return struct.pack(">i", round(value * 65536))


def profile(space, tags, kind=b"mntr", connection=b"XYZ "):
    """A profile of version 2.4 with these tags: name -> content."""
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += struct.pack(">4sII", name, at + len(body), len(content))
        body += content
    white = b"".join(map(_fixed, D50))
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s12s4s", size, b"none", 0x02400000, kind, space, connection, bytes(12), b"acsp")
    return (head + bytes(28) + white).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _curve(gamma):
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _point(values):
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))


def rgb_profile(name, gamma):
    """Of a display."""
    tags = {b"wtpt": _point(D50)}
    for letter, column in zip(b"rgb", matrix(name).T, strict=True):
        tags |= {bytes([letter]) + b"XYZ": _point(column), bytes([letter]) + b"TRC": _curve(gamma)}
    return profile(b"RGB ", tags)


def grey_profile(gamma):
    """Of greys."""
    return profile(b"GRAY", {b"wtpt": _point(D50), b"kTRC": _curve(gamma)})


def cmyk_profile(lab_of):
    """Of a press: a table of CIELAB at all corners of (cyan, magenta, yellow, black), each 0 or 1."""
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    labs = np.array([lab_of(*corner) for corner in corners], float)
    table = np.round(np.stack([labs[:, 0] * 2.55, labs[:, 1] + 128, labs[:, 2] + 128], 1)).astype(np.uint8).tobytes()
    same = bytes(range(256))
    identity = b"".join(_fixed(value) for value in np.eye(3).ravel())
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + same * 4 + table + same * 3
    return profile(b"CMYK", {b"wtpt": _point(D50), b"A2B0": lut, b"A2B1": lut}, b"prtr", b"Lab ")
