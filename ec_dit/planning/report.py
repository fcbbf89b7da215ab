"""What a compiled step needs and how long it would take, as text for people and JSON for programs."""

import contextlib
import importlib.metadata
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from ec_dit.config import RunConfig, specs
from ec_dit.core import topology as topologies
from ec_dit.core.hardware import EFFICIENCY, Chip
from ec_dit.core.mesh import MESH_AXES, resolve_shape
from ec_dit.models import sizes
from ec_dit.models.paper import PAPER_HOURS
from ec_dit.planning import compile as compiler
from ec_dit.planning import hlo, kernels
from ec_dit.planning.collectives import Collective, collectives
from ec_dit.planning.roofline import Coordinates, Roofline, collective_seconds, exposed_seconds, roofline

STEPS, BATCH = 800_000, 4096  # the paper's schedule
SMALL = 1e-4  # of all bytes moved; collectives of less are left out of the text


@dataclass(frozen=True)
class Report:
    """The plan of one step on one topology; bytes and FLOPs are those of one chip.

    Attributes:
        memory: bytes by kind; gradients and activations share what is left of the peak.
        collectives: {kind, axes, count, bytes, largest, seconds, hidden}, per step; `largest`: bytes of one; `hidden`: the share
            of the seconds in which kernels run beside it.
        images: per step, over all chips.
        paper_hours: of the paper's run, None where it prints none.
        digest: of what the compiler read, as `compile.Lowered` has it.
    """

    name: str
    what: str
    topology: str
    mesh: dict[str, int]
    chip: Chip
    memory: dict[str, int]
    hbm_bytes: int
    params: sizes.Sizes
    model_flops: float
    compiled_flops: float
    traffic: float
    collectives: list[dict[str, Any]]
    roofline: Roofline
    images: int
    paper_hours: float | None
    compile_seconds: float
    unknown_loops: int
    digest: str

    @property
    def fits(self) -> bool:
        """Whether the program fits the chip's memory."""
        return self.hbm_bytes <= self.chip.hbm_bytes

    @property
    def devices(self) -> int:
        """Chips."""
        return math.prod(self.mesh.values())

    @property
    def mfu(self) -> float:
        """Model FLOPs of the predicted step, as a share of the peak."""
        return self.model_flops / (self.roofline.step_s * self.chip.flops)

    @property
    def hours(self) -> float | None:
        """Hours of 800 k steps at batch 4096, None for sampling."""
        return STEPS * BATCH / self.images * self.roofline.step_s / 3600 if self.what == "train" else None

    def json(self) -> str:
        """All figures."""
        r = self.roofline
        return json.dumps(
            {
                "config": self.name,
                "what": self.what,
                "topology": self.topology,
                "mesh": self.mesh,
                "fits": self.fits,
                "devices": self.devices,
                "hbm_bytes_per_chip": self.hbm_bytes,
                "hbm_limit_bytes": self.chip.hbm_bytes,
                "memory": self.memory,
                "params_total": self.params.total,
                "params_activated": self.params.activated,
                "model_flops_per_chip": self.model_flops,
                "compiled_flops_per_chip": self.compiled_flops,
                "hbm_traffic_bytes_per_chip": self.traffic,
                "collectives": self.collectives,
                "roofline": {
                    "compute_s": r.compute_s,
                    "hbm_s": r.hbm_s,
                    "ici_s": r.ici_s,
                    "kernels_s": r.kernels_s,
                    "exposed_ici_s": r.exposed_ici_s,
                    "bound": r.bound,
                    "efficiency": EFFICIENCY,
                },
                "step_seconds": r.step_s,
                "images_per_second": self.images / r.step_s,
                "mfu": self.mfu,
                "hours_800k": self.hours,
                "paper_hours": self.paper_hours,
                "compile_seconds": self.compile_seconds,
                "unknown_loops": self.unknown_loops,
                "program": self.digest,
                "versions": versions(),
            },
            indent=2,
        )

    def text(self) -> str:
        """For people."""
        r, chip, mesh = self.roofline, self.chip, " x ".join(f"{axis} {n}" for axis, n in self.mesh.items() if n > 1)
        step = "training step" if self.what == "train" else "network evaluation of the sampler"
        fit, ratio = "" if self.fits else ": DOES NOT FIT", self.compiled_flops / self.model_flops
        moved = sum(c["bytes"] for c in self.collectives)
        unit, large = ("G", 1e9) if self.hbm_bytes > 1e9 else ("M", 1e6)
        speeds = {
            "compute": f"{chip.flops / 1e12:g} TFLOP/s",
            "hbm": f"{chip.hbm_bandwidth / 1e12:.2f} TB/s, {self.traffic / 1e9:.0f} GB",
            "ici": f"{chip.link_bandwidth / 1e9:.0f} GB/s a link and direction",
        }
        lines = [
            f"{self.name}: one {step} of {self.images} images",
            f"{self.devices} chips of {self.topology} as {mesh or 'one'}; compiled in {self.compile_seconds:.0f} s",
            f"parameters {self.params.total / 1e9:.2f} B, activated {self.params.activated / 1e9:.2f} B (transformer only)",
            "",
            _row(f"memory of a chip, {unit}B", self.hbm_bytes / large, f"of {chip.hbm_bytes / large:.0f}{fit}"),
            *(_row(f"  {kind}", size / large) for kind, size in self.memory.items()),
            "",
            _row("FLOPs of a chip, T", self.compiled_flops / 1e12, f"{ratio:.3f} x the model's"),
            "",
            f"{'collectives of a step':42}{'count':>6}{unit + 'B':>9}{'ms':>8}{'hidden':>8}",
            *(_collective_row(c, large) for c in self.collectives if c["bytes"] > SMALL * moved),
            "",
            _row("time of a step, ms", r.step_s * 1e3),
            _row("  kernels", r.kernels_s * 1e3, "each at the slower of its computing and its memory"),
            _row("  collectives nothing hides", r.exposed_ici_s * 1e3),
            *(
                _row(f"  {name} alone", getattr(r, f"{name}_s") * 1e3, f"at {share:.0%} of {speeds[name]}")
                for name, share in EFFICIENCY.items()
            ),
            f"bound by {r.bound}; {self.images / r.step_s:.0f} images/s, MFU {self.mfu:.1%}",
        ]
        if self.unknown_loops:
            lines.append(f"{self.unknown_loops} loops of unknown length were counted once: the figures are too low")
        if self.hours is not None:
            paper = "" if self.paper_hours is None else f"; the paper's run took {self.paper_hours:g}"
            lines.append(f"{self.hours:.1f} hours for {STEPS:,} steps of {BATCH} images{paper}")
        return "\n".join(lines)


