"""python -m ec_dit.plan on emulated devices: its figures against arithmetic, its exit codes and its messages."""

import contextlib
import dataclasses
import json
import os
import time

import jax
import pytest

from ec_dit import config, plan, presets
from ec_dit.config import RunConfig, checks, overrides, specs
from ec_dit.core import hardware, topology
from ec_dit.core.errors import UserError
from ec_dit.core.hardware import EMULATED
from ec_dit.core.mesh import MESH_AXES
from ec_dit.models import sizes
from ec_dit.planning import advice, report
from ec_dit.planning import compile as compiler
from tests import helpers

pytestmark = pytest.mark.slow

KEYS = {"fits", "devices", "hbm_bytes_per_chip", "hbm_limit_bytes", "memory", "params_total", "params_activated"}
KEYS |= {"model_flops_per_chip", "compiled_flops_per_chip", "collectives", "roofline", "step_seconds", "mfu"}
KEYS |= {"hours_800k", "paper_hours"}


def small(routing="expert_choice", **mesh) -> RunConfig:
    """A paper config's structure at a size that compiles in seconds, on cached text and latents."""
    data = {"source": "synthetic", "space": "latents", "size": 8, "channels": 4}
    keys = {f"data__{name}": value for name, value in data.items()}
    keys |= {f"mesh__{axis}": size for axis, size in ({"data": 1} | mesh).items()}
    return helpers.tiny_config(routing, model__qk_norm=False, text__encoder="cached", text__width=32, **keys)


def test_figures_of_a_training_step(tmp_path, capsys):
    c, path = small(expert=4, fsdp=2), tmp_path / "plan.json"
    assert plan.plan(c, "cpu:8", "train", str(path)) == 0
    found = json.loads(path.read_text())
    assert set(found) >= KEYS and found["fits"] and found["devices"] == 8

    spec = specs.dit_spec(c)
    assert found["params_total"] == sizes.sizes(spec).total
    flops = c.train.batch_size * sizes.train_flops_per_image(spec, specs.kept_tokens(c), c.text.length, 2.0)
    assert found["model_flops_per_chip"] == flops / 8
    assert 0.95 < found["compiled_flops_per_chip"] / found["model_flops_per_chip"] < 1.15

    memory = found["memory"]  # f32: experts in 8 parts, everything else in 4
    experts = 8 * 2 * 32 * 128
    copied = 16 * 3 / 4  # the output layer's bias, 16 numbers, stands on every device
    assert memory["parameters"] == memory["ema"] == 4 * (experts / 8 + (found["params_total"] - experts) / 4 + copied)
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], abs=64)  # two moments, and scalars
    assert sum(memory.values()) == found["hbm_bytes_per_chip"] and min(memory.values()) >= 0

    exchanged = [row for row in found["collectives"] if row["kind"] == "all-to-all"]
    slots = 2 * 8 * 32 * 4  # of a device: its 2 images of 8 kept tokens, f_c = 2 ... in float32
    assert all(row["axes"] == ["expert"] for row in exchanged)
    assert sum(row["bytes"] for row in exchanged) > 4 * 2 * slots
    text = capsys.readouterr().out
    for words in (
        "8 chips of cpu:8 as fsdp 2 x expert 4",
        "all-to-all",
        "bound by",
        "hours for 800,000 steps of 4096 images",
    ):
        assert words in text


@pytest.fixture(scope="module")
def found():
    """The plan of a training step of 16 images on eight devices."""
    return report.make(small(expert=8), "cpu:8", "train")


def test_hours_are_of_the_papers_schedule(found):
    assert found.hours == pytest.approx(800_000 * 4096 / 16 * found.roofline.step_s / 3600)
    assert found.mfu == pytest.approx(found.model_flops / found.roofline.step_s / EMULATED.flops)


@pytest.mark.parametrize("routing", ["expert_choice", "dense"])
def test_figures_of_sampling(routing):
    c = small(routing, expert=1 if routing == "dense" else 8, fsdp=8 if routing == "dense" else 1)
    found = report.make(c, "cpu:8", "sample")
    assert found.hours is None and set(found.memory) == {
        "parameters",
        "captions",
        "batch",
        "activations and temporaries",
    }
    both = 2 * sizes.forward_flops(specs.dit_spec(c), 16, c.text.length, 2.0, reads_text=False)
    assert found.model_flops == both * 8 / 8
    assert 0.95 < found.compiled_flops / found.model_flops < 1.15


@pytest.fixture
def of_memory(monkeypatch):
    """Gives the emulated devices so many bytes."""

    def give(size):
        monkeypatch.setattr(hardware, "EMULATED", dataclasses.replace(EMULATED, hbm_bytes=size))

    return give


