"""Compiles every model of the paper for its topology, training and sampling, and writes the table: make plans.

    python benchmarks/plans.py [--only=m_64e,xl_32e] [--again]

One compilation takes about a minute on two cores and three GB of memory; all of them, three quarters of an hour. Figures are
kept in docs/plans.json; models that stand there are not compiled again without --again.
"""

import argparse
import json
import sys
from typing import Any

import process

from ec_dit.core.topology import parse
from ec_dit.models.paper import PAPER

FIGURES, PAGE = process.ROOT / "docs" / "plans.json", process.ROOT / "docs" / "plans.md"
# Beside every model on its own pod: a sparse and a dense one of each size on eight chips, where the paper needed 60.7 GB of each
# of eight GPUs for the largest.
PAIRS = ("xl_32e", "dense_xl", "xxl_32e", "dense_xxl", "3xl_32e", "dense_3xl", "m_64e", "dense_m")
EIGHT = "v5p:2x2x2"
IMAGES = 16  # of a chip, in sampling; of one alone, reading weights would take longer than computing with them
KEPT = (
    "topology",
    "mesh",
    "devices",
    "fits",
    "hbm_bytes_per_chip",
    "hbm_limit_bytes",
    "memory",
    "model_flops_per_chip",
)
KEPT += ("compiled_flops_per_chip", "hbm_traffic_bytes_per_chip", "collectives", "roofline", "step_seconds")
KEPT += ("images_per_second", "mfu", "hours_800k", "paper_hours", "unknown_loops", "versions", "program")


def jobs() -> list[str]:
    """'config what [topology [images of a chip]]' of every row."""
    own = [f"{name} {what}" for what in ("train", "sample") for name in PAPER]
    return [*own, *(f"{name} sample {EIGHT}" for name in PAIRS), f"m_64e sample {EIGHT} 1"]


def figures(job: str) -> dict[str, Any]:
    """Compiles one, in a process of its own."""
    name, what, *rest = job.split()
    where = rest[0] if rest else PAPER[name].topology
    plan = ["-m", "ec_dit.plan", f"--config=configs/{name}.py", f"--what={what}", f"--topology={where}"]
    if what == "sample":
        images = parse(where).chips * (int(rest[1]) if rest[1:] else IMAGES)
        plan.append(f"--config.sample.batch_size={images}")
    found = process.figures(job, lambda path: [*plan, f"--json={path}"])
    return {key: found[key] for key in KEPT if key in found}  # little is known of what does not fit


def page(plans: dict[str, dict[str, Any]]) -> str:
    """docs/plans.md."""
    compilers = sorted({_versions(plan) for plan in plans.values() if "versions" in plan})
    lines = [
        "# Every model on its pod, as compiled",
        "",
        "What the TPU compiler makes of each config's real step, on the topology its file names; nothing here ran on a TPU.",
        "`make plans` writes this page anew, `python -m ec_dit.plan --config=configs/X.py` prints one row in full, and",
        "[scaling.md](scaling.md) says how to read it. GB are 10^9 bytes of a chip.",
        "",
        "**Time, MFU and hours are predictions** from the compiled program at assumed shares of the peaks; the paper's hours are",
        "measured, so the two columns are no comparison of speed.",
        "",
        f"Compiled by {', '.join(compilers)}.",
    ]
    for what, title in (("train", "Training, batch 4096"), ("sample", "Sampling: one guided network evaluation")):
        lines += ["", f"## {title}", "", _head(what)]
        lines += [_line(job, plan, what) for job, plan in plans.items() if job.split()[1] == what]
    return "\n".join(lines) + "\n"


def _versions(plan: dict[str, Any]) -> str:
    return " ".join(f"{package} {version}" for package, version in plan["versions"].items())


def _head(what: str) -> str:
    columns = [
        "model",
        "chips",
        "images of a chip",
        "mesh",
        "memory, GB",
        "of",
        "FLOPs, compiled / model",
        "collectives, GB",
        "hidden",
    ]
    columns += ["step, ms", "bound by", "MFU"] + (
        ["hours, 800 k steps", "paper's"] if what == "train" else ["images/s"]
    )
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _line(job: str, plan: dict[str, Any], what: str) -> str:
    if not plan["fits"]:
        return f"| `{job.split(maxsplit=1)[0]}` | does not fit |"
    moved = plan["collectives"]
    seconds = sum(c["seconds"] for c in moved)
    hidden = sum(c["seconds"] * c["hidden"] for c in moved) / seconds if seconds else 0.0
    cells = [
        f"`{job.split(maxsplit=1)[0]}`",
        f"{plan['devices']} ({plan['topology']})",
        f"{plan['images_per_second'] * plan['step_seconds'] / plan['devices']:.0f}",
        " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1),
        f"{plan['hbm_bytes_per_chip'] / 1e9:.1f}",
        f"{plan['hbm_limit_bytes'] / 1e9:.0f}",
        f"{plan['compiled_flops_per_chip'] / plan['model_flops_per_chip']:.3f}",
        f"{sum(c['bytes'] for c in moved) / 1e9:.1f}",
        f"{hidden:.0%}",
        f"{plan['step_seconds'] * 1e3:.0f}",
        plan["roofline"]["bound"],
        f"{plan['mfu']:.0%}",
    ]
    if what == "train":
        cells += [f"{plan['hours_800k']:.1f}", "" if plan["paper_hours"] is None else f"{plan['paper_hours']:g}"]
    else:
        cells.append(f"{plan['images_per_second']:.0f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Compiles what is missing, and writes both files after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of configs, with commas between")
    parser.add_argument("--again", action="store_true", help="also compile what docs/plans.json has already")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(PAPER)
    if unknown := set(chosen) - set(PAPER):
        sys.exit(f"no such config: {', '.join(sorted(unknown))}; there are {', '.join(PAPER)}")
    plans = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    todo = [job for job in jobs() if job.split()[0] in chosen and (arguments.again or job not in plans)]
    for number, job in enumerate(todo, 1):
        print(f"{number}/{len(todo)} {job}", flush=True)
        plans[job] = figures(job)
        plans = {job: plans[job] for job in jobs() if job in plans}
        FIGURES.write_text(json.dumps(plans, indent=1) + "\n")
        PAGE.write_text(page(plans))


if __name__ == "__main__":
    main()
