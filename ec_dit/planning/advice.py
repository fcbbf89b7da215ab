"""What would make a step fit that does not: what takes the memory, and settings tried one after the other."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, get_args

from ec_dit.config import RunConfig, checks, specs
from ec_dit.core import settings
from ec_dit.core.errors import UserError
from ec_dit.core.hardware import Chip
from ec_dit.core.mesh import MESH_AXES
from ec_dit.models.spec import RematPolicy
from ec_dit.planning import compile as compiler
from ec_dit.system.model import make_config_mesh

Told = Callable[[str], AbstractContextManager[None]]
STATE = ("parameters", "optimizer", "ema", "reference")
_REMAT: tuple[RematPolicy, ...] = get_args(RematPolicy)  # from the one that keeps most to the one that keeps least
_MOST_TRIALS = 4  # programs compiled in search of one that fits
_MOST_ACCUMULATED = 1024


@dataclass(frozen=True)
class Need:
    """What a program takes of a chip's memory.

    Attributes:
        total: bytes; None where the compiler gave up without a figure.
        held: bytes by kind, of what goes into the program and stays.
    """

    total: int | None
    held: Mapping[str, int]

    @property
    def state(self) -> int:
        """Bytes of parameters, moments and average."""
        return sum(self.held.get(kind, 0) for kind in STATE)


@dataclass(frozen=True)
class Trial:
    """A change of settings, and what came of it.

    Attributes:
        change: dotted keys and their values.
        need: bytes of a chip; None where the compiler did not say.
        fits: whether that is enough.
        part: what was counted where nothing was compiled, such as 'state'.
    """

    change: Mapping[str, Any]
    need: int | None
    fits: bool
    part: str = ""

    @property
    def flags(self) -> str:
        """The change as arguments."""
        return " ".join(f"--config.{key}={value}" for key, value in self.change.items())

    def text(self) -> str:
        """A line of the table."""
        size = "      ?" if self.need is None else f"{self.need / 1e9:7.1f}"
        note = f"  {self.part} alone" if self.part else "  fits" if self.fits else ""
        return f"  {size}  {self.flags or 'as it is'}{note}"


def advise(config: RunConfig, topology: str, what: str, need: Need, told: Told, *, tries: bool = True) -> str:
    """Says what takes the memory of a program that does not fit, and what was tried to make it fit.

    Args:
        told: context in which each program is compiled, given what it is.
        tries: compile others; without, only what can be counted is.
    """
    on, chip = compiler.devices(topology)
    lines = [_largest(need, chip)]
    if need.state > chip.hbm_bytes:
        trials = [Trial({}, need.state, fits=False, part="state"), *_meshes(config, on, what, chip)]
        best = min(trials, key=lambda trial: trial.need or 0)
        lines += _table(trials, chip)
        if best.fits:
            lines.append(f"Use {best.flags}, and plan again: activations come on top.")
        else:
            whole = (best.need or 0) * len(on)
            chips = math.ceil(whole / chip.hbm_bytes)
            lines.append(f"No mesh of {len(on)} chips holds it: more chips are needed, at least {chips}.")
        return "\n".join(lines)
    trials = [Trial({}, need.total, fits=False)]
    if tries:
        trials += _trials(config, topology, what, need, chip, told)
    lines += _table(trials, chip)
    if trials[-1].fits:
        lines.append(f"Use {trials[-1].flags}")
    elif tries:
        lines.append("None of it fits: more chips are needed.")
    else:
        lines.append("Nothing was tried (--notry).")
    return "\n".join(lines)


def _largest(need: Need, chip: Chip) -> str:
    sizes = {"weights, moments and average": need.state}
    if need.total is not None:
        sizes["activations, gradients and gathered weights"] = need.total - need.state
    kind = max(sizes, key=lambda name: sizes[name])
    whole = "" if need.total is None else f" of {need.total / 1e9:.1f}"
    return f"{kind.capitalize()} take {sizes[kind] / 1e9:.1f} GB{whole}; a chip has {chip.hbm_bytes / 1e9:.1f}."


def _table(trials: list[Trial], chip: Chip) -> list[str]:
    return [f"Tried, GB of a chip's {chip.hbm_bytes / 1e9:.1f}:", *(trial.text() for trial in trials)]


def _meshes(config: RunConfig, on: list[Any], what: str, chip: Chip) -> Iterator[Trial]:
    """The state of a chip under other meshes of the same chips, counted from its shardings."""
    experts, count = config.moe.num_experts or 1, len(on)
    widest = max(n for n in range(1, count + 1) if count % n == 0 and experts % n == 0)
    for expert in dict.fromkeys((widest, 1)):
        change = {f"mesh.{axis}": 1 for axis in MESH_AXES} | {"mesh.expert": expert, "mesh.fsdp": count // expert}
        if any(settings.get(config, key) not in (value, -1) for key, value in change.items()):
            try:
                state = Need(None, compiler.held(settings.changed(config, change), on, what)).state
            except UserError:  # widths that do not divide so
                continue
            yield Trial(change, state, fits=state < chip.hbm_bytes, part="state")


def _trials(config: RunConfig, topology: str, what: str, need: Need, chip: Chip, told: Told) -> Iterator[Trial]:
    """Programs compiled with ever less to keep, to the first that fits."""
    on, _ = compiler.devices(topology)
    found, tried = need, 0
    change: dict[str, Any] = {}
    while tried < _MOST_TRIALS and (next_change := _next(config, on, what, change, found, chip)):
        change, tried = next_change, tried + 1
        try:
            with told(f"with {Trial(change, None, fits=False).flags}"):
                found = measure(settings.changed(config, change), topology, what)
        except UserError:  # whatever comes next fails alike
            return
        fits = found.total is not None and found.total <= chip.hbm_bytes
        yield Trial(change, found.total, fits)
        if fits:
            return


def _next(
    config: RunConfig, on: list[Any], what: str, change: Mapping[str, Any], need: Need, chip: Chip
) -> dict[str, Any] | None:
    """The next change to try: less kept for the backward pass, then fewer images at a time."""
    key = "train.accumulate" if what == "train" else "sample.batch_size"
    now = change.get(key, settings.get(config, key))
    remat = change.get("model.remat", config.model.remat)
    if what == "train" and remat != _REMAT[-1]:
        return {**change, "model.remat": _REMAT[_REMAT.index(remat) + 1]}
    # What grows with the images of a chip must shrink to the room that the state leaves.
    room = chip.hbm_bytes - need.state
    factor = 2 if need.total is None or room <= 0 else (need.total - need.state) / room
    parts = 2 ** max(1, math.ceil(math.log2(factor)))
    if what == "train":
        batch = config.train.batch_size
        numbers = [n for n in range(now * parts, min(_MOST_ACCUMULATED, batch) + 1) if batch % n == 0]
        changes = ({**change, key: n} for n in numbers)
        return next((each for each in changes if _can_train(settings.changed(config, each), on)), None)
    return {**change, key: now // parts} if now >= parts else None


def _can_train(config: RunConfig, on: list[Any]) -> bool:
    try:
        checks.validate(config)
        specs.check_batch(config, make_config_mesh(config, on))
    except UserError:
        return False
    return True


def measure(config: RunConfig, topology: str, what: str) -> Need:
    """Compiles a step, and says what it takes of a chip's memory.

    Raises:
        UserError: for a config that does not fit the topology's mesh.
    """
    on, _ = compiler.devices(topology)
    try:
        compiled = compiler.lower(config, on, what).compile()
    except compiler.DoesNotFit as error:
        return Need(error.needed, error.held)
    return Need(compiled.needed, compiled.lowered.held)