def test_a_state_too_large_asks_for_more_parts_and_compiles_nothing_more(of_memory, capsys, monkeypatch):
    c = small(data=8)  # every device holds all of it
    need = advice.Need(10**7, compiler.held(c, compiler.devices("cpu:8")[0], "train"))
    state = need.state
    of_memory(state * 0.9)
    monkeypatch.setattr(advice, "measure", None)
    text = advice.advise(c, "cpu:8", "train", need, contextlib.nullcontext)
    assert text.startswith("Activations, gradients and gathered weights take ") and "state alone" in text
    assert (
        "Use --config.mesh.data=1 --config.mesh.fsdp=1 --config.mesh.expert=8 --config.mesh.tensor=1, and plan" in text
    )
    assert "remat" not in text
    split = sum(compiler.held(small(expert=8), compiler.devices("cpu:8")[0], "train").values())
    assert split < state / 4
    of_memory(split / 3)
    text = advice.advise(c, "cpu:8", "train", need, contextlib.nullcontext)
    assert "No mesh of 8 chips holds it: more chips are needed, at least 24." in text or "at least 25." in text


def memory_of(c):
    """A stand-in for the compiler: state, and activations by what is kept of how many images."""
    kept = {"none": 100, "dots": 60, "full": 30}[c.model.remat]
    return 10 + kept / c.train.accumulate


@pytest.mark.parametrize(
    ("limit", "changes", "ends"),
    [
        (80, {}, ["--config.model.remat=dots"]),
        (50, {}, ["--config.model.remat=dots", "--config.model.remat=full"]),
        (50, {"model__remat": "dots"}, ["--config.model.remat=full"]),
        (30, {"model__remat": "full"}, ["--config.train.accumulate=2"]),
        (18, {"model__remat": "full"}, ["--config.train.accumulate=4"]),
        (14, {"model__remat": "full"}, ["--config.train.accumulate=12"]),  # with 8, groups do not split over devices
        (
            18,
            {},
            [
                "--config.model.remat=dots",
                "--config.model.remat=full",
                "--config.model.remat=full --config.train.accumulate=4",
            ],
        ),
    ],
)
def test_advice_is_what_was_found_by_trying(of_memory, monkeypatch, limit, changes, ends):
    of_memory(limit * 1e9)
    monkeypatch.setattr(hardware.os, "sysconf", lambda _: 2**30)  # an emulated device has no less
    c = small(expert=8)
    c = helpers.change(c, train__batch_size=192, **changes)

    def measure(changed, *_):
        return advice.Need(round(memory_of(changed) * 1e9), {"parameters": 10 * 10**9})

    monkeypatch.setattr(advice, "measure", measure)
    told = []

    def tell(what):
        told.append(what)
        return contextlib.nullcontext()

    text = advice.advise(c, "cpu:8", "train", measure(c), tell)
    assert told == [f"with {end}" for end in ends]
    assert text.splitlines()[-1] == f"Use {ends[-1]}"
    assert text.count(" fits") == 1
    for end in ends:
        changed = overrides.apply(small(expert=8), overrides.split(end.split())[1])
        changed = helpers.change(changed, train__batch_size=192)
        checks.validate(changed)
        specs.check_batch(changed, jax.sharding.AbstractMesh((1, 1, 8, 1), MESH_AXES))
        if "model__remat" in changes and "remat" not in end:
            changed = helpers.change(changed, model__remat=changes["model__remat"])
        assert f"{memory_of(changed):7.1f}  {end}" in text
    assert text.startswith("Activations, gradients and gathered weights take ")


@pytest.mark.parametrize("name", ["missing/plan.json", "."])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_compiled(tmp_path, monkeypatch, name):
    monkeypatch.setattr(report, "make", None)
    with pytest.raises(UserError, match=r"--json=.*: (there is no folder|.* is a folder)"):
        plan.plan(small(expert=8), "cpu:8", "train", str(tmp_path / name))


def test_what_does_not_divide_is_not_advised(of_memory, monkeypatch):
    """One image a device leaves nothing to accumulate."""
    of_memory(20e9)
    monkeypatch.setattr(hardware.os, "sysconf", lambda _: 2**30)
    c = helpers.change(small(expert=8), train__batch_size=8, model__remat="full")
    need = advice.Need(40 * 10**9, {"parameters": 10 * 10**9})
    monkeypatch.setattr(advice, "measure", None)
    text = advice.advise(c, "cpu:8", "train", need, contextlib.nullcontext)
    assert "accumulate" not in text and text.endswith("None of it fits: more chips are needed.")


def test_what_fits_by_no_setting_says_so(of_memory, monkeypatch):
    of_memory(10.1e9)
    monkeypatch.setattr(hardware.os, "sysconf", lambda _: 2**30)
    need = advice.Need(None, {"parameters": 10 * 10**9})
    monkeypatch.setattr(advice, "measure", lambda *_: need)
    c = small(expert=8)
    text = advice.advise(c, "cpu:8", "train", need, lambda _: contextlib.nullcontext())
    assert text.endswith("None of it fits: more chips are needed.")
    text = advice.advise(c, "cpu:8", "train", need, lambda _: contextlib.nullcontext(), tries=False)
    assert text.endswith("Nothing was tried (--notry).")
    text = advice.advise(c, "cpu:8", "sample", need, lambda _: contextlib.nullcontext())
    assert "--config.sample.batch_size=4" in text and "remat" not in text


