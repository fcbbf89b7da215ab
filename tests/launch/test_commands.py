"""The launcher's commands one by one: what they print in a dry run, and what they do to hosts that are played."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ec_dit.core.errors import UserError
from launch import create, delete, job, logs, profile, run, slices, status
from launch.gcloud import Runner, Tpu
from tests.launch.conftest import POD, SLICE, WORKDIR

HERE = Path(__file__).parent
SHELLCHECK = str(Path(sys.executable).with_name("shellcheck"))  # of the environment that runs the tests
ACTIVE = [["ACTIVE", 10_000]]
CODE = "--code=git+https://host/repo@v1"
NASTY = """--config.name=it's "quoted" $HOME `id` \\ ; rm -rf * & \t é\nnext line"""


@pytest.mark.parametrize(
    ("topology", "kind", "runtime", "chips", "hosts"),
    [
        ("v4:2x2x1", ["--accelerator-type=v4-8"], "tpu-ubuntu2204-base", 4, 1),
        ("v4:4x4x8", ["--accelerator-type=v4-256"], "tpu-ubuntu2204-base", 128, 32),
        ("v4:4x8x4", ["--type=v4", "--topology=4x8x4"], "tpu-ubuntu2204-base", 128, 32),
        ("v5p:4x8x8", ["--accelerator-type=v5p-512"], "v2-alpha-tpuv5", 256, 64),
        ("v5p:8x8x8", ["--accelerator-type=v5p-1024"], "v2-alpha-tpuv5", 512, 128),
        ("v5e:1x1", ["--accelerator-type=v5litepod-1"], "v2-alpha-tpuv5-lite", 1, 1),
        ("v5e:2x4", ["--accelerator-type=v5litepod-8"], "v2-alpha-tpuv5-lite", 8, 1),
        ("v5litepod:4x4", ["--accelerator-type=v5litepod-16"], "v2-alpha-tpuv5-lite", 16, 4),
        ("v6e:2x4", ["--accelerator-type=v6e-8"], "v2-alpha-tpuv6e", 8, 1),
        ("v6e:4x4", ["--accelerator-type=v6e-16"], "v2-alpha-tpuv6e", 16, 4),
    ],
)
def test_slices_are_named_as_google_cloud_names_them(topology, kind, runtime, chips, hosts):
    assert slices.find(topology) == slices.Slice(tuple(kind), runtime, chips, hosts)


@pytest.mark.parametrize("topology", ["v5p:4x16x4", "v5p:8x8", "v7:2x2x1", "v5e:3x3", "v4:0x2x2", "v4"])
def test_slices_that_are_not_offered(topology):
    with pytest.raises(UserError, match=r"topology"):
        slices.find(topology)


def test_every_paper_config_names_a_slice():
    from ec_dit.config import overrides
    from ec_dit.models.paper import PAPER

    for name in PAPER:
        topology = overrides.load(Path("configs") / f"{name}.py").topology
        assert slices.find(topology).hosts > 1


def printed(capsys, module, *arguments):
    assert module.main([module.__name__, *arguments, "--dry_run"]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith("#")]


def test_create_prints_the_exact_command(capsys):
    where = ("--config=configs/m_64e.py", "--project=proj", "--zone=us-east5-a")
    prefix = (
        "gcloud compute tpus queued-resources create m-64e --node-id=m-64e --project=proj --zone=us-east5-a --quiet "
    )
    prefix += "--accelerator-type=v5p-1024 --runtime-version=v2-alpha-tpuv5"
    assert printed(capsys, create, *where) == [f"{prefix} --spot"]
    assert printed(capsys, create, *where, "--mode=reserved", "--internal_ips") == [
        f"{prefix} --reserved --internal-ips"
    ]
    assert printed(capsys, create, *where, "--mode=on_demand", "--label=team=x") == [f"{prefix} --labels=team=x"]


def test_project_and_zone_come_from_the_environment_too(capsys, monkeypatch):
    monkeypatch.setenv("CLOUDSDK_CORE_PROJECT", "mine")
    monkeypatch.setenv("CLOUDSDK_COMPUTE_ZONE", "here")
    (line,) = printed(capsys, delete, "--name=pod")
    assert line == "gcloud compute tpus queued-resources delete pod --project=mine --zone=here --quiet --force"


