"""What is shipped to the hosts of a slice: host.sh, the config, the code, the training command and its environment.

It all goes through the run's bucket, so that 128 hosts load it at once, and stays there as the record of what ran.
"""

import datetime as dt
import hashlib
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ec_dit.core.errors import UserError
from launch import gcloud, wheel

_ROOT = '"${EC_DIT_ROOT:-/var/tmp/ec_dit}"'  # on a host; the same for all who log in
_REPORT = re.compile(r"ec_dit host=(\S+) job=(\S+) state=(none|running|exited)(?: code=(\w+))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The port of JAX's coordinator: the default, 8482, is closed by the firewall of some slices (github.com/jax-ml/jax/issues/35905).
_ENVIRONMENT = {"JAX_COORDINATOR_PORT": "8476", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}


@dataclass(frozen=True)
class Job:
    """A training command for every host of a slice.

    Attributes:
        config: file with the config; argument: what stands behind its colon.
        arguments: the rest of the command line of ec_dit.main.
        workdir: a gs:// path.
        env: exported before; values are never printed, but lie in the bucket.
        code: wheel (of the code that runs here), or what pip takes in its place, such as git+https://HOST/REPOSITORY@REVISION.
    """

    config: Path
    argument: str
    arguments: tuple[str, ...]
    workdir: str
    env: Mapping[str, str]
    code: str

    @property
    def id(self) -> str:
        """The same for the same config, arguments, workdir, variables and --code; letters, digits and dashes."""
        parts = [
            self.config.name,
            self.config.read_text(encoding="utf-8"),
            self.argument,
            *self.arguments,
            self.workdir,
            self.code,
        ]
        name = re.sub(r"[^a-z0-9]+", "-", self.config.stem.lower()).strip("-")
        return f"{name}-{hashlib.sha256(chr(0).join([*parts, *sorted(self.env)]).encode()).hexdigest()[:10]}"

    @property
    def command(self) -> list[str]:
        """What Python runs on every host, in the job's folder."""
        config = f"--config={self.config.name}" + (f":{self.argument}" if self.argument else "")
        return ["-m", "ec_dit.main", config, f"--workdir={self.workdir}", *self.arguments]

    def script(self, install: str) -> str:
        """job.sh, which host.sh reads; `install` is a file in the job's folder, or what pip takes."""
        requirement = f"./{install}[tpu,gcs]" if install.endswith(".whl") else f"ec-dit[tpu,gcs] @ {install}"
        lines = ["# shellcheck shell=bash disable=SC2034,SC2016"]
        lines += [f"JOB_WORKDIR={shlex.quote(self.workdir)}", f"JOB_INSTALL=({shlex.quote(requirement)})"]
        lines += [f"JOB_COMMAND=({shlex.join(self.command)})"]
        return "\n".join(lines) + "\n"

    def exports(self, hide: bool = False) -> str:
        """env.sh, in which installing and training run; `hide` leaves out the values of `env`, to be printed."""
        found = {**_ENVIRONMENT, **(dict.fromkeys(self.env, "***") if hide else self.env)}
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in found.items())

    def name(self, attempt: int) -> str:
        """What hosts call it; every start has a name of its own."""
        return f"{self.id}.{attempt}"


def check_workdir(workdir: str) -> None:
    """Raises UserError unless it is a folder in a bucket."""
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+/\S+", workdir):
        raise UserError(
            f"--workdir={workdir}: give a folder in a bucket, gs://BUCKET/DIR; disks of a slice vanish with it."
        )


def check(workdir: str, env: Mapping[str, str], code: str) -> None:
    """Raises UserError for what would fail on the hosts, or show a password."""
    check_workdir(workdir)
    if wrong := [name for name in env if not _NAME.fullmatch(name)]:
        raise UserError(f"--env={wrong[0]}=...: no name of a variable.")
    if re.search(r"://[^/@]*:[^/@]*@", code):
        raise UserError("--code=...: the address holds a password, which would be printed and stored; use one without.")
    if code != "wheel" and not code.startswith("git+"):
        raise UserError(f"--code={code}: choose wheel, or git+https://HOST/REPOSITORY@REVISION.")


def ship(job: Job, run: gcloud.Runner) -> str:
    """Copies all that hosts need to the bucket, and returns the folder there."""
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
    folder = f"{job.workdir.rstrip('/')}/launch/{job.id}-{stamp}"
    with tempfile.TemporaryDirectory(
        prefix="ec_dit-"
    ) as local:  # values of variables lie in it: it goes, in a dry run too
        install = wheel.make(Path(local)).name if job.code == "wheel" else job.code
        files = {
            "host.sh": Path(__file__).with_name("host.sh").read_text(encoding="utf-8"),
            "job.sh": job.script(install),
        }
        for name, text in (
            files | {"env.sh": job.exports(), job.config.name: job.config.read_text(encoding="utf-8")}
        ).items():
            path = Path(local, name)
            path.write_text(text, encoding="utf-8")
            path.chmod(0o600)
        run(gcloud.storage_copy([str(path) for path in sorted(Path(local).iterdir())], f"{folder}/"))
    return folder


def start_command(folder: str, name: str) -> str:
    """The shell command that loads a shipped job onto a host and starts it by `name`; running it again changes nothing."""
    target = f"{_ROOT}/jobs/{name}"
    load = f"gcloud storage cp --quiet {shlex.quote(folder + '/*')} {target}/"
    return f"mkdir -p {target} && {load} && bash {target}/host.sh start {name}"


def host_command(*words: str) -> str:
    """The shell command for what is on a host already: status, stop, log, trace."""
    nothing = 'echo "ec_dit host=$(hostname) job=none state=none"'
    return f"if [ -e {_ROOT}/host.sh ]; then bash {_ROOT}/host.sh {shlex.join(words)}; else {nothing}; fi"


@dataclass(frozen=True)
class Report:
    """What a host says of its job.

    Attributes:
        job: its name, `none` before the first.
        state: none, running or exited.
        code: of the exit; `killed` where nobody noted it.
    """

    host: str
    job: str
    state: str
    code: str = ""


def parse_reports(output: str) -> list[Report]:
    """The lines of `host.sh status` among whatever else was printed; of a host that answered twice, the last."""
    found = (Report(*m.groups(default="")) for line in output.splitlines() if (m := _REPORT.search(line)))
    return list({report.host: report for report in found}.values())


def collect_env(flags: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """--env=NAME=VALUE, or --env=NAME with the value that NAME has here.

    Raises:
        UserError: if NAME has no value here.
    """
    env = {}
    for flag in flags:
        name, equals, value = flag.partition("=")
        if not equals and name not in environ:
            raise UserError(f"--env={name}: it has no value here; write --env={name}=VALUE.")
        env[name] = value if equals else environ[name]
    return env
