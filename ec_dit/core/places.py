"""Where a process stands among those of one run, as flags, JAX's variables or SLURM's tell it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ec_dit.core.errors import UserError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_PORTS = (61_440, 4096)  # where a SLURM job's coordinator listens: the first, and how many


@dataclass(frozen=True)
class Place:
    """Where a process stands: `coordinator` is HOST:PORT of process 0."""

    coordinator: str
    count: int
    index: int


def find(place: tuple[str | None, int | None, int | None], env: Mapping[str, str]) -> Place | None:
    """The place that arguments or environment give this process; None where they say nothing of processes.

    Args:
        place: (coordinator, count, index), each overriding its variable JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES,
            JAX_PROCESS_ID.

    Raises:
        UserError: if only some of the three are known, or they make no sense.
    """
    given = dict(zip(_VARIABLES, place, strict=True))
    found = {name: value if value is not None else env.get(name) for name, value in given.items()}
    if any(value is not None for value in found.values()):
        return _explicit(found)
    # srun sets these in each task it starts. A batch script itself is no task; a shell of `srun --pty` is the only one.
    if "SLURM_PTY_PORT" not in env and {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"} <= env.keys():
        count, index = _whole(env, "SLURM_STEP_NUM_TASKS"), _whole(env, "SLURM_PROCID")
        if count > 1:
            first = _first_host(env["SLURM_STEP_NODELIST"])
            step = _whole(env, "SLURM_JOB_ID", "0") + _whole(env, "SLURM_STEP_ID", "0")
            return Place(f"{first}:{_PORTS[0] + step % _PORTS[1]}", count, index)
    return None


def _whole(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = env.get(name, default)
    if text is None or not re.fullmatch(r"[0-9]+", text):
        raise UserError(
            f"{name}={text!r} is no number, as SLURM's srun sets it; give --coordinator, --num_processes, --process_id."
        )
    return int(text)


def _explicit(found: Mapping[str, str | int | None]) -> Place:
    missing = [name for name, value in found.items() if value is None]
    if missing == ["JAX_COORDINATOR_ADDRESS"] and str(found["JAX_NUM_PROCESSES"]) == "1":
        return Place("", 1, 0)
    how = "--coordinator=HOST:PORT --num_processes=N --process_id=I"
    if missing:
        raise UserError(f"several processes need {', '.join(_VARIABLES)}, or {how}; missing: {', '.join(missing)}.")
    address = str(found["JAX_COORDINATOR_ADDRESS"])
    numbers = [str(found[name]) for name in _VARIABLES[1:]]
    port = re.search(r".:([0-9]{1,5})$", address)
    if not all(re.fullmatch("[0-9]{1,9}", number) for number in numbers) or not (port and 0 < int(port[1]) < 65536):
        raise UserError(f"{address}, {', '.join(numbers)} is no place among several processes: {how}.")
    count, index = map(int, numbers)
    if index >= count:
        raise UserError(f"process {index} of {count}: processes are numbered from 0 to {count - 1}.")
    return Place(address, count, index)


def _first_host(nodes: str) -> str:
    """'node[003-007,12],other' -> 'node003'."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    name = "".join(part or "" for part in found.groups()) if found else "["
    if "[" in name:
        raise UserError(
            f"SLURM_STEP_NODELIST={nodes!r} is not understood; give --coordinator, --num_processes, --process_id."
        )
    return name
