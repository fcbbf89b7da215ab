"""What the kernels of a compiled program do: floating-point operations, and bytes to and from main memory."""

import math
import re
from dataclasses import dataclass

from ec_dit.planning.hlo import CONTROL, Instruction, Program, called, dimensions, num_bytes

_FREE = (
    *CONTROL,
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "iota",
)
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_SLICES = ("dynamic-slice", "slice", "gather")
_LAID_OUT = re.compile(r"\b(?:pred|bf16|[usfc]\d+\w*)\[[\d,]*\](?:\{[^}]*\})?")
_ESTIMATE = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')
_ALIAS = re.compile(r"\{(\d*)\}: \((\d+), ")


@dataclass(frozen=True)
class Work:
    """Of one kernel, one run.

    Attributes:
        flops: of matrix products and convolutions, a multiplication and an addition each.
        bytes: read from and written to main memory, each operand and each result once.
    """

    flops: int
    bytes: int


def kernels(program: Program) -> list[tuple[Work, int]]:
    """(work, how often it runs) of every kernel that does any."""
    found = []
    for name, times in program.runs.items():
        if name not in program.callers:
            for instruction in program.computations[name].values():
                work = kernel_work(program, name, instruction)
                if work.flops or work.bytes:
                    found.append((work, times))
    return found


def kernel_work(program: Program, computation: str, kernel: Instruction) -> Work:
    """Of one instruction that is not inside another.

    A kernel that slices its operand, or updates a slice of it in place, touches the slice only. What the compiler keeps in
    on-chip memory (layouts marked S(1) and above) costs nothing. Collectives have none: they take the interconnect's time.
    """
    local = program.computations[computation]
    if kernel.opcode == "custom-call" and "tpu_custom_call" not in kernel.rest:
        return Work(0, 0)  # the TPU compiler's own: they reserve and rename buffers
    if kernel.opcode in ("copy-start", "slice-start"):
        source, target = _LAID_OUT.findall(kernel.shape)[:2]
        return Work(0, num_bytes(target) * (_in_main_memory(source) + _in_main_memory(target)))
    if kernel.opcode in _FREE or is_end(kernel) or _is_collective(kernel):
        return Work(0, 0)
    return Work(_flops(program, computation, kernel), _traffic(program, local, kernel))


def is_start(kernel: Instruction) -> bool:
    """Whether it starts something asynchronous: a collective, or what a SparseCore runs. TPU kernels tell it by their name."""
    return kernel.opcode.endswith("-start") or kernel.name.startswith("async-collective-start")


def is_end(kernel: Instruction) -> bool:
    """Whether it waits for what `is_start` started."""
    return kernel.opcode.endswith("-done") or kernel.name.startswith("async-collective-done")


def _is_collective(kernel: Instruction) -> bool:
    if kernel.opcode in COLLECTIVES or any(callee.startswith("all-reduce-scatter") for callee in called(kernel)):
        return True
    return is_start(kernel)


def flops(program: Program) -> int:
    """Of all matrix products and convolutions of a run."""
    return sum(work.flops * times for work, times in kernels(program))


def _flops(program: Program, computation: str, kernel: Instruction) -> int:
    local = program.computations[computation]
    if kernel.opcode in ("dot", "convolution"):
        left, right = (dimensions(local[operand].shape)[0][1] for operand in kernel.operands[:2])
        out = dimensions(kernel.shape)[0][1]
        return _dot(kernel.rest, out, left) if kernel.opcode == "dot" else _convolution(kernel.rest, out, left, right)
    if kernel.opcode == "custom-call":
        # A kernel written by hand, such as that of ragged products, says itself what it does.
        told = _ESTIMATE.search(kernel.rest)
        return int(told[1]) if told else 0
    return sum(
        _flops(program, callee, inner)
        for callee in called(kernel)
        if callee in program.computations
        for inner in program.computations[callee].values()
    )


def _dot(rest: str, out: tuple[int, ...], left: tuple[int, ...]) -> int:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    sizes = [left[int(i)] for i in contracted[1].split(",") if i] if contracted else []
    return 2 * math.prod(out) * math.prod(sizes)


