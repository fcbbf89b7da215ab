"""Scores a run: python -m ec_dit.evaluate --workdir=DIR --suite=shapes, or --suite=fid,clip_score with a flag for each network.

Prints a table of each suite and leaves eval_<suite>.json, .jsonl and .png in the workdir, or in --out. The pictures are kept, in
WORKDIR/eval or in --out: a call that was interrupted goes on, and one with other settings is refused. --images=DIR scores
pictures that anybody made. After a suite's name and a colon stand options of it alone, as in the config key eval.suites:
--suite=shapes:images_per_task=10,novel=true; flags such as --prompts go to every suite that has such an option.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from ec_dit import cli, sampling_flags
from ec_dit.core.errors import UserError

if TYPE_CHECKING:
    from etils import epath

    from ec_dit.evaluators.base import Suite
    from ec_dit.runs.evaluation import Scorer
    from ec_dit.runs.subjects import Scored

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "suite",
    None,
    "What to score: NAME, or NAME:OPTION=VALUE, several with commas; of a run, shapes.",
    flag_values=FLAGS,
)
cli.define_path("images", "A folder of pictures to score, instead of --workdir.", flag_values=FLAGS)
flags.DEFINE_bool("any_size", False, "Pictures of --images may be of different sizes.", flag_values=FLAGS)
flags.DEFINE_list(
    "compare",
    [],
    "The eval_NAME.json of another score, to be compared with the one that is made now; or two of them.",
    flag_values=FLAGS,
)
cli.define_path("out", "Folder for scores and pictures; default: the workdir.", flag_values=FLAGS)

_PATHS = {
    "prompts": "A file of prompts.",
    "inception": "FID's Inception: a safetensors file in pytorch-fid's layout.",
    "clip": "A CLIP as transformers publishes it: folder, or name such as OWNER/NAME@REVISION.",
    "dino": "A DINOv2, likewise.",
    "detector": "A Mask2Former, likewise.",
    "vqa": "What answers questions about pictures, likewise.",
    "answers": "A table of answers, instead of --vqa.",
}
_TEXTS = {
    "layout": "Of the prompt file, and of the pictures' folder: flat, geneval, dpg, t2i_compbench, hpsv2, dsg.",
    "num": "Pictures of each prompt; default: as many as the layout's tool wants.",
    "most": "Prompts at most, the first ones.",
    "reference": "Real pictures: a split of the run's data, or a path: data set, folder of pictures, statistics.npz.",
    "reference_most": "Pictures of the reference at most, the first ones.",
    "crop": "Pixels of a square to which the reference's pictures are cropped in the middle.",
    "resize": "As which tool resizes: pytorch_fid or clean.",
}
for _name, _meaning in _PATHS.items():
    cli.define_path(_name, _meaning, flag_values=FLAGS)
for _name, _meaning in _TEXTS.items():
    flags.DEFINE_string(_name, None, _meaning, flag_values=FLAGS)
sampling_flags.define(FLAGS)
cli.define_run(FLAGS)
cli.define_processes(FLAGS)
cli.define_help(FLAGS)

_OF_RUNS = (*sampling_flags.NAMES, "step", "seed", "ema")


def work() -> None:
    """Loads what is scored, and scores it; or compares two scores."""
    if len(FLAGS.compare) == 2 and not FLAGS.workdir and not FLAGS.images:
        from ec_dit.judges import comparison

        cli.say(comparison.compared(*map(comparison.Scored.read, FLAGS.compare)))
        return
    _check_flags()
    changes = sampling_flags.changes(FLAGS)

    from ec_dit.core import lock, paths, processes
    from ec_dit.judges import comparison

    suites = _suites()
    others = {score.whole["suite"]: score for score in map(comparison.Scored.read, FLAGS.compare)}
    for name in others.keys() - {suite.label for suite in suites}:
        raise UserError(f"--compare={FLAGS.compare[0]} is of suite {name}, which is not scored now")
    out = paths.at(FLAGS.out or FLAGS.workdir)
    paths.check_can_write(out, "--out")
    if FLAGS.images and paths.at(FLAGS.images) in (out, *out.parents):
        raise UserError(
            f"--out={out} lies in --images, where scores would stand among the pictures: give another folder"
        )
    scorers, scored = _of_run(suites, out, changes) if FLAGS.workdir else _of_folder(suites, out)
    processes.check_shared(out, "an --out, or a --workdir,")
    with lock.held(out / ".evaluate.lock", f"the evaluation in {out}", cli.say):
        for scorer in scorers:
            scorer(scored())
            label = scorer.suite.label
            if label in others:
                with processes.told_by_first():
                    if processes.is_first():
                        made = comparison.Scored.read(str(out / f"eval_{label}.json"))
                        cli.say(comparison.compared(made, others[label]))


def _check_flags() -> None:
    """Raises UserError for flags that do not go together."""
    if len(FLAGS.compare) > 1:
        raise UserError("--compare takes one score beside --workdir or --images, or two without them")
    if bool(FLAGS.workdir) + bool(FLAGS.images) != 1 and (FLAGS.workdir or FLAGS.answers is None):
        raise UserError("give either --workdir=DIR, the folder of a run, or --images=DIR, a folder of pictures")
    if not FLAGS.workdir and not FLAGS.out:
        raise UserError("--out=DIR is needed for the scores, where there is no --workdir")
    if not FLAGS.workdir and FLAGS.suite is None:
        raise UserError("--suite=NAME is needed where there is no --workdir")
    if unused := [name for name in _OF_RUNS if FLAGS[name].present and not FLAGS.workdir]:
        raise UserError(f"--{unused[0]} says how a run draws: leave it out, or give --workdir=DIR")


def _suites() -> "list[Suite]":
    """Makes the suites that flags ask for."""
    from ec_dit.evaluators import registry

    options = {name: str(FLAGS[name].value) for name in (*_PATHS, *_TEXTS) if FLAGS[name].value is not None}
    suites = registry.parse_all(registry.split(FLAGS.suite or "shapes"), options)
    if any(suite.every or not suite.ema for suite in suites):
        raise UserError("the options every and ema are for training; here --noema scores the raw parameters")
    return [dataclasses.replace(suite, ema=FLAGS.ema) for suite in suites]


_Ready = tuple[list["Scorer"], Callable[[], "Scored"]]  # a scorer of each suite, and what gives them what they score


def _of_folder(suites: "Sequence[Suite]", out: "epath.Path") -> _Ready:
    """Makes suites ready for pictures of a folder, or for none."""
    from ec_dit.core.mesh import make_mesh
    from ec_dit.runs.evaluation import Scorer
    from ec_dit.runs.subjects import FolderSubject, NoSubject

    mesh = make_mesh(list(cli.mesh_of(FLAGS).values()))
    pictures = FolderSubject(FLAGS.images, mesh, any_size=FLAGS.any_size) if FLAGS.images else NoSubject(mesh)
    return [Scorer(suite, pictures, out, cli.say) for suite in suites], lambda: pictures


def _of_run(suites: "Sequence[Suite]", out: "epath.Path", changes: dict[str, Any]) -> _Ready:
    """Makes suites ready for a run, whose parameters are read when the first asks for them."""
    from ec_dit.runs import loaded
    from ec_dit.runs.evaluation import Scorer
    from ec_dit.runs.references import References
    from ec_dit.runs.subjects import RunSubject
    from ec_dit.runs.workdir import Workdir
    from ec_dit.system import layout

    workdir = Workdir(FLAGS.workdir)
    system = layout.for_sampling(workdir.system(loaded.changed(workdir.config(), changes)))
    run = RunSubject(References(system, workdir), out if FLAGS.out else out / "eval")
    scorers = [Scorer(suite, run, out, cli.say) for suite in suites]

    @functools.cache
    def scored() -> "Scored":
        return run.at(*workdir.params(system, ema=FLAGS.ema, step=FLAGS.step), seed=FLAGS.seed, ema=FLAGS.ema)

    return scorers, scored


def main(argv: Sequence[str]) -> int:
    """Runs with `argv` (the program's name first) and returns the exit code."""
    cli.quiet()
    return cli.run("evaluate", __doc__ or "", FLAGS, work, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
