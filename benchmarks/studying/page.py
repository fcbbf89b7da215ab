"""A study as people read it: tables and plots, in a section of a page of Markdown whose other text stays as it is."""

import functools
import itertools
import math
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from studying import figures, plan, runs
from studying.figures import Difference
from studying.plan import Study

# Told apart in grey too.
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
_MARKS = "osd^vPX*"
_GREYS = ("#000000", "#c0392b", "#2471a3", "#7d8a2e", "#8e44ad", "#b9770e", "#148f77", "#7f8c8d")
_HEADLINE, _LEVELS = "headline", f"eval/{plan.HEADLINE}/score"
_IN_GROUPS = "headline_in_groups"
_TRAINED, _HELD_OUT = "validation_loss/train", "validation_loss/validation"


class Outcome:
    """The finished runs of a study, by variant and seed.

    Args:
        swept: runs of its sweep, of which the finished ones are shown.
        compiled: of variants, the FLOPs of the compiled training step over those of the formulas.
    """

    def __init__(
        self, study: Study, done: Sequence[runs.Run], swept: Sequence[runs.Run], compiled: Mapping[str, float]
    ):
        self.study, self.compiled = study, compiled
        ended = [run for run in swept if run.is_done]
        self.swept = {(run.variant.name, run.rate): run.curve()[run.steps] for run in ended}
        self.machines = sorted({run.note.get("machine", "an unknown machine") for run in [*done, *ended]})
        self.runs = {name: {run.seed: run for run in done if run.variant.name == name} for name in study.variants}
        self._facts = {name: {seed: runs.facts(run) for seed, run in own.items()} for name, own in self.runs.items()}
        self.names = {key for own in self._facts.values() for facts in own.values() for key in facts}
        self.sizes = {name: plan.size_of(study, variant) for name, variant in study.variants.items()}
        self.batch = study.config_of(study.variants[study.reference]).train.batch_size

    def last(self, name: str, figure: str) -> dict[int, float]:
        """Gives a figure at the end of a variant's runs, by seed; without runs that do not have it."""
        return {seed: facts[figure] for seed, facts in self._facts[name].items() if figure in facts}

    def curves(self, name: str, figure: str = _HEADLINE) -> dict[int, dict[int, float]]:
        """Gives a figure by seed and step."""
        return {seed: run.curve(figure) for seed, run in self.runs[name].items()}

    def rate(self, name: str) -> float:
        """Gives the images a second of a variant's training, the median of all its runs' lines."""
        rows = [row for run in self.runs[name].values() for row in run.rows if "images_per_second" in row]
        return statistics.median(row["images_per_second"] for row in rows) if rows else math.nan

    def against_reference(self, name: str, figure: str) -> Difference:
        """Compares a figure at the end with the reference's, seed by seed."""
        return figures.difference(self.last(name, figure), self.last(self.study.reference, figure))

    def convergence(self, name: str) -> str:
        """Tells after which share of the steps a variant has the reference's least loss: the median of seeds that reach it."""
        goals, curves = self.curves(self.study.reference), self.curves(name)
        seeds = sorted(goals.keys() & curves.keys())
        reached = [figures.first_below(curves[seed], min(goals[seed].values())) / self.study.steps for seed in seeds]
        finite = sorted(share for share in reached if math.isfinite(share))
        if not finite:
            return "not reached" if reached else ""
        return f"{100 * statistics.median(finite):.0f} %" + (
            "" if len(finite) == len(reached) else f" ({len(finite)} of {len(reached)})"
        )


def section(outcome: Outcome, rates: Mapping[str, float], images: Path, page: Path, how: str) -> str:
    """Draws the plots into `images` and gives the section's text.

    Args:
        how: the command.
    """
    study = outcome.study
    names = [name for name in study.variants if outcome.runs[name]]
    plots: dict[str, tuple[str, int, Callable[..., None]]] = {
        "loss": ("Held-out loss over images, FLOPs and seconds", 3, _over_images),
        "levels": ("Held-out loss beside the reference's, by noise level", 1, _by_level),
    }
    plots |= {
        label: (f"{label} over images", 1, functools.partial(_over_images, figure=f"eval/{label}/score"))
        for label in study.others
        if any(len(curve) > 1 for name in names for curve in outcome.curves(name, f"eval/{label}/score").values())
    }
    lines = [
        f"### {study.title}",
        "",
        *([study.question, ""] if study.question else []),
        how,
        "",
        _choices(outcome, rates),
        "",
    ]
    lines += [*_costs(outcome, rates), ""]
    if outcome.swept:
        told = f"Held-out loss after the {study.sweep.steps} steps of the sweep, and beside the reference's at the same rate:"
        lines += [told, "", *_swept(outcome), ""]
    if not names:
        return "\n".join(lines)
    lines += [*_results(outcome, names), ""]
    for plot, (title, panels, draw) in plots.items():
        figure, axes = plt.subplots(
            1,
            panels,
            figsize=(7 if panels == 1 else 4.6 * panels, 4.2),
            layout="constrained",
            sharey=True,
            squeeze=False,
        )
        draw(outcome, names, *axes[0])
        for each in axes[0]:
            each.grid(alpha=0.3)
        axes[0, 0].legend(frameon=False)
        path = images / f"study_{study.name}_{plot}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        lines += [f"![{title}]({_relative(path, page)})", ""]
    return "\n".join(lines)


