"""Curves of runs as SVG text, by matplotlib (the extra `plots`), in colours that the colour-blind tell apart, with dashes."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib import ticker

from ec_dit.reporting.story import AXES

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00", "#777777")  # Okabe and Ito's
_LINES = ("-", "--", "-.", ":")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names of runs are no formulas
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
}
Curves = Mapping[str, Sequence[tuple[float, float]]]  # by the name of a run


def chart(panels: Mapping[str, Curves], axis: str, order: Sequence[str], *, log: bool = False) -> str:
    """Draws panels side by side, each with a curve for every run that has one.

    Args:
        panels: by title.
        axis: of AXES.
        order: names of all runs of the page, so that each has the same colour everywhere.
        log: a logarithmic scale, where all values are above 0.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"{axis} {' '.join(panels)}"}):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(max(4.6, 3.3 * columns), 2.7 * rows),
            layout="constrained",
            squeeze=False,
        )
        for place, each in enumerate(axes.flat):
            if place >= len(panels):
                each.axis("off")
        for each, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            positive = all(y > 0 for curve in curves.values() for _, y in curve)
            for name, curve in curves.items():
                number = order.index(name)
                style = {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _LINES[number // 2 % len(_LINES)]}
                mark = "o" if len(curve) < 12 else ""
                each.plot([x for x, _ in curve], [y for _, y in curve], label=name, marker=mark, markersize=3, **style)
            each.set_title(title, fontsize=9, loc="left")
            each.grid(alpha=0.25, linewidth=0.6)
            each.set_xlabel(AXES[axis])
            each.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
            if log and positive:
                each.set_yscale("log")
                each.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
                each.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 3, 5)))
                each.yaxis.set_minor_formatter(ticker.StrMethodFormatter("{x:g}"))
        if len(order) > 1:
            labels = {
                label: line for each in axes.flat for line, label in zip(*each.get_legend_handles_labels(), strict=True)
            }
            shown = [name for name in order if name in labels]
            figure.legend(
                [labels[name] for name in shown],
                shown,
                loc="outside upper left",
                ncols=4,
                frameon=False,
            )
        held = io.StringIO()
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of signs in a name that the font lacks
            figure.savefig(held, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return _inline(held.getvalue())


def _inline(svg: str) -> str:
    """Takes what HTML does not want, and lets ink follow the page's colour."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="([^"]*)"', r'\1 style="max-width: \2"', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for ink in ("#000000", "#262626"):
        svg = svg.replace(f"stroke: {ink}", "stroke: currentColor").replace(f"fill: {ink}", "fill: currentColor")
    return svg
