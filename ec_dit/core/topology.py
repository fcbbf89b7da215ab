"""Slices of TPUs, and how they are written, such as v5p:8x8x8; which there are stands in core/hardware.py."""

import math
from dataclasses import dataclass

from ec_dit.core import hardware
from ec_dit.core.errors import UserError, did_you_mean, shortened
from ec_dit.core.hardware import TPUS, Chip

_CUBE = 4  # larger three-dimensional slices are made of cubes of 4 x 4 x 4 chips
CPU, _MOST_CPUS = "cpu", 4096
_LONGEST = 20  # letters in which a mistyped name is looked for
_ALIASES = {"v5litepod": "v5e"}
NAMES = (*TPUS, *_ALIASES)


@dataclass(frozen=True)
class Topology:
    """A slice, or the emulated devices of one CPU.

    Attributes:
        name: one of `hardware.TPUS`, or cpu.
        sides: devices along each dimension.
    """

    name: str
    sides: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}:{self.shape}"

    @property
    def shape(self) -> str:
        """Such as 8x8x8."""
        return "x".join(map(str, self.sides))

    @property
    def chips(self) -> int:
        """How many devices it has."""
        return math.prod(self.sides)

    @property
    def chip(self) -> Chip:
        """What one device can do."""
        return hardware.EMULATED if self.name == CPU else TPUS[self.name].chip

    @property
    def accelerator_type(self) -> str:
        """Such as v5p-1024, by the number of chips; empty for CPUs."""
        if self.name == CPU:
            return ""
        generation = TPUS[self.name]
        return f"{generation.prefix}-{self.chips * generation.cores}"


def parse(text: str, flag: str = "--topology", *, cpus: bool = True) -> Topology:
    """Reads what a user wrote.

    Args:
        flag: that it was given by, for messages.
        cpus: whether emulated devices, such as cpu:8, will do.

    Raises:
        UserError: unless there is such a slice; says which there are.
    """
    name, _, shape = text.partition(":")
    given = f"{flag}={shortened(text)}"
    name = _ALIASES.get(name, name)
    words = shape.split("x")
    sides = tuple(int(word) if word.isascii() and word.isdigit() and len(word) < 6 else 0 for word in words)
    if name == CPU and cpus:
        if len(sides) > 1 or not 1 <= sides[0] <= _MOST_CPUS:
            raise UserError(f"{given}: give the number of emulated devices, from cpu:1 to cpu:{_MOST_CPUS}.")
        return Topology(name, sides)
    if name not in TPUS:
        also = ", and cpu:8 for emulated devices" if cpus else ""
        hint = did_you_mean(name[:_LONGEST], NAMES) if name else ""
        raise UserError(f"{given}: write it as v5p:8x8x8; known are {', '.join(NAMES)}{also}{hint}.")
    generation = TPUS[name]
    found = Topology(name, sides)
    if found.shape in generation.shapes or (
        generation.cubes
        and len(sides) == 3
        and all(side and side % _CUBE == 0 for side in sides)
        and found.chips <= generation.most_chips
    ):
        return found
    more = (
        f", and others of whole cubes {_CUBE}x{_CUBE}x{_CUBE} up to {generation.most_chips} chips"
        if generation.cubes
        else ""
    )
    raise UserError(f"{given}: there is no such slice; {name} has the shapes {', '.join(generation.shapes)}{more}.")
