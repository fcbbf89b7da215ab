"""python -m ec_dit.plan on emulated devices: its figures against arithmetic, its exit codes and its messages."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from ec_dit import checks, plan, presets, specs
from ec_dit.core.errors import UserError
from ec_dit.models import sizes
from ec_dit.planning import compile as compiler
from ec_dit.planning import hardware, report
from tests import helpers

KEYS = {"fits", "devices", "hbm_bytes_per_chip", "hbm_limit_bytes", "memory", "params_total", "params_activated"}
KEYS |= {"model_flops_per_chip", "compiled_flops_per_chip", "collectives", "roofline", "step_seconds", "mfu"}
KEYS |= {"hours_800k", "paper_hours"}


def small(routing="expert_choice", **mesh) -> ConfigDict:
    """A paper config's structure at a size that compiles in seconds, on cached text and latents."""
    c = helpers.tiny_config(routing)
    c.model.qk_norm = False
    c.text.update(encoder="cached", width=32)
    c.data.update(source="synthetic", space="latents", size=8, channels=4)
    c.mesh.update({"data": 1} | mesh)
    checks.validate(c)
    return c


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


def test_hours_are_of_the_papers_schedule():
    found = report.make(small(expert=8), "cpu:8", "train")
    assert found.hours == pytest.approx(800_000 * 4096 / 16 * found.roofline.step_s / 3600)
    assert found.mfu == pytest.approx(found.model_flops / found.roofline.step_s / hardware.EMULATED.flops)


@pytest.mark.parametrize("routing", ["expert_choice", "dense"])
def test_figures_of_sampling(routing):
    c = small(routing, expert=1 if routing == "dense" else 8, fsdp=8 if routing == "dense" else 1)
    found = report.make(c, "cpu:8", "sample")
    assert found.hours is None and set(found.memory) == {"parameters", "batch", "activations and temporaries"}
    both = 2 * sizes.forward_flops(specs.dit_spec(c), 16, c.text.length, 2.0)
    assert found.model_flops == both * 8 / 8
    assert 0.95 < found.compiled_flops / found.model_flops < 1.15


def test_a_model_too_large_is_said_to_be_with_what_would_help(monkeypatch, capsys):
    tiny = dataclasses.replace(hardware.EMULATED, hbm_bytes=1e5)
    monkeypatch.setitem(hardware.CHIPS, "cpu", tiny)
    assert plan.plan(small(expert=8), "cpu:8", "train", None) == 1
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text and "--config.mesh.fsdp" in text  # the state takes most of it
    assert "--config.model.remat=dots" in report.advice("train", activations=True)
    assert "--config.sample.batch_size" in report.advice("sample", activations=True)


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 123.50G of 95.74G hbm.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (123.50G) exceeds",
    ],
)
def test_a_compiler_that_gives_up_for_memory_is_a_model_too_large(monkeypatch, capsys, tmp_path, message):
    def give_up(*_):
        raise compiler.DoesNotFit(message)

    monkeypatch.setattr(compiler, "train_step", give_up)
    path = tmp_path / "plan.json"
    assert plan.plan(small(expert=8), "cpu:8", "train", str(path)) == 1
    needed = round(123.5 * 2**30)
    assert json.loads(path.read_text()) == {"fits": False, "hbm_bytes_per_chip": needed}
    assert f"needs at least {needed / 1e9:.1f} GB" in capsys.readouterr().out


def test_without_the_compiler_the_formulas_still_speak(monkeypatch, capsys):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda _: None)
    from jax.experimental import topologies

    def missing(**_):
        raise RuntimeError("no libtpu")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    c = presets.paper("m_64e")
    presets.pod(c, "v5p:8x8x8", expert=64, fsdp=-1)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tpu\]'"):
        plan.plan(c, None, "train", None)
    text = capsys.readouterr().out
    assert "97.11 B" in text and "512 chips of v5p" in text


@pytest.mark.parametrize("topology", ["v9:2x2", "v5p", "v5p:", "v5p:axb", "v5p:0x2x2", "cpu:0", "cpu:2x4"])
def test_a_topology_that_nobody_knows(topology):
    with pytest.raises(UserError, match="known are v4, v5p"):
        compiler.devices(topology)


def test_more_emulated_devices_than_there_are():
    with pytest.raises(UserError, match="8 emulated devices are here"):
        compiler.devices("cpu:16")


def test_a_config_without_topology_needs_one():
    with pytest.raises(UserError, match="--topology="):
        plan.plan(small(), None, "train", None)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_without_guidance_is_one_evaluation(guidance):
    c = small(expert=8)
    c.sample.guidance = guidance
    found = report.make(c, "cpu:8", "sample")
    assert 0.95 < found.compiled_flops / found.model_flops < 1.15


def test_an_odd_number_of_samples_is_padded_and_counted_so():
    c = small(expert=8)
    c.sample.batch_size = 5
    assert report.make(c, "cpu:8", "sample").images == 8
