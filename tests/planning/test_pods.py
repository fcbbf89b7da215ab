"""What the real TPU compiler makes of the largest and the smallest pod, held to the figures in docs/plans.json."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIDTHS, EXPERTS = {"m_64e": 3072, "xl_32e": 1152}, {"m_64e": 64, "xl_32e": 32}


def figures(path, *command):
    """What a command leaves in a JSON file, and what it says of errors."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU's compiler: pip install -e '.[tpu]'")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # meant for emulated devices
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text()), done.stderr


LOWER = """
import json, sys
from pathlib import Path
from ec_dit import plan
from ec_dit.core import settings
from ec_dit.core.topology import parse
from ec_dit.config import overrides
config = settings.changed(overrides.read(sys.argv[1], []), {"data.source": "synthetic"})
plan.prepare_environment(parse(config.topology))
from ec_dit.planning import compile, report
digest = compile.train_step(config, compile.devices(config.topology)[0]).digest
Path(sys.argv[2]).write_text(json.dumps({"program": digest, "versions": report.versions()}))
"""


def planned(name, before, folder):
    """(figures of a training step, what was said of errors): those `before` where neither program nor compiler changed.

    Compiling one takes minutes, and the same compiler makes the same of the same program.
    """
    now, told = figures(folder / "lowered.json", "-c", LOWER, f"configs/{name}.py", folder / "lowered.json")
    if all(now[key] == before.get(key) for key in ("program", "versions")):
        return before, told
    path = folder / "plan.json"
    return figures(path, "-m", "ec_dit.plan", f"--config=configs/{name}.py", f"--json={path}")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", WIDTHS)
def test_a_training_step_needs_no_more_than_it_did(name, tmp_path):
    before = json.loads((ROOT / "docs" / "plans.json").read_text())[f"{name} train"]
    now, told = planned(name, before, tmp_path)

    assert told == ""  # the compiler warns hundreds of times of what harms nobody
    assert now["fits"] and now["unknown_loops"] == 0
    assert now["compiled_flops_per_chip"] < 1.15 * now["model_flops_per_chip"]
    # Nothing is larger, in bfloat16, than a feed-forward layer's weights, dense or an expert's, or a chip's slots (f_c = 2).
    weights, slots = 4 * WIDTHS[name] ** 2, 2 * 4096 * 128 // now["devices"] * WIDTHS[name]
    assert max(row["largest"] for row in now["collectives"]) <= 2 * max(weights, slots)
    # Left to itself the compiler adds up activations, and turns scattered gradients into all-reduces.
    reduced = [row["bytes"] for row in now["collectives"] if row["kind"] == "all-reduce" and "expert" in row["axes"]]
    assert sum(reduced) < 1e6

    if now["versions"] != before["versions"]:
        return  # another compiler; `make plans` measures it
    assert now["hbm_bytes_per_chip"] < 1.02 * before["hbm_bytes_per_chip"]
    assert now["model_flops_per_chip"] == before["model_flops_per_chip"]
    assert now["compiled_flops_per_chip"] < 1.005 * before["compiled_flops_per_chip"]
    assert now["hbm_traffic_bytes_per_chip"] < 1.05 * before["hbm_traffic_bytes_per_chip"]
    old = {(row["kind"], *row["axes"]): row["bytes"] for row in before["collectives"]}
    for row in now["collectives"]:
        assert row["bytes"] < 1.02 * old.get((row["kind"], *row["axes"]), 0) + 1e6, row
    assert now["roofline"]["exposed_ici_s"] < 1.1 * before["roofline"]["exposed_ici_s"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", WIDTHS)
def test_the_sparse_layer_does_the_work_of_theory_and_sends_tokens_only(name, tmp_path):
    path = tmp_path / "layer.json"
    layer, _ = figures(
        path, "benchmarks/layouts.py", f"--only={name}", "--change=sparse layer: scatter", f"--worker={path}"
    )
    assert 0.98 < layer["flops"] / layer["theory"] <= 1.02
    assert len(layer["collectives"]["all-to-all"]) == 4
    router = 4 * WIDTHS[name] * EXPERTS[name]
    assert max(layer["collectives"]["all-reduce"], default=0) <= router
