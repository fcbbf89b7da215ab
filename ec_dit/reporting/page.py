"""The page: what is told of the runs, put into report.html by Jinja, which escapes every text."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ec_dit.core.templates import template
from ec_dit.reporting import charts
from ec_dit.reporting.story import AXES, Story, common_end

_COMPARED = ("loss", "validation_loss/.*", "eval/.*/score")  # at the farthest place that all reach

# Sections: title, what they say, whether logarithmic, and the figures' names; each figure a panel, or its blocks' mean.
_SECTIONS: tuple[tuple[str, str, bool, tuple[str, ...]], ...] = (
    ("Loss", "Training's own, of the steps between two lines.", True, ("loss",)),
    ("Held-out loss", "Moving average, fixed noise.", True, ("validation_loss/.*",)),
    ("Loss by noise level", "t = 0 is data, t = 1 noise.", True, ("loss_t/.*",)),
    ("Scores", "Evaluation suites.", False, ("eval/.*/score",)),
    ("Routers", "Mean over sparse blocks.", False, ("router/.*",)),
    ("Optimizer", "", False, ("grad_norm", "learning_rate", "param_norm")),
    ("Speed", "MFU: of the peak that core/hardware.py knows or measures.", False, ("images_per_second", "mfu")),
)


def page(stories: Sequence[Story]) -> str:
    """Writes the whole page: HTML that needs nothing else, no network and no script."""
    order = [story.name for story in stories]
    sections = []
    for title, words, log, patterns in _SECTIONS:
        panels = _panels(stories, patterns)
        if panels:
            drawn = {axis: Markup(charts.chart(_curves(stories, panels, axis), axis, order, log=log)) for axis in AXES}  # noqa: S704
            sections.append({"title": title, "words": words, "charts": drawn, "panels": list(panels)})
    # Markup: the charts alone, whose text matplotlib has escaped; everything else is escaped here.
    return template("ec_dit.reporting", "report.html").render(
        title=", ".join(order),
        stories=[_told(story) for story in stories],
        axes=AXES,
        sections=sections,
        differences=_differences(stories),
        settings={story.name: sorted(story.settings.items()) for story in stories},
        matched=_matched(stories) if len(stories) > 1 else {},
        shown=_shown,
    )


def _panels(stories: Sequence[Story], patterns: Sequence[str]) -> dict[str, list[str]]:
    """Titles of panels, and the figures each is a mean of: those of blocks, router/NAME/0, router/NAME/1, ..., stand together."""
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        for name in sorted({name for story in stories for name in story.names(pattern)}):
            head, _, tail = name.rpartition("/")
            title = head if head.startswith("router/") and tail.isdecimal() else name
            found.setdefault(title, []).append(name)
    return found


def _curves(stories: Sequence[Story], panels: Mapping[str, Sequence[str]], axis: str) -> dict[str, charts.Curves]:
    drawn: dict[str, charts.Curves] = {}
    for title, names in panels.items():
        curves = {}
        for story in stories:
            by_place: dict[float, list[float]] = {}
            for name in names:
                for x, y in story.curve(name, axis):
                    by_place.setdefault(x, []).append(y)
            if by_place:
                curves[story.name] = [(x, sum(ys) / len(ys)) for x, ys in sorted(by_place.items())]
        drawn[title] = curves
    return drawn


def _told(story: Story) -> dict[str, Any]:
    last, moe = story.rows[-1], story.config.moe
    rates = [row["images_per_second"] for row in story.rows if "images_per_second" in row]
    facts = {
        "config": story.config.name,
        "last step": f"{int(last['step']):,} of {story.config.train.steps:,}",
        "images": f"{story.costs[-1]['images']:,}",
        "training FLOPs, by formula": f"{story.costs[-1]['FLOPs']:.3g}",
        "parameters": f"{story.sizes['all'] / 1e6:,.2f} M, of which {story.sizes['activated'] / 1e6:,.2f} M work on a token",
        "routing": moe.routing if moe.routing == "dense" else f"{moe.routing}, {moe.num_experts} experts",
        "images/s, the median": f"{sorted(rates)[len(rates) // 2]:,.0f}" if rates else "",
        "data": story.data.get("source", "synthetic"),
        "checkpoints": ", ".join(map(str, story.checkpoints)) or "none",
    }
    scores = {}
    for name in story.names("eval/.*/score") + story.names("validation_loss/.*"):
        scores[name] = story.curve(name)[-1]
    return {
        "name": story.name,
        "path": story.path,
        "facts": facts,
        "scores": {name: (int(step), _shown(value)) for name, (step, value) in scores.items()},
        "grids": [(name, step, base64.b64encode(data).decode()) for name, step, data in story.grids],
    }


def _differences(stories: Sequence[Story]) -> list[tuple[str, list[Any]]]:
    """Keys of the configs in which the runs differ, with each run's value."""
    trees = [story.settings for story in stories]
    keys = sorted({key for tree in trees for key in tree})
    rows = [(key, [json.dumps(tree[key]) if key in tree else "" for tree in trees]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _matched(stories: Sequence[Story]) -> dict[str, list[tuple[str, str, list[str]]]]:
    """By axis: figures of all runs at the farthest place that all of them reach."""
    found: dict[str, list[tuple[str, str, list[str]]]] = {}
    for axis in AXES:
        rows = []
        for name in sorted({name for story in stories for pattern in _COMPARED for name in story.names(pattern)}):
            end = common_end(stories, name, axis)
            if end is not None:
                values = [story.at(name, axis, end) for story in stories]
                rows.append((name, _shown(end), [_shown(value) for value in values]))
        found[axis] = rows
    return found


def _shown(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:.4g}"
