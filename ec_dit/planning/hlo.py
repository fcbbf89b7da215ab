"""Reads a compiled XLA program as text: its computations, their instructions in the order they run, and how often they run.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as it runs. Sizes are those of one device.
"""

import functools
import math
import re
from dataclasses import dataclass, field

CONTROL = ("while", "conditional", "call")  # they run computations; all others fuse them
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b(pred|bf16|[usfc]\d+\w*)\[([\d,]*)\]")
_CALLS = re.compile(r"\b(?:calls|to_apply|body|condition|called_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_INDEX = re.compile(r"\bindex=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    rest: str

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest[: _closing(self.rest)])


@dataclass
class Program:
    """Computations by name, and how often one run of the program executes each."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    runs: dict[str, int] = field(default_factory=dict)
    callers: dict[str, Instruction] = field(default_factory=dict)  # of computations that run inside one kernel
    unknown_loops: list[str] = field(default_factory=list)  # loops of which it is not known how often they run


def parse(text: str) -> Program:
    """Reads what `jax.stages.Compiled.as_text` gives."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if header and "->" in line:
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    program = Program(computations, entry)
    _count(program, entry, 1)
    return program


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest[1:]) + 2 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    return Instruction(match[1], shape, opcode, rest)


def _closing(text: str) -> int:
    """Where the parenthesis closes that opened just before `text`."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i
    return len(text)


def _count(program: Program, name: str, times: int) -> None:
    program.runs[name] = program.runs.get(name, 0) + times
    for instruction in program.computations[name].values():
        trips = 1
        if instruction.opcode == "while":
            known = _trip_count(program, program.computations[name], instruction)
            if known is None:
                program.unknown_loops.append(instruction.name)
            trips = known or 1
        for callee in called(instruction):
            if callee in program.computations:
                if instruction.opcode not in CONTROL:
                    program.callers[callee] = instruction
                _count(program, callee, times * trips)


def _trip_count(program: Program, local: dict[str, Instruction], loop: Instruction) -> int | None:
    """Trips of a loop: annotated, or read from a condition `counter < constant`, the counter stepping by one."""
    if known := _TRIPS.search(loop.rest):
        return int(known[1])
    condition = program.computations[_CONDITION.findall(loop.rest)[0]]
    compare = list(condition.values())[-1]
    if compare.opcode != "compare" or "direction=LT" not in compare.rest:
        return None
    counter, limit = (condition.get(name) for name in compare.operands)
    if counter is None or limit is None or counter.opcode != "get-tuple-element":
        return None
    index = int(_INDEX.findall(counter.rest)[0])
    given = local[loop.operands[0]]
    start = local.get(given.operands[index]) if given.opcode == "tuple" else None
    while start is not None and start.opcode == "copy":
        start = local.get(start.operands[0])
    first, last = _constant(start), _constant(limit)
    return None if first is None or last is None else last - first


def _constant(instruction: Instruction | None) -> int | None:
    """The value of a whole-number constant, None for anything else."""
    digits = re.match(r"(-?\d+)\)", instruction.rest) if instruction and instruction.opcode == "constant" else None
    return int(digits[1]) if digits else None


def dimensions(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """(element type, sizes) of every array in a shape."""
    return [(kind, tuple(int(n) for n in sizes.split(",") if n)) for kind, sizes in _ARRAY.findall(shape)]


def called(instruction: Instruction) -> list[str]:
    """Names of the computations that an instruction runs or fuses."""
    names = _CALLS.findall(instruction.rest)
    for branches in _BRANCHES.findall(instruction.rest):
        names += re.findall(r"%?([\w.\-]+)", branches)
    return names


def num_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape."""
    return sum(math.prod(sizes) * _bits(kind) // 8 for kind, sizes in dimensions(shape))


def _bits(kind: str) -> int:
    return _BITS.get(kind) or int(re.sub(r"\D", "", kind))
