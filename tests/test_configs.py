"""Every paper config: what its docstring promises, what it builds, and what its :smoke keeps."""

import importlib.util
import os
import re
import subprocess
import sys
from math import prod
from pathlib import Path

import jax
import pytest
from flax import nnx

from ec_dit import config, presets
from ec_dit.config import checks, specs
from ec_dit.core import sharding, tree
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import MESH_AXES, resolve_shape
from ec_dit.models.dit import DiT
from ec_dit.models.paper import CAPACITY_FACTOR, PAPER
from ec_dit.models.sizes import sizes
from ec_dit.nn import param
from tests import helpers

ROOT = Path(__file__).parents[1]
SPARSE = [name for name in PAPER if PAPER[name].routing != "dense"]


def load(name: str):
    """The config file as a module, found by path as ml_collections does (3xl_8e is no Python name)."""
    path = ROOT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"config_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chips(c) -> int:
    return prod(int(side) for side in c.topology.partition(":")[2].split("x"))


def paper_mesh(c) -> jax.sharding.AbstractMesh:
    return jax.sharding.AbstractMesh(resolve_shape([getattr(c.mesh, axis) for axis in MESH_AXES], chips(c)), MESH_AXES)


def test_every_row_of_the_paper_has_a_config():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} >= PAPER.keys()


@pytest.mark.parametrize("name", PAPER)
def test_config_is_its_row(name):
    c = config.typed(load(name).get_config())
    checks.validate(c)
    assert c.name == name
    assert specs.dit_spec(c) == PAPER[name].spec
    assert (c.moe.routing, c.moe.capacity_factor) == (PAPER[name].routing, CAPACITY_FACTOR)


@pytest.mark.parametrize("name", PAPER)
def test_docstring_holds_what_the_formula_and_the_mesh_give(name):
    module = load(name)
    text, c, ours = module.__doc__, config.typed(module.get_config()), sizes(PAPER[name].spec)
    numbers = re.search(r"transformer only: ([\d,]+) in total, ([\d,]+) activated\.", text).groups()
    assert [int(number.replace(",", "")) for number in numbers] == [ours.total, ours.activated]
    assert text.startswith(PAPER[name].title)
    for printed, unit in ((PAPER[name].total, "B parameters"), (PAPER[name].activated, "B activated")):
        if printed and not (name.startswith("dense") and unit == "B activated"):
            assert f"{printed:.2f} {unit}" in text

    spec, mesh = PAPER[name].spec, paper_mesh(c)
    structure = (
        f"width {spec.width}, {spec.num_blocks} blocks, {spec.num_heads} heads, {spec.num_kv_heads} key-value heads"
    )
    assert structure in text
    assert not spec.sparse.num_experts or f"{spec.sparse.num_experts} experts in every second block" in text
    axis = "expert" if spec.sparse.num_experts else "fsdp"
    assert c.topology in text
    rest = "data" if axis == "fsdp" else "fsdp"
    assert f"{chips(c)} chips as {axis} {mesh.shape[axis]} x {rest} {mesh.shape[rest]}." in text
    assert f"--config=configs/{name}.py " in text


@pytest.mark.parametrize("name", PAPER)
def test_builds_abstractly_and_lays_out_on_its_topology(name):
    c = config.typed(load(name).get_config())
    _, params, infos = param.split(nnx.eval_shape(lambda: DiT(specs.dit_spec(c), rngs=nnx.Rngs(0))))
    assert tree.num_params(params) == sizes(PAPER[name].spec).total
    mesh = paper_mesh(c)
    info_of = dict(tree.named_leaves(infos))
    for path, leaf in tree.named_leaves(params):
        spec = sharding.partition_spec(info_of[path].axes, leaf.shape, mesh, path)
        if path.startswith("stages/"):
            assert {"expert", "fsdp"} & set(jax.tree.leaves(tuple(spec))), f"{path} is replicated"
    specs.check_batch(c, mesh)
    specs.sample_settings(c)


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_minus_dense_is_exact(name):
    def built(experts: int) -> int:
        c = helpers.change(config.typed(load(name).get_config()), moe__num_experts=experts)
        return tree.num_params(nnx.state(nnx.eval_shape(lambda: DiT(specs.dit_spec(c), rngs=nnx.Rngs(0))), nnx.Param))

    spec = PAPER[name].spec
    d, e, k = spec.width, spec.sparse.num_experts, spec.num_blocks // 2
    assert built(e) - built(0) == k * ((e - 1) * 8 * d**2 + e * d)


@pytest.mark.parametrize("name", PAPER)
def test_smoke_is_small_and_keeps_the_structure(name):
    full, small = (config.typed(load(name).get_config(argument)) for argument in ("", "smoke"))
    checks.validate(small)
    specs.check_batch(small, jax.sharding.AbstractMesh((1, 1, 1, 1), MESH_AXES))
    specs.sample_settings(small)
    assert small.name == f"{name}_smoke"
    assert sizes(specs.dit_spec(small)).total < 10e6
    assert small.moe.routing == full.moe.routing
    assert small.moe.capacity_factor == full.moe.capacity_factor
    assert small.model.num_heads / small.model.num_kv_heads == full.model.num_heads / full.model.num_kv_heads
    assert (small.moe.first, small.moe.every) == (full.moe.first, full.moe.every)
    assert bool(sizes(specs.dit_spec(small)).sparse_blocks) == bool(full.moe.num_experts)
    assert (small.model.modulation, small.optimizer.name) == (full.model.modulation, full.optimizer.name)
    nnx.eval_shape(lambda: DiT(specs.dit_spec(small), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("world", ["shapes", "emoji"])
@pytest.mark.parametrize("name", presets.ROUTERS)
def test_twins_of_other_routers_cost_the_same(world, name):
    """At most 2 % apart in parameters that work on a token: routers and predictors of capacity are what differs."""
    one, twin = config.typed(load(world).get_config()), config.typed(load(f"{world}_router").get_config(name))
    for each in (twin, config.typed(load(f"{world}_router").get_config(f"{name},smoke"))):
        checks.validate(each)
        specs.check_batch(each, jax.sharding.AbstractMesh((1, 1, 1, 1), MESH_AXES))
        specs.sample_settings(each)
    assert twin.name == f"{world}_{name}"
    activated = [sizes(specs.dit_spec(c), c.moe.capacity_factor).activated for c in (one, twin)]
    assert activated[1] == pytest.approx(activated[0], rel=0.02)


def test_a_router_that_there_is_not_says_which_there_are():
    with pytest.raises(
        UserError, match=r"config argument ':rase': give one of race, diffmoe, .*--config=shapes_router:race"
    ):
        load("shapes_router").get_config("rase")


@pytest.mark.parametrize("name", PAPER)
def test_an_unknown_argument_says_what_there_is(name):
    with pytest.raises(UserError, match=rf"^config argument ':smok' is unknown. Use --config={name}, or {name}:smoke "):
        load(name).get_config("smok")


def test_a_config_loads_by_absolute_path_from_elsewhere(tmp_path):
    program = f"""if True:
        from absl import app
        from ml_collections import config_flags
        flag = config_flags.DEFINE_config_file("config", lock_config=True)
        show = lambda _: print(flag.value.name, flag.value.model.width)
        app.run(show, ["program", "--config={ROOT}/configs/3xl_8e.py:smoke"])
    """
    line = [sys.executable, "-c", program]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, check=False, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["3xl_8e_smoke", "192"], done.stderr