def put(page: Path, name: str, text: str) -> None:
    """Replaces the section of a study in a page, or adds it behind the rest."""
    start, end = f"<!-- study {name}: written by benchmarks/study.py -->", f"<!-- end of study {name} -->"
    whole = page.read_text(encoding="utf-8") if page.exists() else "# Studies\n"
    new = f"{start}\n\n{text.strip()}\n\n{end}"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    whole = pattern.sub(lambda _: new, whole) if pattern.search(whole) else f"{whole.rstrip()}\n\n{new}\n"
    page.write_text(whole, encoding="utf-8")


def _choices(outcome: Outcome, rates: Mapping[str, float]) -> str:
    study = outcome.study
    seeds, machines = ", ".join(map(str, study.seeds)), "; ".join(outcome.machines)
    said = [f"{study.steps} steps of {outcome.batch} images, seeds {seeds}, on {machines}."]
    if len(study.sweep.rates) > 1:
        rates_told = ", ".join(f"{rate:g}" for rate in study.sweep.rates)
        said.append(
            f"Learning rates are the best of x {rates_told} after {study.sweep.steps} steps with seed {study.sweep.seed}, by the "
            "same held-out loss."
        )
        edges = [name for name, rate in rates.items() if rate in (min(study.sweep.rates), max(study.sweep.rates))]
        if edges:
            said.append(f"At an edge of that choice: {', '.join(study.variants[name].label for name in edges)}.")
    said.append(
        "Held-out losses are means over noise levels, weighted as training draws them, but where a column says another thing."
    )
    said.append(
        f"Intervals are {100 * figures.CONFIDENCE:.0f} % by Student's t over seeds; differences are taken seed by seed, p values "
        "by paired t-tests, adjusted for all of a column by Holm."
    )
    return " ".join(said)


def _costs(outcome: Outcome, rates: Mapping[str, float]) -> list[str]:
    reference = outcome.sizes[outcome.study.reference]
    titles = (
        "variant",
        "parameters",
        "on a token",
        "training FLOPs of an image",
        "compiled, of that",
        "images a second",
        "learning rate",
        "runs",
        "rise of training loss, at most",
    )
    lines = _head(titles)
    for name, size in outcome.sizes.items():
        cells = [
            outcome.study.variants[name].label,
            f"{size.total / 1e6:.2f} M",
            f"{size.activated / 1e6:.2f} M",
            f"{size.flops / 1e6:.1f} M ({100 * (size.flops / reference.flops - 1):+.1f} %)",
            f"{outcome.compiled[name]:.3f}" if name in outcome.compiled else "",
            f"{outcome.rate(name):.0f}" if outcome.runs[name] else "",
            f"x {rates[name]:g}" if name in rates else "",
            len(outcome.runs[name]),
            f"{100 * max(run.rise for run in outcome.runs[name].values()):.0f} %" if outcome.runs[name] else "",
        ]
        lines.append(_row(cells))
    return lines


def _swept(outcome: Outcome) -> list[str]:
    """A row for each variant, a column for each rate."""
    study = outcome.study
    lines = _head(["variant", *(f"x {rate:g}" for rate in study.sweep.rates)])
    for name, variant in study.variants.items():
        cells = [variant.label]
        for rate in study.sweep.rates:
            loss, beside = outcome.swept.get((name, rate)), outcome.swept.get((study.reference, rate))
            cell = "" if loss is None else f"{loss:.4f}"
            if loss is not None and beside is not None and name != study.reference:
                cell += f" ({100 * (loss / beside - 1):+.1f} %)"
            cells.append(cell)
        lines.append(_row(cells))
    return lines


