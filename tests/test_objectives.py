"""An objective of one's own, with a frozen reference and pairs, from its line in the registry to a run that goes on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit import config, presets
from ec_dit.config import checks
from ec_dit.core.errors import UserError
from ec_dit.core.tree import named_leaves
from ec_dit.objectives.base import Objective
from ec_dit.objectives.registry import OBJECTIVES
from ec_dit.runs import training
from ec_dit.system import step as training_step
from ec_dit.train import state as train_state
from ec_dit.train.metrics import read_metrics
from tests import helpers

pytestmark = pytest.mark.slow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Apart(Objective):
    """Asks the model to say of each picture what the reference says of the other one."""

    needs_reference = needs_pairs = True

    def apart(self, model, frozen, batch):
        def said(network, image_BYXZ):
            t_B = jnp.full(image_BYXZ.shape[0], 0.5)
            return network.predict(image_BYXZ, t_B, network.encode(batch.text), self.routing)[0]

        difference = said(model, batch.image_BYXZ) - said(frozen, batch.rejected_BYXZ)
        return jnp.square(difference).mean((1, 2))

    def loss(self, model, frozen, batch, key):
        loss = self.apart(model, frozen, batch).mean()
        return loss, {"loss": loss}

    def validation_loss(self, model, frozen, batch, times=None):
        return self.apart(model, frozen, batch)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "apart", Apart)


def pairs(c):
    image_BYXZ = np.random.default_rng(1).uniform(-1, 1, (c.train.batch_size, 8, 8, 3)).astype(np.float32)
    return helpers.batch(c)._replace(rejected_BYXZ=image_BYXZ, position_B=np.arange(c.train.batch_size))


def random_params(system, seed, scale=0.2):
    """Everything random: zero gates would hide most of the parameters from the loss."""
    shapes, rng = system.shapes(), np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(0, scale, s.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param({}, id="one"),
        pytest.param(
            {"mesh__data": 2, "mesh__fsdp": 2, "mesh__expert": 2, "train__accumulate": 2},
            id="eight",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_a_step_compares_with_the_reference_and_leaves_it_as_it_is(mesh):
    c = helpers.tiny_config(objective__name="apart", train__init_from="elsewhere", flow__mask_ratio=0.0, **mesh)
    system = helpers.make_system(c, jax.devices()[: 8 if mesh else 1])
    tx, _, shardings = helpers.start(system)
    params, reference = (random_params(system, seed) for seed in (0, 1))
    start = train_state.TrainState(np.int32(0), jax.random.key(0), params, params, tx.init(params))
    state = jax.device_put(start, shardings)
    wanted = training_step.frozen_shape(system)
    assert jax.tree.map(lambda leaf: leaf.sharding, wanted) == shardings.params
    frozen = jax.device_put(reference, shardings.params)
    if mesh:
        large = [leaf for leaf in jax.tree.leaves(frozen) if leaf.ndim > 2]
        assert all(leaf.addressable_shards[0].data.size <= leaf.size // 2 for leaf in large)

    batch = pairs(c)
    with jax.set_mesh(system.mesh):
        placed, step = training_step.place(system, batch), training_step.make_train_step(system, tx, shardings)
        validation, count = training_step.make_validation(system)(state.params, placed, frozen=frozen)
        after, metrics = step(state, placed, frozen)
        again, _ = step(after, placed, frozen)

    own = helpers.make_system(helpers.change(c, **dict.fromkeys(mesh, 1)), jax.devices()[:1])
    objective = Apart(aux_weight=0, routing=training_step.specs.train_routing(own.config), null_text=None)
    alone = jax.jit(
        lambda params, frozen: objective.apart(*(nnx.merge(own.graphdef, p) for p in (params, frozen)), batch)
    )
    assert float(metrics["loss"]) == pytest.approx(float(alone(params, reference).mean()), rel=1e-4)
    assert float(validation) == pytest.approx(float(alone(params, reference).sum()), rel=1e-4) and count == 16
    assert jax.tree.structure(again) == jax.tree.structure(start)
    for (name, left), (_, right) in zip(named_leaves(reference), named_leaves(frozen), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)
    moved = jax.tree.map(lambda new, old: float(np.abs(np.asarray(new) - old).max()), again.params, params)
    assert min(jax.tree.leaves(moved)) > 0


def test_data_without_pairs_are_told():
    c = helpers.tiny_config(objective__name="apart", train__init_from="elsewhere")
    system = helpers.make_system(c, jax.devices()[:1])
    with pytest.raises(UserError, match=r"objective.name=apart learns from pairs of pictures.*these data hold single"):
        training_step.place(system, helpers.batch(c))


def test_a_reference_that_is_not_named_is_told():
    c = helpers.change(helpers.tiny_config(), objective__name="apart")
    with pytest.raises(
        UserError, match=r"objective.name='apart': it compares the model .* with --config.train.init_from"
    ):
        checks.validate(c)
    checks.validate(helpers.change(c, train__init_from="somewhere"))
    with pytest.raises(UserError, match=r"objective.name='apar': choose one of denoise, apart \(did you mean apart"):
        checks.validate(helpers.change(c, objective__name="apar"))


def small(**changes):
    c = presets.smoke(config.default())
    c.model.update(num_blocks=1)
    c.moe.update(routing="dense", num_experts=0)
    c.text.update(encoder="cached", width=8)
    c.data.update(source="synthetic", space="latents", size=8, channels=4)
    c.train.update(steps=4, batch_size=8)
    c.checkpoint.update(every=1, keep=10)
    c.log.every = 1
    c.mesh.data = 8
    return helpers.change(config.typed(c), **changes)


def run(c, workdir):
    checks.validate(c)
    lines = []
    return training.run(c, str(workdir), lines.append), lines


def test_what_a_run_starts_with_is_its_reference_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "peak_flops", lambda device: (1e12, "made up"))
    first, moved, newest = tmp_path / "first", tmp_path / "moved", tmp_path / "newest"
    run(small(train__steps=2), first)
    (first / "checkpoints" / "2").rename(newest)
    wanted = {"objective__name": "apart", "train__init_from": str(first)}
    whole, said = run(small(**wanted), tmp_path / "whole")
    assert f"starting with the parameters of {first}" in said
    losses = [row["loss"] for row in read_metrics(str(tmp_path / "whole")) if "loss" in row]
    assert len(losses) == len(set(losses)) == 4

    run(small(**wanted, train__steps=2), tmp_path / "broken")
    with pytest.raises(UserError, match=r'objective.name: "apart" -> "denoise"'):
        run(small(train__init_from=str(first)), tmp_path / "broken")
    newest.rename(first / "checkpoints" / "2")  # it trained on: its newest parameters are others from now on
    first.rename(moved)
    gone = r"started from \(step 1 of .*first\) are gone from .*=.*first: .*\n.*apart compares the model with them: name a folder"
    with pytest.raises(UserError, match=gone):
        run(small(**wanted), tmp_path / "broken")
    with pytest.raises(UserError, match=r"whole holds others than the parameters .* \(step 1 of .*first\)"):
        run(small(**wanted | {"train__init_from": str(tmp_path / "whole")}), tmp_path / "broken")
    assert run(small(**wanted | {"train__init_from": str(moved)}), tmp_path / "broken")[0] == whole
