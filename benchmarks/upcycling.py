"""Whether a sparse model learns faster from an upcycled dense one than from nothing: docs/upcycling.md, a quarter of an hour.

    python benchmarks/upcycling.py [--dense_steps=1000] [--steps=500]

A dense model trains on shapes, becomes one of eight experts, and trains on; beside it, the same sparse model starts from nothing,
and the dense one simply goes on. All three see the same pictures at the same learning rate.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from ec_dit.train.metrics import read_metrics

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "upcycling.md"
COMMON = ["--config.optimizer.schedule=constant", "--config.optimizer.learning_rate=5e-3", "--config.eval.suites=()"]
COMMON += ["--config.log.sample_every=0"]


def run(module: str, *arguments: str) -> None:
    """Runs a command of the package, and ends with it where it fails."""
    command = [sys.executable, "-m", f"ec_dit.{module}", *arguments]
    print("$", " ".join(command[1:]), flush=True)
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(f"{module} failed")


def train(workdir: Path, config: str, steps: int, every: int, *arguments: str) -> dict[int, float]:
    """step -> loss of the moving average on the validation split."""
    run(
        "main",
        f"--config=configs/{config}.py",
        f"--workdir={workdir}",
        f"--config.train.steps={steps}",
        f"--config.log.validate_every={every}",
        *COMMON,
        *arguments,
    )
    name = "validation_loss/validation"
    return {int(row["step"]): row[name] for row in read_metrics(str(workdir)) if name in row}


def main() -> None:
    """Trains all and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense_steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "upcycling", help="folder of the runs")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    dense, sparse, every = "shapes_dense", "shapes", given.steps // 5
    like = "--config.model.ffn_factor=4"  # the dense twin of configs/shapes.py, block by block
    grown = given.runs / "upcycled"

    before = train(given.runs / "dense", dense, given.dense_steps, given.dense_steps, like)
    if not grown.exists():
        run("convert", "--from=workdir", f"--path={given.runs / 'dense'}", "--upcycle", "--experts=8", f"--out={grown}")
    start = f"--config.train.init_from={grown}"
    again = f"--config.train.init_from={given.runs / 'dense'}"
    gate = "--config.moe.gate=normalized"
    curves = {
        "upcycled": train(given.runs / "from_upcycled", sparse, given.steps, every, start, gate),
        "upcycled, gate of the paper": train(given.runs / "from_upcycled_score", sparse, given.steps, every, start),
        "from nothing": train(given.runs / "from_nothing", sparse, given.steps, every, gate),
        "the dense one goes on": train(given.runs / "dense_on", dense, given.steps, every, again, like),
    }
    apart = json.loads((grown / "conversion.json").read_text())["upcycled"]["first_outputs"]
    given.page.write_text(page(given.dense_steps, before, curves, apart))
    print(given.page.read_text())


def page(
    dense_steps: int,
    before: dict[int, float],
    curves: dict[str, dict[int, float]],
    apart: dict[str, dict[str, float]],
) -> str:
    """The figures as Markdown."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    lines = [
        "# From a dense model to a sparse one",
        "",
        "Written by `python benchmarks/upcycling.py`, on CPU. Loss of the moving average on the validation split of the shapes",
        f"data, after so many steps. The dense model had trained {dense_steps} steps, to {before[max(before)]:.4f}; then",
        "`python -m ec_dit.convert --upcycle --experts=8` copied every second feed-forward layer to eight experts. One run each.",
        "",
        "| steps | " + " | ".join(curves) + " |",
        "|" + "---|" * (len(curves) + 1),
    ]
    lines += [f"| {step} | " + " | ".join(f"{curve[step]:.4f}" for curve in curves.values()) + " |" for step in steps]
    lines += ["", "First outputs of the sparse model beside the dense one's, before any training:", ""]
    lines += ["| routing | relative difference | tokens of no expert |", "|---|---|---|"]
    lines += [f"| {name} | {row['relative']:.1e} | {row['untaken']:.1%} |" for name, row in apart.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