def _convolution(rest: str, out: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Products that fall on real numbers: padding and the holes of dilation cost nothing."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    assert labels is not None, rest
    of_left, of_right, of_out = labels.groups()
    window = {}
    if spec := re.search(r"window=\{([^}]*)\}", rest):
        window = dict(part.split("=", 1) for part in spec[1].split())
    spatial = sorted(label for label in of_out if label.isdigit())
    total = 2 * out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]

    def setting(key: str, default: str) -> list[str]:
        return window[key].split("x") if key in window else [default] * len(spatial)

    along = zip(
        spatial,
        setting("pad", "0_0"),
        setting("stride", "1"),
        setting("lhs_dilate", "1"),
        setting("rhs_dilate", "1"),
        strict=True,
    )
    for label, pad, *steps in along:
        size, kernel, result = (
            shape[names.index(label)] for shape, names in ((left, of_left), (right, of_right), (out, of_out))
        )
        stride, hole, spread = map(int, steps)
        total *= _overlaps(size, kernel, result, int(pad.partition("_")[0]), stride, hole, spread)
    groups = re.search(r"batch_group_count=(\d+)", rest)
    return total // int(groups[1]) if groups else total


def _overlaps(size: int, kernel: int, out: int, low: int, stride: int, hole: int, spread: int) -> int:
    """Pairs (position of the output, position of the kernel) that meet a number of the input, along one dimension."""
    count = 0
    for k in range(kernel):
        # Output o reads input position (o * stride + k * spread - low) / hole, where that is whole and inside.
        first = k * spread - low
        positions = (first + o * stride for o in range(out))
        count += sum(1 for p in positions if p % hole == 0 and 0 <= p // hole < size)
    return count


def _traffic(program: Program, local: dict[str, Instruction], kernel: Instruction) -> int:
    operands = [local[name] for name in kernel.operands if name in local]
    results = _LAID_OUT.findall(kernel.shape)
    if kernel.opcode != "fusion":
        if kernel.opcode == "dynamic-update-slice":
            return 2 * num_bytes(operands[1].shape) * _in_main_memory(kernel.shape)
        read = [_read(program, {kernel.name: kernel}, operand, operand.name) for operand in operands]
        return sum(read) + sum(num_bytes(result) for result in results if _in_main_memory(result))
    body = program.computations[called(kernel)[0]]
    parameters = {int(i.rest.partition(")")[0]): i for i in body.values() if i.opcode == "parameter"}
    root = list(body.values())[-1]
    made = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    # A collective under way passes through the kernels that hide it, its buffers in place.
    passing = "async_collective" in kernel.rest and _ALIAS.findall(kernel.rest)
    through = {int(out or 0) for out, _ in passing or ()}, {int(number) for _, number in passing or ()}
    total = 0
    for number, (result, maker) in enumerate(zip(results, made, strict=False)):
        if _in_main_memory(result) and number not in through[0]:
            total += _written(body, maker, result)
    for number, operand in enumerate(operands):
        if number in parameters and number not in through[1]:
            total += _read(program, body, operand, parameters[number].name)
    return total


def _written(body: dict[str, Instruction], maker: Instruction, result: str) -> int:
    while maker.opcode == "bitcast" and maker.operands[0] in body:
        maker = body[maker.operands[0]]
    if maker.opcode == "dynamic-update-slice" and maker.operands[1] in body:
        return num_bytes(body[maker.operands[1]].shape)
    return num_bytes(result)


def _read(program: Program, body: dict[str, Instruction], operand: Instruction, seen: str) -> int:
    """Bytes read of an operand that the kernel's body knows as `seen`."""
    whole = sum(num_bytes(part) for part in _LAID_OUT.findall(operand.shape) if _in_main_memory(part))
    touched = _touched(program, body, seen) if whole else 0
    return whole if touched is None else min(whole, touched)


def _touched(program: Program, body: dict[str, Instruction], seen: str) -> int | None:
    """Bytes of the slices that are all a kernel reads of `seen`; None where it reads the whole."""
    total = 0
    for user in body.values():
        if seen not in user.operands:
            continue
        part: int | None = None
        if user.opcode in _SLICES and user.operands[0] == seen:
            part = num_bytes(user.shape)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == seen:
            part = 0
        elif user.opcode in ("bitcast", "get-tuple-element"):
            part = _touched(program, body, user.name)
        elif user.opcode == "fusion":
            inner = program.computations[called(user)[0]]
            number = user.operands.index(seen)
            names = [i.name for i in inner.values() if i.opcode == "parameter" and i.rest.startswith(f"{number})")]
            part = _touched(program, inner, names[0]) if names else None
        if part is None:
            return None
        total += part
    return total


def _in_main_memory(part: str) -> bool:
    return not re.search(r"S\([1-9]\)", part)