def versions() -> dict[str, str]:
    """Of the packages that compile; libtpu only where it is installed."""
    found = {}
    for package in ("jax", "jaxlib", "libtpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _row(name: str, value: float, note: str = "") -> str:
    return f"{name:32}{value:10.2f}  {note}".rstrip()


def _collective_row(c: dict[str, Any], unit: float) -> str:
    sizes = f"{c['count']:6d}{c['bytes'] / unit:9.3f}{c['seconds'] * 1e3:8.1f}{c['hidden']:8.0%}"
    return f"  {c['kind']:20}{'+'.join(c['axes']):20}{sizes}"


def make(config: RunConfig, topology: str, what: str) -> Report:
    """Compiles and measures.

    Raises:
        UserError: for a topology that nobody knows, or a config that does not fit it.
    """
    on, chip = compiler.devices(topology)
    lowered = compiler.lower(config, on, what)
    compiled, system = lowered.compile(), lowered.system
    text = compiled.program.as_text()
    assert text is not None
    program = hlo.parse(text)
    found, work = collectives(program), kernels.kernels(program)
    flops, traffic = (sum(getattr(w, what) * times for w, times in work) for what in ("flops", "bytes"))
    total = compiled.needed
    spec = specs.dit_spec(config)
    images = lowered.images
    model_flops = images * _image_flops(config, what, system.mesh)
    kinds = dict(lowered.held)
    if what == "train":
        kinds["gradients"] = max(0, min(total - sum(kinds.values()), kinds["parameters"]))
    kinds["activations and temporaries"] = total - sum(kinds.values())
    places = compiler.coordinates(system.mesh)
    return Report(
        name=config.name,
        what=what,
        topology=topology,
        mesh=dict(system.mesh.shape),
        chip=chip,
        memory=kinds,
        hbm_bytes=total,
        params=sizes.sizes(spec, config.moe.capacity_factor),
        model_flops=model_flops / system.mesh.size,
        compiled_flops=flops,
        traffic=traffic,
        collectives=_summary(found, system.mesh, chip, places),
        roofline=roofline(chip, work, found, places),
        images=images,
        paper_hours=PAPER_HOURS.get(config.name),
        compile_seconds=compiled.seconds,
        unknown_loops=len(program.unknown_loops),
        digest=lowered.digest,
    )


def by_formula(config: RunConfig, topology: str, what: str) -> str:
    """What needs no compiler: parameters, state and model FLOPs of a chip, and how long computing takes at least."""
    wanted = topologies.parse(topology)
    name, chip, chips = wanted.name, wanted.chip, wanted.chips
    mesh = AbstractMesh(resolve_shape([getattr(config.mesh, axis) for axis in MESH_AXES], chips), MESH_AXES)
    if what == "train":
        specs.check_batch(config, mesh)
    images = config.train.batch_size if what == "train" else config.sample.batch_size
    found, flops = (
        sizes.sizes(specs.dit_spec(config), config.moe.capacity_factor),
        images * _image_flops(config, what, mesh),
    )
    state = (16 if what == "train" else 2) * found.total / chips
    lines = [
        f"{config.name} on {chips} chips of {name}, by formula",
        f"parameters {found.total / 1e9:.2f} B, activated {found.activated / 1e9:.2f} B (transformer only)",
        _row(
            "state of a chip, GB",
            state / 1e9,
            f"of {chip.hbm_bytes / 1e9:.0f}, if all of it is split",
        ),
        _row("FLOPs of a chip, T", flops / chips / 1e12),
        _row("compute alone, ms", flops / chips / (chip.flops * EFFICIENCY["compute"]) * 1e3),
        f"({images} images)",
    ]
    return "\n".join(lines)


def _image_flops(config: RunConfig, what: str, mesh: Mesh | AbstractMesh) -> float:
    """Model FLOPs of a step for one image."""
    spec, length = specs.dit_spec(config), config.text.length
    factor = specs.computed_factor(config, sampling_on=mesh if what == "sample" else None)
    if what == "train":
        return sizes.train_flops_per_image(spec, specs.kept_tokens(config), length, factor)
    evaluations = 1 if config.sample.guidance == 1 else 2
    return evaluations * sizes.forward_flops(spec, spec.image_tokens, length, factor, reads_text=False)


def _summary(found: list[Collective], mesh: Mesh, chip: Chip, places: Coordinates) -> list[dict[str, Any]]:
    """Collectives by kind and mesh axes, the largest first."""
    rows: dict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for c in found:
        seconds, exposed = collective_seconds(c, chip, places), exposed_seconds(c, chip, places)
        row = rows[c.kind, _axes(c, mesh)]
        for i, value in enumerate((1, c.bytes, seconds, exposed)):
            row[i] += c.count * value
        row[4] = max(row[4], c.bytes)
    table = [
        {
            "kind": kind,
            "axes": list(axes),
            "count": int(count),
            "bytes": int(size),
            "largest": int(largest),
            "seconds": seconds,
            "hidden": 1 - exposed / seconds if seconds else 0.0,
        }
        for (kind, axes), (count, size, seconds, exposed, largest) in rows.items()
    ]
    return sorted(table, key=lambda row: -row["bytes"])


def _axes(collective: Collective, mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes along which the devices of a group differ."""
    if not collective.groups:
        return tuple(axis for axis, size in mesh.shape.items() if size > 1)
    places = np.array([np.unravel_index(i, mesh.devices.shape) for i in collective.groups[0]])
    columns = zip(mesh.axis_names, places.T, strict=True)
    return tuple(axis for axis, column in columns if len(set(column.tolist())) > 1)
