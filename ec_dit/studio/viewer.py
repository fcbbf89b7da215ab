"""Pictures with their routes as one page of HTML that needs nothing else: in the browser, and to send."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from ec_dit.core.evenly import evenly
from ec_dit.core.templates import template
from ec_dit.data.images import encode_png
from ec_dit.maps.sheet import SCALE
from ec_dit.sampling.routes import Routes

_MOST_BYTES = 6 * 2**20  # of one picture's routes; of longer ones some evaluations are left out


@dataclass(frozen=True)
class Panel:
    """A picture to look at.

    Attributes:
        title: whose it is.
        prompt: what was asked for.
        facts: further words on it, by name.
        image_YXZ: uint8.
        routes: of its tokens; None of a dense model.
    """

    title: str
    prompt: str
    facts: Mapping[str, str]
    image_YXZ: np.ndarray
    routes: Routes | None


def page(panels: Sequence[Panel], title: str) -> str:
    """Writes the page; texts of others are escaped, and what scripts read cannot end their element."""
    data = json.dumps([_told(panel) for panel in panels])
    for letter in "<>&":  # none of them is JSON's own outside of strings
        data = data.replace(letter, f"\\u{ord(letter):04x}")
    scale = SCALE.astype(int).tolist()
    return template("ec_dit.studio", "viewer.html").render(title=title, data=Markup(data), scale=scale)  # noqa: S704


def _told(panel: Panel) -> dict[str, Any]:
    rows, columns = panel.image_YXZ.shape[:2]
    return {
        "title": panel.title,
        "prompt": panel.prompt,
        "facts": dict(panel.facts),
        "image": base64.b64encode(encode_png(Image.fromarray(panel.image_YXZ))).decode(),
        "rows": rows,
        "columns": columns,
        "routes": None if panel.routes is None else _routes(panel.routes),
    }


def _routes(routes: Routes) -> dict[str, Any]:
    """Packs who took what: bits of L, U, Y, X, E in this order, the first the highest of its byte."""
    taken_LUYXE = routes.taken_LUYXE
    blocks, evaluations, rows, columns, experts = taken_LUYXE.shape
    kept = evenly(evaluations, max(2, _MOST_BYTES * 8 // (blocks * rows * columns * experts)))
    bits = np.packbits(taken_LUYXE[:, kept])
    return {
        "blocks": [int(block) for block in routes.block_L],
        "times": [round(float(routes.time_U[place]), 4) for place in kept],
        "evaluations": evaluations,
        "rows": rows,
        "columns": columns,
        "experts": experts,
        "most": int(taken_LUYXE.sum(-1, dtype=np.int64).max()),
        "bits": base64.b64encode(bits.tobytes()).decode(),
    }
