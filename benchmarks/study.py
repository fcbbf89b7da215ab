"""Compares variants of a model at equal compute: python benchmarks/study.py --study=benchmarks/studies/icons.toml.

Every variant's learning rate is chosen by the same short sweep, on a seed of its own; then each is trained with several seeds,
in a process of its own, all on the same pictures in the same order, with the same noise and the same first weights where shapes
agree. What is done stays done: a call that was interrupted, or whose --budget ran out, goes on where it stopped. At the end, and
with --draw at any time, tables and plots of what there is are written into --page. Needs the extra `plots` (matplotlib).
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from studying import page, plan, runs, worker

from ec_dit.core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Does the runs and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True, help="file of the variants")
    parser.add_argument("--seeds", type=int, help="how many of the study's seeds; default: all")
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes, after which the call ends")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each on its share of the cores")
    parser.add_argument("--only", default="", help="variants, with commas between; default: all")
    parser.add_argument("--out", type=Path, help="folder of the runs; default: runs/study/NAME")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "study.md")
    parser.add_argument("--draw", action="store_true", help="write the page of what there is, and run nothing")
    given = parser.parse_args()
    # Like Ctrl-C, which shells keep from what runs behind them.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        study = plan.read(given.study)
        _work(study, given)
    except UserError as error:
        sys.exit(f"study: {error}")


def _work(study: plan.Study, given: argparse.Namespace) -> None:
    folder = (given.out or ROOT / "runs" / "study" / study.name).resolve()
    if apart := plan.mismatches(study):
        told = ", ".join(f"{name} {100 * share:+.1f} %" for name, share in apart.items())
        raise UserError(f"--study={given.study}: {study.match} differ from those of {study.reference}: {told}")
    chosen = given.only.split(",") if given.only else list(study.variants)
    if unknown := [name for name in chosen if name not in study.variants]:
        raise UserError(f"--only={given.only}: there is no variant {', '.join(unknown)}")
    if given.seeds is not None and not 1 <= given.seeds <= len(study.seeds):
        raise UserError(f"--seeds={given.seeds}: the study has {len(study.seeds)}")
    if given.jobs < 1:
        raise UserError(f"--jobs={given.jobs}: give at least 1")
    seeds = study.seeds[: given.seeds]

    until = time.monotonic() + 60 * given.budget
    doer = worker.Worker(until, _say, folder / "programs", given.jobs)
    finished, compiled = True, folder / "compiled"
    if not given.draw:
        finished = doer.do([run for run in runs.sweep_of(study, folder) if run.variant.name in chosen])
    rates = runs.rates_of(study, folder)
    wanted = [run for run in runs.main_runs(study, folder, rates, seeds) if run.variant.name in chosen]
    if not given.draw:
        finished = finished and doer.do(wanted)
    done = [run for run in runs.main_runs(study, folder, rates, study.seeds) if run.is_done]
    swept = runs.sweep_of(study, folder)
    runs.check([*swept, *done])
    if done and not given.draw:
        doer.compile(study, compiled)
    print(f"{len(done)} runs are done{'' if finished else '; the same command goes on'}", flush=True)
    if any(run.variant.name == study.reference and run.is_done for run in [*swept, *done]):
        images = given.page.parent / "images"
        images.mkdir(parents=True, exist_ok=True)
        how = f"`python benchmarks/study.py --study={_shown(given.study)}`"
        page.put(
            given.page,
            study.name,
            page.section(
                page.Outcome(study, done, swept, runs.compiled(study, compiled)), rates, images, given.page, how
            ),
        )
        print(f"wrote {given.page}")


def _say(line: str) -> None:
    print(f"{line}\n", end="", flush=True)  # in one piece, as several threads say something


def _shown(path: Path) -> str:
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    main()