def test_every_command_is_one_that_gcloud_knows(played, capsys, tmp_path):
    played.plan(ACTIVE)
    commands = []
    for module, arguments in (
        (create, (*SLICE, "--mode=reserved", "--valid_until_duration=6h", "--service_account=s", "--network=n")),
        (run, (*POD, WORKDIR, CODE)),
        (status, (*POD, WORKDIR)),
        (logs, (*POD, "--lines=3")),
        (logs, (*POD, "--saved", WORKDIR)),
        (profile, (*POD, WORKDIR, "--internal_ips", f"--out={tmp_path / 't'}")),
        (delete, POD),
    ):
        commands += printed(capsys, module, *arguments)
    assert len(commands) >= 11
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "gcloud"
        answer = played.gcloud(words)
        assert answer.code != 2, answer.errors  # as gcloud itself answers arguments it does not know


def test_secrets_are_neither_printed_nor_left_behind(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKEN", "s3cret")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = f"--config={HERE.parents[1] / 'configs/shapes.py'}"
    assert run.main(["run", config, *POD[1:], WORKDIR, CODE, "--env=TOKEN", "--env=OTHER=hidden too", "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert "export TOKEN='***'" in output
    assert "s3cret" not in output and "hidden" not in output


def test_job_script_is_safe_for_any_argument(tmp_path):
    config = tmp_path / "a config.py"
    config.write_text("")
    made = job.Job(config, "", (NASTY,), "gs://bucket/run", {"VALUE": NASTY}, "git+https://host/repo@v1")
    (tmp_path / "job.sh").write_text(made.script(made.code))
    (tmp_path / "env.sh").write_text(made.exports())
    show = 'source ./job.sh; source ./env.sh; printf "%s\\0" "${JOB_COMMAND[@]}" "${JOB_INSTALL[@]}" "$JOB_WORKDIR" "$VALUE"'
    done = subprocess.run(["bash", "-c", show], cwd=tmp_path, capture_output=True, check=True)
    *command, install, workdir, value = done.stdout.decode().split("\0")[:-1]
    assert command == ["-m", "ec_dit.main", "--config=a config.py", "--workdir=gs://bucket/run", NASTY]
    assert (install, workdir, value) == ("ec-dit[tpu,gcs] @ git+https://host/repo@v1", "gs://bucket/run", NASTY)
    subprocess.run([SHELLCHECK, str(tmp_path / "job.sh")], check=True)


def test_shellcheck_finds_nothing():
    subprocess.run([SHELLCHECK, str(HERE.parents[1] / "launch" / "host.sh")], check=True)


def test_a_job_that_ends_while_it_is_looked_at_was_not_killed(tmp_path):
    """Its code comes, and its process goes, between two looks: here while host.sh reads the pid, from a pipe."""
    folder = tmp_path / "jobs" / "job.1"
    folder.mkdir(parents=True)
    (tmp_path / "current").write_text("job.1\n")
    os.mkfifo(folder / "pid")
    ended = subprocess.Popen(["true"])
    ended.wait()
    script = HERE.parents[1] / "launch" / "host.sh"
    words = ["bash", str(script), "status"]
    looking = subprocess.Popen(
        words, env=os.environ | {"EC_DIT_ROOT": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    )
    with (folder / "pid").open("w") as pid:  # opens when host.sh reads
        (folder / "code").write_text("0\n")
        pid.write(f"{ended.pid} {Path('/proc/sys/kernel/random/boot_id').read_text()}")
    assert looking.communicate(timeout=30)[0].endswith("job=job.1 state=exited code=0\n")


@pytest.mark.slow
def test_run_status_logs_profile_delete(stage, monkeypatch):
    """On hosts that run host.sh, whose training saves one checkpoint and goes on without end."""
    temporary = stage.folder / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    stage.plan(ACTIVE, stalls=1)
    assert stage.call("create", *SLICE)[0] == 0
    assert "w-1: none none" in stage.call("status", *POD)[1]
    overrides = ("--", "--config.train.steps=300", f"--config.log.prompts=({NASTY!r},)")
    code, output = stage.call("run", *POD, WORKDIR, "--env=NAME=it's", *overrides)
    assert code == 0, output
    assert list(temporary.iterdir()) == []
    assert "ec_dit host=w-0 job=shapes-" in output and "state=running" in output
    deadline = time.monotonic() + 30
    while "newest checkpoint: step" not in (state := stage.call("status", *POD, WORKDIR)[1]):
        assert time.monotonic() < deadline, state
    assert state.splitlines()[0] == "pod: ACTIVE"
    started = stage.lines("trained.jsonl")[0]["arguments"]
    assert started[2:] == ["--config=shapes.py", "--workdir=gs://bucket/run", *overrides[1:]]
    wheels = list(stage.folder.glob("gs/bucket/run/launch/*/*.whl"))
    assert len(wheels) == 1  # shipped through the bucket
    assert "step 1/300" in stage.call("logs", *POD)[1]
    out = stage.folder / "traces"
    code, output = stage.call("profile", *POD, WORKDIR, f"--out={out}")
    assert code == 0, output
    assert "xprof --logdir" in output
    assert (out / "trace/plugins/profile/now/w-0.xplane.pb").read_text() == "a trace"
    assert stage.call("delete", *POD)[0] == 0
    assert "there is nothing to delete" in stage.call("delete", *POD)[1]
    assert "no such queued resource" in stage.call("status", *POD)[1]


def test_mistakes(capsys, monkeypatch):
    for name in ("CLOUDSDK_CORE_PROJECT", "CLOUDSDK_COMPUTE_ZONE"):
        monkeypatch.delenv(name, raising=False)
    job_flags = ["--name=pod", "--project=p", "--zone=z", "--config=configs/shapes.py"]
    for module, arguments, message in (
        (create, ["--config=configs/m_64e.py"], "--project (or CLOUDSDK_CORE_PROJECT), --zone"),
        (create, ["--config=configs/m_64.py", "--project=p", "--zone=z"], "did you mean configs/m_64e.py"),
        (create, ["--config=configs/shapes.py", "--project=p", "--zone=z"], "names no topology: give --topology"),
        (create, ["--name=Pod", "--project=p", "--zone=z"], "--name=Pod: lower-case letters"),
        (run, job_flags, "--workdir=gs://BUCKET/DIR is needed"),
        (run, [*job_flags, "--workdir=/data/run"], "give a folder in a bucket"),
        (run, [*job_flags, WORKDIR, "--", "--config.train.step=5"], "unknown key --config.train.step"),
        (run, [*job_flags, WORKDIR, "--", "--workdir=gs://b/x"], "stands behind `--`: give it before"),
        (run, [*job_flags, WORKDIR, "--env=1X=3"], "no name of a variable"),
        (run, [*job_flags, WORKDIR, "--env=NOT_SET_ANYWHERE"], "it has no value here"),
        (run, [*job_flags, WORKDIR, "--code=git+https://me:secret@host/repo"], "the address holds a password"),
        (run, [*job_flags, WORKDIR, "--code=weel"], "choose wheel, or git+https"),
        (run, [*job_flags, WORKDIR, "--", "--config.train.batch_size=many"], "batch_size"),
        (run, [*job_flags, WORKDIR, "--", "--config.moe.routing=dence"], "did you mean dense"),
        (run, [*job_flags, WORKDIR, "--", "--nosuchflag=1"], "nosuchflag"),
        (run, [*job_flags[:3], "--config=configs/m_64e.py", WORKDIR], "--config.data.source=synthetic"),
    ):
        assert module.main([module.__name__, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_gcloud_that_hangs_or_is_missing(tmp_path, monkeypatch):
    hanging = tmp_path / "gcloud"
    hanging.write_text("#!/bin/sh\nsleep 60 & echo $! > child; wait\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    runner = Runner(dry_run=False, say=print)
    with pytest.raises(UserError, match=r"did not end in time"):
        runner(Tpu("pod", "p", "z").describe(), timeout=1)
    child = int((tmp_path / "child").read_text())
    time.sleep(0.2)
    status_of_child = Path(f"/proc/{child}/stat")
    assert not status_of_child.exists() or status_of_child.read_text().split()[2] == "Z"
    with pytest.raises(UserError, match=r"is not installed: https"):
        runner(["no-such-program"])
