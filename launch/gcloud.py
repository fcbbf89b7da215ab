"""Every gcloud command that the launcher uses, each beside the page of its reference, and the one place that runs them.

The reference pages are under https://cloud.google.com/sdk/gcloud/reference/. All commands are of the general release track.
"""

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ec_dit.core.errors import UserError
from launch.slices import Slice

GONE = ("SUSPENDED", "FAILED")  # final: a queued resource in these states never becomes active again
Mode = Literal["spot", "reserved", "on_demand"]  # how a slice is paid for
# What trying again does not mend.
_PERMANENT = re.compile(
    r"PERMISSION_DENIED|INVALID_ARGUMENT|UNAUTHENTICATED|SERVICE_DISABLED|has not been used in project|is not supported"
    r"|was not found in zone|Limit: 0\b|unrecognized arguments|do not currently have an active account|Reauthentication"
    r"|must specify|billing|does not have storage|not found: 404",
    re.IGNORECASE,
)


_PERMANENT_CODES = (3, 7, 16)  # invalid argument, permission denied, unauthenticated


class GcloudError(UserError):
    """A gcloud command failed.

    Attributes:
        missing: what it was about does not exist.
        permanent: trying again would not help.
    """

    def __init__(self, command: Sequence[str], code: int | None, output: str):
        lines = [line for line in output.strip().splitlines() if line.strip()] or ["(no output)"]
        errors = [line for line in lines if line.startswith("ERROR:")]
        ended = "did not end in time" if code is None else f"failed with code {code}"
        super().__init__(f"{' '.join(command[:5])} ... {ended}: {' '.join((errors or lines)[-4:])[:1000]}")
        self.missing = "NOT_FOUND" in output or "matched no objects" in output
        # Whatever 128 hosts print beside gcloud's own errors proves nothing.
        told = " ".join(errors) if "ssh" in command else output
        self.permanent = not self.missing and is_permanent(told)


def is_permanent(message: str, code: int = 0) -> bool:
    """Whether an error of Google Cloud is one that trying again does not mend; `code` as google.rpc.Code has it."""
    return code in _PERMANENT_CODES or bool(_PERMANENT.search(message))


class Ended(NamedTuple):
    """How a program ended: exit code, None where it did not end in time, and what it printed."""

    code: int | None
    output: str = ""
    errors: str = ""


def execute(command: Sequence[str], timeout: float | None, show: bool) -> Ended:
    """Runs a program to its end; arguments as `Runner` takes them.

    Raises:
        UserError: if it is not installed.
    """
    pipe = None if show else subprocess.PIPE
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,  # ssh would swallow it
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            start_new_session=not show,
        )
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not installed: https://cloud.google.com/sdk/docs/install") from error
    code: int | None = None
    try:
        output, errors = process.communicate(timeout=timeout)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the ssh processes it started
        output, errors = process.communicate()
    return Ended(code, output or "", errors or "")


class Runner:
    """Runs commands, or only prints them.

    Args:
        dry_run: print what would run, exactly, and run nothing.
        say: prints a line for people.
    """

    def __init__(self, dry_run: bool, say: Callable[[str], None]):
        self.dry_run, self._say = dry_run, say

    def __call__(self, command: Sequence[str], *, timeout: float | None = 300, show: bool = False) -> str:
        """The command's output; empty in a dry run.

        Args:
            timeout: seconds, after which the command and its children are killed.
            show: let the output through to the terminal and return nothing.

        Raises:
            GcloudError: if it fails.
        """
        if self.dry_run:
            self._say(shlex.join(command))
            return ""
        ended = execute(command, timeout, show)
        if ended.code != 0:
            raise GcloudError(command, ended.code, f"{ended.output}\n{ended.errors}")
        return ended.output


@dataclass(frozen=True)
class Resource:
    """What a queued resource is doing.

    Attributes:
        error, code: why it failed, where it did.
        kind: accelerator type; empty where it is named otherwise.
    """

    state: str
    error: str = ""
    code: int = 0
    kind: str = ""


@dataclass(frozen=True)
class Tpu:
    """A queued resource of one node; both have the same name.

    Attributes:
        internal: reach its hosts by their internal addresses.
    """

    name: str
    project: str
    zone: str
    internal: bool = False

    @property
    def _where(self) -> tuple[str, str, str]:
        return f"--project={self.project}", f"--zone={self.zone}", "--quiet"

    def create(self, wanted: Slice, mode: Mode, extra: Sequence[str] = ()) -> list[str]:
        """Asks for the slice.

        compute/tpus/queued-resources/create
        """
        queued = ["gcloud", "compute", "tpus", "queued-resources", "create", self.name, f"--node-id={self.name}"]
        how = [] if mode == "on_demand" else [f"--{mode}"]
        return [*queued, *self._where, *wanted.kind, f"--runtime-version={wanted.runtime}", *how, *extra]

    def describe(self) -> list[str]:
        """What the queued resource is doing.

        compute/tpus/queued-resources/describe
        """
        return ["gcloud", "compute", "tpus", "queued-resources", "describe", self.name, *self._where, "--format=json"]

    def delete(self) -> list[str]:
        """Gives everything back; --force, as otherwise one that has a node is refused.

        compute/tpus/queued-resources/delete
        """
        return ["gcloud", "compute", "tpus", "queued-resources", "delete", self.name, *self._where, "--force"]

    def ssh(self, command: str, worker: str = "all") -> list[str]:
        """Runs a shell command on hosts; it must bear to run twice, since gcloud repeats it when a connection breaks.

        compute/tpus/tpu-vm/ssh
        """
        flags = ["--ssh-flag=-oServerAliveInterval=30", *(["--internal-ip"] if self.internal else [])]
        where = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", self.name, *self._where]
        return [*where, f"--worker={worker}", *flags, f"--command={command}"]


def storage_copy(sources: Sequence[str], target: str) -> list[str]:
    """Copies files to or from a bucket.

    storage/cp
    """
    return ["gcloud", "storage", "cp", "--recursive", *sources, target]


def storage_list(pattern: str) -> list[str]:
    """Names of what matches.

    storage/ls
    """
    return ["gcloud", "storage", "ls", pattern]


def storage_read(name: str) -> list[str]:
    """The content of an object.

    storage/cat
    """
    return ["gcloud", "storage", "cat", name]


def parse_resource(text: str) -> Resource:
    """What `Tpu.describe` printed.

    Raises:
        GcloudError: if it is no description.
    """
    try:
        resource = json.loads(text)
        state: dict[str, Any] = resource["state"]
        error = state.get("failedData", {}).get("error", {})
        nodes = resource.get("tpu", {}).get("nodeSpec", [{}])
        kind = nodes[0].get("node", {}).get("acceleratorType", "")
        return Resource(state["state"], error.get("message", ""), error.get("code", 0), kind)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise GcloudError(["describe"], 0, f"not understood: {text[:200]!r}") from error
