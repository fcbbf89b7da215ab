"""Figures of routing as pictures, by matplotlib (the extra `plots`); told apart in grey and by the colour-blind as well."""

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ec_dit.core.evenly import evenly
from ec_dit.maps.figures import Lift, Spread

_SCALE = "cividis"  # lightness grows evenly
_COLUMNS, _ROWS = 8, 8  # times and blocks in a picture, at most; of more, some at even distances
_CONTEXT = 0.35  # of the colour of what stands around a patch
_STRIP, _EXPERTS = 8, 16  # patches of an expert, experts of a block, at most
_LINES = ("-", "--", "-.", ":")
_CURVES = {
    "concentration": "concentration of compute (Gini)",
    "untaken": "share of tokens without an expert",
    "most": "experts on the richest token",
    "experts": "experts on a token",
    "object_over_ground": "experts on objects over ground",
}


def maps(
    title: str, image_YXZ: np.ndarray, count_LUYX: np.ndarray, block_L: Sequence[int], time_U: Sequence[float]
) -> Figure:
    """Draws experts on every token: a row for each sparse block, a column for each time, and the picture beside them.

    Args:
        count_LUYX: experts that took each token, or their mean over pictures.
        block_L: of each sparse block its number among all blocks.
    """
    rows, columns = evenly(len(block_L), _ROWS), evenly(len(time_U), _COLUMNS)
    figure, axes = plt.subplots(
        len(rows),
        len(columns) + 1,
        figsize=(1.3 * (len(columns) + 1) + 1, 1.3 * len(rows) + 0.8),
        layout="constrained",
        squeeze=False,
    )
    most = max(1.0, float(count_LUYX.max()))
    for place, row in enumerate(rows):
        axes[place, 0].imshow(image_YXZ, interpolation="nearest")
        axes[place, 0].set_ylabel(f"block {block_L[row]}")
        for at, column in enumerate(columns, 1):
            axes[place, at].imshow(count_LUYX[row, column], cmap=_SCALE, vmin=0, vmax=most)
            if place == 0:
                axes[place, at].set_title(f"t = {time_U[column]:.2f}", fontsize=9)
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
    scale = ScalarMappable(Normalize(0, most), _SCALE)
    figure.colorbar(scale, ax=axes, label="experts on a token", shrink=0.8)
    figure.suptitle(textwrap.fill(title, 16 * (len(columns) + 1)), fontsize=10, parse_math=False)
    return figure


def curves(spreads: Mapping[str, Spread], block_L: Sequence[int], time_U: Sequence[float]) -> Figure:
    """Draws figures over time, a line for each sparse block, with bands of two standard errors."""
    names = [name for name in _CURVES if name in spreads]
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.6), layout="constrained", squeeze=False)
    greys = plt.get_cmap(_SCALE)(np.linspace(0, 0.85, len(block_L)))
    for name, each in zip(names, axes[0], strict=True):
        spread = spreads[name]
        for place, block in enumerate(block_L):
            mean_U, error_U = spread.mean_LU[place], 2 * spread.standard_error_LU[place]
            each.plot(time_U, mean_U, _LINES[place % len(_LINES)], color=greys[place], label=f"block {block}")
            each.fill_between(time_U, mean_U - error_U, mean_U + error_U, color=greys[place], alpha=0.2, linewidth=0)
        each.set(xlabel="t, 1 = noise")
        each.set_title(_CURVES[name], fontsize=9)
        each.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False, fontsize=8, ncols=1 + len(block_L) // 8)
    return figure


def experts(
    images: Sequence[np.ndarray], gate_NLYXE: np.ndarray, block_L: Sequence[int], lifts: Sequence[Lift]
) -> Figure:
    """Draws the patches that each expert weighs most, one of a picture at most, with a rim of what stands around them.

    Args:
        images: uint8 (rows, columns, 3), of equal size.
        gate_NLYXE: the mean over evaluations of an expert's gate of each token.
        lifts: words to write beside the experts.
    """
    rows = evenly(len(block_L), _ROWS // 2)
    shown = evenly(gate_NLYXE.shape[-1], _EXPERTS)
    figure, axes = plt.subplots(
        len(shown), len(rows), figsize=(4.6 * len(rows), 0.62 * len(shown) + 0.6), layout="constrained", squeeze=False
    )
    for column, row in enumerate(rows):
        for place, expert in enumerate(shown):
            each = axes[place, column]
            each.imshow(_strip(images, gate_NLYXE[:, row, ..., expert]), interpolation="nearest")
            told = [lift.word for lift in lifts if (lift.block, lift.expert) == (block_L[row], expert)]
            title = f"block {block_L[row]}, expert {expert}  {', '.join(told)}"
            each.set_title(title, fontsize=8, loc="left", pad=2, parse_math=False)
            each.axis("off")
    return figure


def _strip(images: Sequence[np.ndarray], gate_NYX: np.ndarray) -> np.ndarray:
    """Sets patches of the largest gates side by side."""
    rows, columns = gate_NYX.shape[1:]
    height, width = images[0].shape[0] // rows, images[0].shape[1] // columns
    best_N = gate_NYX.reshape(len(gate_NYX), -1).argmax(1)
    order = np.argsort(-gate_NYX.reshape(len(gate_NYX), -1).max(1), kind="stable")[:_STRIP]
    cut = []
    for number in order:
        y, x = divmod(int(best_N[number]), columns)
        wide = np.pad(
            images[number].astype(np.float32), ((height, height), (width, width), (0, 0)), constant_values=255
        )
        piece = wide[y * height : (y + 3) * height, x * width : (x + 3) * width]
        faint = 255 + _CONTEXT * (piece - 255)
        faint[height:-height, width:-width] = piece[height:-height, width:-width]
        cut.append(np.pad(faint, ((0, 0), (0, 2), (0, 0)), constant_values=255))
    cut += [np.full_like(cut[0], 255)] * (_STRIP - len(cut))
    return np.concatenate(cut, axis=1).astype(np.uint8)


def png(figure: Figure) -> bytes:
    """Encodes a figure, which is closed."""
    held = io.BytesIO()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of signs of a prompt that the font lacks
        figure.savefig(held, dpi=110)
    plt.close(figure)
    return held.getvalue()