@pytest.mark.exhaustive
def test_emulated_devices_count_what_is_made_on_the_way(of_memory, found):
    """Activations, too: four times the images take more, and the memory of the machine is all there is."""
    many = helpers.change(small(expert=8), train__batch_size=8 * 16)
    less, more = found, report.make(many, "cpu:8", "train")
    kind = "activations and temporaries"
    assert less.memory[kind] > 100_000  # 2 images of 8 tokens a device, 2 blocks of width 32
    assert more.memory[kind] > 4 * less.memory[kind]
    of_memory((less.hbm_bytes + more.hbm_bytes) / 2)
    assert less.fits and not dataclasses.replace(more, chip=compiler.devices("cpu:8")[1]).fits
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    of_memory(1e18)
    assert compiler.devices("cpu:8")[1].hbm_bytes == machine / 8


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 123.50G of 95.74G hbm.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (123.50G) exceeds",
    ],
)
def test_a_compiler_that_gives_up_for_memory_is_a_model_too_large(monkeypatch, capsys, tmp_path, message):
    def give_up(*_):
        raise compiler.DoesNotFit(message, {"parameters": 10**9})

    monkeypatch.setattr(compiler, "train_step", give_up)
    path = tmp_path / "plan.json"
    assert plan.plan(small(expert=8), "cpu:8", "train", str(path), tries=False) == 1
    needed = round(123.5 * 2**30)
    assert json.loads(path.read_text()) == {"fits": False, "hbm_bytes_per_chip": needed}
    assert f"needs at least {needed / 1e9:.1f} GB" in capsys.readouterr().out


@pytest.mark.parametrize("before", [None, "", "v5litepod-8"])
def test_the_compiler_is_told_of_the_topology_whatever_the_machine_is(monkeypatch, before):
    """An empty variable, or another slice's, makes it complain on standard error."""
    names = (
        "JAX_PLATFORMS TPU_SKIP_MDS_QUERY ALLOW_MULTIPLE_LIBTPU_LOAD TPU_STDERR_LOG_LEVEL TPU_MIN_LOG_LEVEL XLA_FLAGS"
    )
    for name in (*names.split(), "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # and back to it afterwards
    if before is None:
        monkeypatch.delenv("TPU_ACCELERATOR_TYPE")
    else:
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", before)
    plan.prepare_environment(topology.parse("cpu:8"))
    assert os.environ.get("TPU_ACCELERATOR_TYPE") == before  # left to programs that this one starts
    plan.prepare_environment(topology.parse("v5p:8x8x8"))
    assert os.environ["TPU_ACCELERATOR_TYPE"] == "v5p-1024"


def test_a_long_compilation_gives_signs_of_life(monkeypatch, capsys):
    monkeypatch.setattr(plan, "_TELL_SECONDS", 0.01)
    with plan._told("tiny for cpu:8"):
        time.sleep(0.1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("compiling tiny for cpu:8; a minute or two")
    assert len(lines) > 1 and set(lines[1:]) == {"  still compiling, 0 s"}


def test_without_the_compiler_the_formulas_still_speak(monkeypatch, capsys):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda _: None)
    from jax.experimental import topologies

    def missing(**_):
        raise RuntimeError("no libtpu")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    c = presets.paper("m_64e")
    with pytest.raises(UserError, match=r"pip install -e '\.\[tpu\]'"):
        plan.plan(config.typed(c), None, "train", None)
    text = capsys.readouterr().out
    assert "97.11 B" in text and "512 chips of v5p" in text


@pytest.mark.parametrize("topology", ["v9:2x2", "v5p", "v5e:4x4x4", "cpu:0", "cpu:2x4"])
def test_a_topology_that_there_is_not_never_reaches_the_compiler(topology, capsys):
    with pytest.raises(UserError, match=f"--topology={topology}: "):
        compiler.devices(topology)
    assert plan.main(["plan", "--config=configs/xl_8e.py", f"--topology={topology}"]) == 2
    assert f"plan: --topology={topology}: " in capsys.readouterr().err


def test_more_emulated_devices_than_there_are():
    with pytest.raises(UserError, match="8 emulated devices are here"):
        compiler.devices("cpu:16")


def test_a_config_without_topology_needs_one():
    with pytest.raises(UserError, match="--topology="):
        plan.plan(small(), None, "train", None)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_without_guidance_is_one_evaluation(guidance):
    c = helpers.change(small(expert=8), sample__guidance=guidance)
    found = report.make(c, "cpu:8", "sample")
    assert 0.95 < found.compiled_flops / found.model_flops < 1.15


def test_an_odd_number_of_samples_is_padded_and_counted_so():
    c = helpers.change(small(expert=8), sample__batch_size=5)
    assert report.make(c, "cpu:8", "sample").images == 8
