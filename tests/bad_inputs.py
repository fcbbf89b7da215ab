"""Mistakes of users at every entry point: what they type, and a part of the message that they should read.

Data alone, for tests in this process and for benchmarks that start real ones. Cases run in a folder that `lay` has filled.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

CONFIG = str(Path(__file__).parents[1] / "configs" / "shapes.py")
SMOKE, PAPER = f"--config={CONFIG}:smoke", f"--config={CONFIG.replace('shapes', 'm_64e')}"


@dataclass(frozen=True)
class Case:
    """A module, its arguments, a part of the one message on standard error; the exit code is 2.

    Attributes:
        env: variables; None takes one away.
    """

    module: str
    arguments: tuple[str, ...]
    message: str
    env: dict[str, str | None] = field(default_factory=dict)


def lay(place: Path) -> None:
    """Fills a folder with what the cases name."""
    (place / "file").write_text("a file\n")
    (place / "folder").mkdir()
    (place / "latin1.txt").write_bytes("un cœur\né\n".encode("latin-1", errors="replace"))
    (place / "empty.txt").write_text("\n \n")
    (place / "prompts.txt").write_text("a circle\n")
    os.mkfifo(place / "pipe")
    (place / "run").mkdir()
    (place / "run" / "config.json").write_text('{"name": ')
    (place / "bytes.py").write_bytes(b"\xff\xfe\x00")
    (place / "raises.py").write_text('raise RuntimeError("\\x1b[31mred")\n')
    (place / "images").mkdir()


def _of(
    module: str, *cases: tuple[tuple[str, ...], str] | tuple[tuple[str, ...], str, dict[str, str | None]]
) -> list[Case]:
    return [Case(module, *case) for case in cases]


LONG = "x" * 300
DRAW = ("--workdir=nowhere", "--out=o", "--prompt=a")
TPU = ("--name=pod", "--project=p", "--zone=z")
JOB = (*TPU, f"--config={CONFIG}", "--workdir=gs://bucket/run", "--dry_run")
CASES = [
    *_of(
        "ec_dit.main",
        ((SMOKE,), "--workdir=DIR is needed"),
        ((SMOKE, "--workdir="), "it is empty; was it a variable of the shell that is not set?"),
        ((SMOKE, "--workdir=file"), "file"),
        ((SMOKE, "--workdir=file/run"), "file"),
        ((SMOKE, f"--workdir={LONG}"), "File name too long"),
        ((SMOKE, "--workdir=s3://bucket/run"), "only gs:// buckets are supported"),
        ((SMOKE, "--workdir=gs:/bucket/run"), "buckets are written gs://BUCKET/FOLDER"),
        ((SMOKE, "--workdir=gs://"), "names no bucket"),
        ((SMOKE, "--workdir=~nobody-of-that-name/run"), "~nobody-of-that-name"),
        ((SMOKE, "--workdir=w", "extra"), "unexpected argument 'extra'"),
        ((SMOKE, "--wrkdir=w"), "Did you mean: workdir"),
        ((SMOKE, "--workdir=w", "--num_processes=2"), "missing: JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"),
        ((SMOKE, "--workdir=w", "--num_processes=two"), "--num_processes=two"),
        (
            (SMOKE, "--workdir=w", "--coordinator=here", "--num_processes=2", "--process_id=0"),
            "is no place among several",
        ),
        (
            (SMOKE, "--workdir=w", "--coordinator=h:70000", "--num_processes=2", "--process_id=0"),
            "is no place among several",
        ),
        ((SMOKE, "--workdir=w", "--coordinator=h:1", "--num_processes=2", "--process_id=2"), "numbered from 0 to 1"),
        ((SMOKE, "--workdir=w", "--heartbeat_seconds=1"), "--heartbeat_seconds=1"),
        ((SMOKE, "--workdir=w"), "JAX_NUM_PROCESSES", {"JAX_PROCESS_ID": "0"}),
        (
            (SMOKE, "--workdir=w"),
            "is no place among several",
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "one"},
        ),
        (
            (SMOKE, "--workdir=w"),
            "SLURM_STEP_NUM_TASKS='abc' is no number",
            {"SLURM_STEP_NUM_TASKS": "abc", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n1"},
        ),
        (
            (SMOKE, "--workdir=w"),
            "SLURM_STEP_NODELIST='' is not understood",
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": ""},
        ),
        (("--config=nowhere.py", "--workdir=w"), "there is no config file nowhere.py"),
        (("--config=~/nowhere.py", "--workdir=w"), "there is no config file"),
        (("--config=folder", "--workdir=w"), "folder is a folder"),
        (("--config=pipe", "--workdir=w"), "there is no config file pipe"),
        (("--config=bytes.py", "--workdir=w"), "bytes.py is no config file"),
        (("--config=raises.py", "--workdir=w"), "raises.py is no config file"),
        ((f"--config={LONG}.py", "--workdir=w"), "File name too long"),
        ((f"--config={CONFIG}:smok", "--workdir=w"), "smok"),
        ((SMOKE, "--workdir=w", "--config.nothing=1"), "unknown key --config.nothing"),
        ((SMOKE, "--workdir=w", "--config.model=1"), "--config.model"),
        ((SMOKE, "--workdir=w", "--config.train.steps=1e3"), "--config.train.steps=1e3"),
        ((SMOKE, "--workdir=w", "--config.train.steps=1.5"), "--config.train.steps=1.5"),
        ((SMOKE, "--workdir=w", "--config.optimizer.learning_rate=nan"), "must be a finite number"),
        ((SMOKE, "--workdir=w", "--config.mesh.data=3"), "covers 3 devices"),
    ),
    *_of(
        "ec_dit.sample",
        ((), "--workdir=DIR is needed"),
        (("--workdir=nowhere", "--prompt=a"), "--out=DIR is needed"),
        (("--workdir=nowhere", "--out=o"), "nothing to draw"),
        (("--workdir=nowhere", "--out=", "--prompt=a"), "--out=: it is empty"),
        (DRAW, "nowhere is no workdir of a run"),
        (("--workdir=file", "--out=o", "--prompt=a"), "file"),
        (("--workdir=run", "--out=o", "--prompt=a"), "config"),
        (("--workdir=gs:bucket", "--out=o", "--prompt=a"), "buckets are written gs://BUCKET/FOLDER"),
        (("--workdir=nowhere", "--out=o", "--prompts_file=nowhere.txt"), "there is no prompts file"),
        (("--workdir=nowhere", "--out=o", "--prompts_file=folder"), "is no plain file"),
        (("--workdir=nowhere", "--out=o", "--prompts_file=pipe"), "is no plain file"),
        (("--workdir=nowhere", "--out=o", "--prompts_file=latin1.txt"), "is not UTF-8"),
        (("--workdir=nowhere", "--out=o", "--prompts_file=empty.txt"), "nothing to draw"),
        (("--workdir=nowhere", "--out=o", "--prompts_file=s3://b/x"), "only gs:// buckets are supported"),
        (("--workdir=nowhere", "--out=o", "--prompt=a\udcff"), "no valid Unicode"),
        ((*DRAW, "--num=0"), "--num=0"),
        ((*DRAW, "--num=99999999999999"), "--num=99999999999999"),
        ((*DRAW, "--num=10000000", "--prompt=b"), "a call draws 10,000,000 at most"),
        ((*DRAW, "--batch_size=0"), "--batch_size=0"),
        ((*DRAW, "--batch_size=1000000000"), "--batch_size=1000000000"),
        ((*DRAW, "--shape=0x0"), "give height x width in pixels"),
        ((*DRAW, "--shape=64"), "give height x width in pixels"),
        ((*DRAW, "--shape=1000000x64"), "give height x width in pixels"),
        ((*DRAW, "--shape=\uff16\uff14x64"), "give height x width in pixels"),
        ((*DRAW, "--guidance=nan"), "--guidance=nan: it must be a finite number"),
        ((*DRAW, "--guidance=inf"), "--guidance=inf: it must be a finite number"),
        ((*DRAW, "--guidance=-1"), "--guidance=-1"),
        ((*DRAW, "--guidance_interval=a,b"), "0 <= low < high <= 1"),
        ((*DRAW, "--guidance_interval=0.9,0.1"), "0 <= low < high <= 1"),
        ((*DRAW, "--guidance_interval=nan,1"), "0 <= low < high <= 1"),
        ((*DRAW, "--guidance_interval=0.1"), "0 <= low < high <= 1"),
        ((*DRAW, "--time_shift=nan"), "--time_shift=nan: it must be a finite number"),
        ((*DRAW, "--capacity_factor=inf"), "--capacity_factor=inf: it must be a finite number"),
        ((*DRAW, "--step=-1"), "--step=-1"),
        ((*DRAW, "--steps=0"), "--steps=0"),
        ((*DRAW, "--seed=-1"), "--seed=-1"),
        (
            (*DRAW, "--sampler=eular"),
            "--sampler=eular: choose one of euler, heun, ddim, dpmpp_2m (did you mean euler?)",
        ),
        ((*DRAW, "--spacing=trialing"), "choose one of linspace, leading, trailing"),
        ((*DRAW, "--promt=a"), "Did you mean: prompt"),
        (("--workdir=nowhere", "--out=o", "--prompt"), "Missing value for flag --prompt"),
    ),
    *_of(
        "ec_dit.evaluate",
        ((), "give either --workdir=DIR, the folder of a run, or --images=DIR, a folder of pictures"),
        (("--images=images",), "--out=DIR is needed for the scores"),
        (("--images=images", "--out=o"), "--suite=NAME is needed where there is no --workdir"),
        (("--images=images", "--out=images/o", "--suite=fid"), "lies in --images"),
        (("--images=images", "--out=o", "--suite=fid", "--steps=5"), "--steps says how a run draws"),
        (("--workdir=nowhere", "--suite=fid:ema=false"), "the options every and ema are for training"),
        (("--images=nowhere", "--out=o", "--suite=fid"), "FID's Inception"),
        (("--images=nowhere", "--out=o", "--suite=check"), "the tool's prompt file is needed: --prompts=PATH"),
        (("--images=nowhere", "--out=o", "--suite=shapes"), "scores models trained on the shapes data"),
        (
            ("--images=nowhere", "--out=o", "--suite=val_loss"),
            "suite val_loss needs the model itself: give --workdir=DIR",
        ),
        (("--images=nowhere", "--workdir=nowhere"), "give either --workdir=DIR"),
        (("--compare=a.json,b.json",), "there is no score"),
        (("--workdir=nowhere", "--inception=x"), "none of shapes has an option inception"),
        (("--workdir=nowhere", "--suite=fid,fid"), "give figures of the same name, eval/fid"),
        (("--workdir=nowhere", "--suite=fid:resize=tf"), "option resize=tf: choose one of"),
        (("--workdir=nowhere",), "nowhere is no workdir of a run"),
        (("--workdir=nowhere", "--suite=shapes:images_per_task=0"), "images_per_task=0: must be at least 1"),
        (("--workdir=nowhere", "--suite=shapes:novle=true"), "did you mean novel"),
        (("--workdir=run",), "config"),
        (("--workdir=nowhere", "--suit=shapes"), "Did you mean: suite"),
        (("--workdir=nowhere", "--zzzzzzzz"), "--help lists those there are"),
    ),
    *_of(
        "ec_dit.routing",
        ((), "--workdir=DIR is needed"),
        (("--workdir=nowhere", "--prompt=a"), "--out=DIR is needed"),
        (("--workdir=nowhere", "--out=o"), "nothing to draw"),
        (("--workdir=nowhere", "--out=o", "--prompt=a", "--noplots"), "nowhere is no workdir of a run"),
        (("--workdir=nowhere", "--out=file", "--prompt=a", "--noplots"), "file"),
        (("--workdir=nowhere", "--out=o", "--prompt=a", "--shape=8"), "--shape=8: give height x width"),
        (("--workdir=nowhere", "--out=o", "--split=train", "--most=0"), "--most=0"),
    ),
    *_of(
        "ec_dit.report",
        ((), "--workdir=DIR is needed"),
        (("--workdir=nowhere",), "--out=FILE.html is needed"),
        (("--workdir=nowhere", "--out=file"), "must end in .html"),
        (("--workdir=nowhere", "--out=file/o.html"), "file"),
    ),
    *_of(
        "ec_dit.prepare",
        ((), "--source=... is needed"),
        (("--source=shapes",), "--out=... is needed"),
        (("--source=shapes", "--out=file"), "file"),
        (("--source=shapes", "--out=file/set"), "file"),
        (("--source=shapes", f"--out={LONG}"), "File name too long"),
        (("--source=shapes", "--out=gs:bucket/set"), "buckets are written gs://BUCKET/FOLDER"),
        (("--source=folder", "--path=", "--out=o"), "--path=: it is empty"),
        (("--source=folder", "--path=nowhere", "--out=o"), "nowhere"),
        (("--source=folder", "--path=images", "--out=o"), "images"),
        (("--source=webdataset", "--path=pipe", "--out=o"), "pipe"),
        (("--source=parquet", "--path=file", "--out=o"), "file"),
        (("--source=coco", "--path=images", "--option=annotations=file", "--out=o"), "file"),
        (("--source=tfds:nothing_of_that_name", "--out=o"), "nothing_of_that_name"),
        (("--source=tfds:", "--out=o"), "tfds"),
        (("--source=shapes", "--out=o", "--max_skipped_share=nan"), "it must be a finite number"),
        (("--source=shapes", "--out=o", "--max_aspect=inf"), "it must be a finite number"),
        (("--source=shapes", "--out=o", "--option=cells"), "cells"),
        (("--source=shapes", "--out=o", "--option=cells=1e400"), "cells"),
        (("--source=shapes", "--out=o", "--num_train=3", "--tokenizer=file"), "file"),
        (("--source=shapes", "--out=o", "--num_train=3", "--tokenizer=folder"), "folder"),
        (("--source=shapes", "--out=o", "--vae=folder", "--text_encoder=folder"), "folder"),
    ),
    *_of(
        "ec_dit.convert",
        ((), "--from=... is needed"),
        (("--from=workdir", "--path=nowhere", "--out=o"), "nowhere is no workdir of a run"),
        (("--from=pixart", "--path=nowhere", "--out=o"), "nowhere"),
        (("--from=pixart", "--path=folder", "--out=o"), "folder"),
        (("--from=safetensors", "--path=file", "--out=o"), "config.json is missing"),
        (("--from=workdir", "--path=run", "--out=file"), "file"),
        (("--from=workdir", "--path=run", "--out=o", "--noise=nan"), "--noise=nan: it must be a finite number"),
        (("--from=workdir", "--path=run", "--out=o", "--step=-1"), "--step=-1"),
        (("--from=workdir", "--path=run", "--out=o", "--mesh=a,b,c,d"), "--mesh=a,b,c,d: give 4 whole numbers"),
        (("--from=workdir", "--path=run", "--out=o", "--mesh=²,1,1,1"), "give 4 whole numbers"),
        (("--from=workdir", "--path=run", "--out=o", "--mesh=--1,1,1,1"), "give 4 whole numbers"),
    ),
    *_of(
        "ec_dit.plan",
        ((), "--config=FILE is needed"),
        ((SMOKE,), "--topology=... is needed"),
        ((PAPER, "--topology=v9:1x1"), "v9"),
        ((PAPER, "--json="), "--json=: it is empty"),
        (("--config=~/nowhere.py",), "there is no config file"),
    ),
    *_of(
        "launch.create",
        ((), "is needed"),
        ((*TPU, "--topology=v9:1x1"), "--topology=v9:1x1: write it as v5p:8x8x8"),
        ((*TPU, "--topology=v5e:4x4x4"), "v5e has the shapes 1x1, 2x2"),
        (("--name=Pod", *TPU[1:], "--topology=v5e:4x4"), "lower-case letters"),
        (("--config=folder", *TPU), "folder is a folder"),
    ),
    *_of(
        "launch.run",
        ((*JOB[:-2], "--dry_run"), "--workdir=gs://BUCKET/DIR is needed"),
        ((*JOB[:-2], "--workdir=~/run", "--dry_run"), "give a folder in a bucket"),
        ((*JOB, "--", "--config.train.steps=many"), "--config.train.steps=many"),
        ((*JOB, "--env=NOT_SET_ANYWHERE"), "it has no value here"),
        ((*JOB, "--env=a b=c"), "no name of a variable"),
        ((*JOB, "--code=svn://x"), "choose wheel, or git+"),
        ((*JOB, "--", "--workdir=x"), "stands behind `--`"),
    ),
    *_of(
        "launch.watch",
        ((*JOB, "--topology=v5e:4x4", "--poll_seconds=nan"), "it must be a finite number"),
        ((*JOB, "--topology=v5e:4x4", "--stall_minutes=inf"), "it must be a finite number"),
        ((*JOB[:-1], "--topology=v5e:4x4", "--journal=folder", "--", "--config.data.path=gs://b/d"), "folder"),
    ),
    *_of(
        "launch.logs",
        ((*TPU, "--saved"), "is needed with --saved"),
        ((*TPU, "--saved", "--workdir=x"), "folder in a bucket"),
    ),
    *_of("launch.status", ((*TPU, "--workdir=x"), "give a folder in a bucket")),
    *_of("launch.profile", (TPU, "--workdir=gs://BUCKET/DIR is needed"), ((*TPU, "--workdir=x"), "folder in a bucket")),
    *_of(
        "launch.delete", (("--name=pod",), "is needed", {"CLOUDSDK_CORE_PROJECT": None, "CLOUDSDK_COMPUTE_ZONE": None})
    ),
]