def _results(outcome: Outcome, names: Sequence[str]) -> list[str]:
    """A row for each variant, and for each capacity that it was also scored with."""
    study = outcome.study
    rows = [(name, also) for name in names for also in (None, *study.variants[name].also)]
    compared = {_HEADLINE: "held-out loss, drawn alone", _IN_GROUPS: "in training's groups"}
    compared |= {f"eval/{label}/score": label for label in study.others}
    titles, columns = ["variant"], list[list[object]]()
    for figure, title in compared.items():
        means, apart, chances = list[object](), list[object](), list[float]()
        for name, also in rows:
            own = outcome.last(name, figure if also is None else _beside(also, figure))
            found = figures.difference(own, outcome.last(study.reference, figure))
            is_reference = name == study.reference and also is None
            means.append(figures.mean(list(own.values())))
            apart.append("" if is_reference else found)
            chances.append(math.nan if is_reference else found.p)
        titles += [title, "beside the reference", "p"]
        columns += [means, apart, ["" if math.isnan(p) else f"{p:.2g}" for p in figures.holm(chances)]]
    for figure in (_LEVELS, _TRAINED, _HELD_OUT):
        columns.append(["" if also else figures.mean(list(outcome.last(name, figure).values())) for name, also in rows])
    columns.append(["" if also else outcome.convergence(name) for name, also in rows])
    titles += ["mean of noise levels", "even times: trained on", "held out", "steps to the reference's least loss"]
    labels = [study.variants[name].label + (f", capacity {also}" if also else "") for name, also in rows]
    return [*_head(titles), *(_row(cells) for cells in zip(labels, *columns, strict=True))]


def _beside(capacity: str, figure: str) -> str:
    """Names the same figure with another capacity in sampling; what has none there is in no run."""
    return f"{capacity}/{figure.removeprefix('eval/').removesuffix('/score')}"


def _head(titles: Sequence[str]) -> list[str]:
    return [_row(titles), "|---" * len(titles) + "|"]


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _styles(names: Sequence[str]) -> dict[str, dict[str, object]]:
    cycle = zip(itertools.cycle(_LINES), itertools.cycle(_MARKS), itertools.cycle(_GREYS), strict=False)
    return {
        name: {"linestyle": line, "marker": mark, "color": colour, "markersize": 4}
        for name, (line, mark, colour) in zip(names, cycle, strict=False)
    }


def _over_images(outcome: Outcome, names: Sequence[str], *panels: Axes, figure: str = _HEADLINE) -> None:
    """Draws a figure over training images; in further panels over FLOPs and over seconds."""
    styles = _styles(names)
    for name in names:
        curves = {seed: curve for seed, curve in outcome.curves(name, figure).items() if curve}
        steps = sorted(set.intersection(*(set(curve) for curve in curves.values()))) if curves else []
        values = [[curve[step] for curve in curves.values()] for step in steps]
        middle = [sum(each) / len(each) for each in values]
        images = [step * outcome.batch for step in steps]
        costs = (1.0, outcome.sizes[name].flops / 1e12, 1 / outcome.rate(name))
        for axes, cost in zip(panels, costs, strict=False):
            x = [number * cost for number in images]
            axes.plot(x, middle, label=outcome.study.variants[name].label, **styles[name])
            if len(curves) > 1:
                low, high = [min(each) for each in values], [max(each) for each in values]
                axes.fill_between(x, low, high, color=styles[name]["color"], alpha=0.15)
    panels[0].set(ylabel="held-out loss" if figure == _HEADLINE else figure.split("/")[1])
    if figure == _HEADLINE:
        panels[0].set(yscale="log")
    for axes, label in zip(panels, ("training images", "training TFLOPs", "seconds, at measured speed"), strict=False):
        axes.set(xlabel=label)


def _by_level(outcome: Outcome, names: Sequence[str], axes: Axes) -> None:
    study = outcome.study
    styles = _styles(names)
    prefix = "eval/val_loss/times/t="
    levels = sorted((float(key.removeprefix(prefix)), key) for key in outcome.names if key.startswith(prefix))
    for name in names:
        if name == study.reference:
            continue
        apart = [outcome.against_reference(name, key).mean for _, key in levels]
        middle, half = [100 * each.value for each in apart], [100 * each.half for each in apart]
        shown = None if all(math.isnan(each) for each in half) else half
        x, label = [level for level, _ in levels], study.variants[name].label
        axes.errorbar(x, middle, yerr=shown, capsize=2, label=label, **styles[name])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="t, 0 = data", ylabel=f"loss beside {study.variants[study.reference].label}, %")


def _relative(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page.parent)).as_posix()
