"""The collectives of a compiled program: kind, size, which devices take part, and what runs while they are under way."""

import itertools
import math
import re
from dataclasses import dataclass

import numpy as np

from ec_dit.planning.hlo import Instruction, Program, num_bytes
from ec_dit.planning.kernels import COLLECTIVES, Work, is_end, is_start, kernel_work

_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?)\))?\s*\{([^}]*)\}"
)
_OWN_WORDS = re.compile(r"\bu32\[\](?:\{[^}]*\})?")
_MESH_PART = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
        kind: one of kernels.COLLECTIVES.
        count: how often it runs.
        bytes: what a device holds of it when it is whole: the output of an all-gather, the input of a reduce-scatter.
        groups: which devices exchange among themselves, as positions in the mesh's flat order.
        hidden: kernels that run between its start and its end; empty if nothing does.
    """

    kind: str
    count: int
    bytes: int
    groups: tuple[tuple[int, ...], ...]
    hidden: tuple[Work, ...] = ()


def collectives(program: Program) -> list[Collective]:
    """Every collective that runs, the asynchronous ones once, at their start."""
    found = []
    for name, times in program.runs.items():
        local = program.computations[name]
        caller = program.callers.get(name)
        begun = caller is not None and is_start(caller)
        if caller is not None and not begun and "async" in caller.rest + caller.name:
            continue  # a step or the end of one that was counted at its start
        for instruction in local.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            if kind == "all-reduce" and caller is not None and _is_sliced(local, instruction):
                kind = "reduce-scatter"  # as the TPU's compiler writes it: one kernel that keeps a slice only
            given = sum(num_bytes(local[operand].shape) for operand in instruction.operands if operand in local)
            got = num_bytes(instruction.shape)
            if instruction.opcode.endswith("-start") and instruction.shape.startswith("("):
                # A start's shape lists its operands, then its results, then words of its own.
                got = num_bytes(_OWN_WORDS.sub("", instruction.shape)) - given
            start = caller if caller is not None and begun else instruction
            hidden = _hidden(program, start) if is_start(start) else ()
            size = given if kind == "reduce-scatter" else got
            found.append(Collective(kind, times, size, _groups(instruction.rest), hidden))
    return found


def _hidden(program: Program, start: Instruction) -> tuple[Work, ...]:
    """The kernels scheduled between a start and its end."""
    name = next(name for name, local in program.computations.items() if local.get(start.name) is start)
    schedule = iter(program.computations[name].values())
    under_way, between = {start.name}, []
    for instruction in itertools.dropwhile(lambda i: i is not start, schedule):
        uses = not under_way.isdisjoint(instruction.operands)
        if uses and is_end(instruction):
            break
        if uses:
            under_way.add(instruction.name)
        work = kernel_work(program, name, instruction)
        if work.flops or work.bytes:
            between.append(work)
    return tuple(between)


def _is_sliced(local: dict[str, Instruction], reduced: Instruction) -> bool:
    users = [i for i in local.values() if reduced.name in i.operands]
    return bool(users) and all(i.opcode == "dynamic-slice" for i in users)


def _groups(rest: str) -> tuple[tuple[int, ...], ...]:
    if mesh := _MESH_GROUPS.search(rest):
        return _mesh_groups(*mesh.groups())
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, source = ([int(n) for n in part.split(",")] for part in iota.groups()[:2])
        ids = np.arange(math.prod(source)).reshape(source)
        ids = ids.transpose([int(n) for n in iota[3].split(",")]) if iota[3] else ids
        return tuple(map(tuple, ids.reshape(shape).tolist()))
    if listed := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest):
        return tuple(tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", rest):
        return tuple(tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", pairs[1]))
    return ()


def _mesh_groups(axes: str, order: str | None, chosen: str) -> tuple[tuple[int, ...], ...]:
    """Groups along some axes of a mesh of the compiler's own; `'a':(2)4` is the part of size 4 of axis a behind one of size 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if order:
        source, _, permutation = order.partition("T")
        ids = ids.reshape([int(n) for n in re.findall(r"\d+", source)])
        ids = ids.transpose([int(n) for n in re.findall(r"\d+", permutation)]) if permutation else ids
    parts = {name: (int(before or 1), int(size or sizes[name])) for name, before, size in _MESH_PART.findall(chosen)}
    shape: list[int] = []  # every axis as (before, part, behind)
    for name, size in sizes.items():
        before, part = parts.get(name, (1, 1))
        shape += [before, part, size // before // part]
    ids = ids.reshape(shape)
    inside = [3 * i + 1 for i, name in enumerate(sizes) if name in parts]
    outside = [i for i in range(len(shape)) if i not in inside]
    return tuple(map(tuple, ids.transpose(outside + inside).reshape(-1, math.prod(shape[i] for i in inside)).tolist()))
