"""Slices of TPUs: which there are, and how they are written, such as v5p:8x8x8.

Names and shapes: cloud.google.com/tpu/docs/v4, /v5p, /v5e, /v6e.
"""

import math
from dataclasses import dataclass

from ec_dit.core.errors import UserError, did_you_mean, shortened

_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16".split()
_SQUARES = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16".split()
_CUBE = 4  # larger three-dimensional slices are made of cubes of 4 x 4 x 4 chips
CPU, _MOST_CPUS = "cpu", 4096
_LONGEST = 20  # letters in which a mistyped name is looked for


@dataclass(frozen=True)
class Generation:
    """A kind of TPU.

    Attributes:
        prefix: of accelerator types.
        cores: by which an accelerator type counts each chip.
        shapes: that an accelerator type stands for, one for each number of chips.
        most: chips of the largest slice.
        cubes: whether every box of whole cubes is a slice too.
    """

    prefix: str
    cores: int
    shapes: tuple[str, ...]
    most: int
    cubes: bool


GENERATIONS = {
    "v4": Generation("v4", 2, tuple(_CUBES), 4096, cubes=True),
    "v5p": Generation("v5p", 2, tuple(_CUBES), 8960, cubes=True),
    "v5e": Generation("v5litepod", 1, tuple(_SQUARES), 256, cubes=False),
    "v6e": Generation("v6e", 1, tuple(_SQUARES), 256, cubes=False),
}
_ALIASES = {"v5litepod": "v5e"}
NAMES = (*GENERATIONS, *_ALIASES)


@dataclass(frozen=True)
class Topology:
    """A slice, or the emulated devices of one CPU.

    Attributes:
        name: one of GENERATIONS, or cpu.
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
    def accelerator_type(self) -> str:
        """Such as v5p-1024, by the number of chips; empty for CPUs."""
        if self.name == CPU:
            return ""
        generation = GENERATIONS[self.name]
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
    if name not in GENERATIONS:
        also = ", and cpu:8 for emulated devices" if cpus else ""
        hint = did_you_mean(name[:_LONGEST], NAMES) if name else ""
        raise UserError(f"{given}: write it as v5p:8x8x8; known are {', '.join(NAMES)}{also}{hint}.")
    generation = GENERATIONS[name]
    found = Topology(name, sides)
    if found.shape in generation.shapes or (
        generation.cubes
        and len(sides) == 3
        and all(side and side % _CUBE == 0 for side in sides)
        and found.chips <= generation.most
    ):
        return found
    more = (
        f", and others of whole cubes {_CUBE}x{_CUBE}x{_CUBE} up to {generation.most} chips" if generation.cubes else ""
    )
    raise UserError(f"{given}: there is no such slice; {name} has the shapes {', '.join(generation.shapes)}{more}.")
