"""Models of other blocks with the weights of tiny random Nucleus-Image and SD3, from the folders that diffusers wrote, give
diffusers' outputs; and their configs and tensors go back.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ec_dit.core import hub, name_map
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.core.settings import narrow
from ec_dit.core.tree import named_leaves, num_params
from ec_dit.encoders import weights
from ec_dit.models import sizes
from ec_dit.models.dit import DiT
from ec_dit.models.published import nucleus, sd3
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.nn.embeddings import unpatchify
from ec_dit.nn.routing.spec import RoutingSpec
from tests import published_folders

pytestmark = pytest.mark.slow

LAYOUTS = {"nucleus": nucleus, "sd3": sd3}
CASES = {
    "nucleus": ("nucleus", {}),
    "nucleus, sigmoid": ("nucleus", {"use_sigmoid": True, "route_scale": 1.5, "capacity_factors": 1.0}),
    "nucleus, last block dense": ("nucleus", {"dense_moe_strategy": "leave_first_three_and_last_block_dense"}),
    "nucleus, dense": ("nucleus", {"dense_moe_strategy": "all_dense", "num_key_value_heads": 4}),
    "nucleus, a wide picture": ("nucleus", {"rows": 6, "columns": 16}),
    "nucleus, half precision in the file": ("nucleus", {"dtype": "bfloat16"}),
    "sd3": ("sd3", {}),
    "sd3, a wide picture": ("sd3", {"rows": 6, "columns": 20}),
    "sd3.5": ("sd3", published_folders.SD35),
    "sd3.5, every block": ("sd3", {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1, 2)}),
}


def load(layout, folder):
    """(spec, routing, graph definition, parameters) of what lies in a folder."""
    spec, moe = layout.read(hub.config(folder), "config.json")
    graphdef, params = weights.load(
        lambda rngs: DiT(spec, rngs=rngs),
        lambda names: layout.entries(names, spec),
        hub.TensorFiles(folder),
        make_mesh((1, 1, 1, 1), jax.devices()[:1]),
        np.dtype("float32"),
        [name for name, _ in layout.unread(spec)],
    )
    return spec, narrow(RoutingSpec, moe), graphdef, params


def example(spec, rows, columns):
    rng = np.random.default_rng(0)
    return {
        "x_BYXZ": rng.normal(size=(3, rows, columns, spec.channels)).astype(np.float32),
        "t_B": np.array([0.001, 0.371, 0.999], np.float32),
        "text_BTM": rng.normal(size=(3, 7, spec.text_width)).astype(np.float32),
        "mask_BT": np.arange(7) < np.array([[7], [4], [1]]),
        "pooled_BM": rng.normal(size=(3, spec.pooled_width)).astype(np.float32) if spec.pooled_width else None,
    }


def theirs_of(kind, model, spec, given):
    """diffusers' prediction as ours has it, (B, Y, X, Z): noise less data."""
    import torch

    x_BZYX = torch.from_numpy(given["x_BYXZ"].transpose(0, 3, 1, 2).copy())
    text_BTM, t_B = torch.from_numpy(given["text_BTM"]), torch.from_numpy(given["t_B"])
    if kind == "sd3":
        out = model(x_BZYX, text_BTM, torch.from_numpy(given["pooled_BM"]), 1000 * t_B).sample
        return out.permute(0, 2, 3, 1)
    from diffusers import NucleusMoEImagePipeline as Pipeline

    batch, channels, rows, columns = x_BZYX.shape
    packed = Pipeline._pack_latents(x_BZYX, batch, channels, rows, columns, spec.patch)
    out = model(
        packed,
        img_shapes=[(1, rows // spec.patch, columns // spec.patch)] * batch,
        encoder_hidden_states=text_BTM,
        encoder_hidden_states_mask=torch.from_numpy(given["mask_BT"]),
        timestep=t_B,
    ).sample
    return -Pipeline._unpack_latents(out, rows, columns, spec.patch, 1)[:, :, 0].permute(0, 2, 3, 1)


def shown(case):
    kind, changes = CASES[case]
    changes = dict(changes)
    rows, columns, dtype = (
        changes.pop(key, plain) for key, plain in (("rows", 8), ("columns", 8), ("dtype", "float32"))
    )
    return kind, changes, rows, columns, dtype


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_diffusers(case, tmp_path):
    import torch

    kind, changes, rows, columns, dtype = shown(case)
    theirs = published_folders.save(kind, tmp_path, dtype, **changes)
    spec, routing, graphdef, params = load(LAYOUTS[kind], tmp_path)
    given = example(spec, rows, columns)
    if kind == "sd3":  # it knows no masks
        given["mask_BT"] = np.ones_like(given["mask_BT"])
    out_BSP, stats = jax.jit(lambda params, given: nnx.merge(graphdef, params)(**given, routing=routing))(params, given)
    out_BYXZ = unpatchify(out_BSP, spec.patch, rows // spec.patch, columns // spec.patch)
    with torch.no_grad():
        expected_BYXZ = theirs_of(kind, theirs, spec, given).numpy()
    assert expected_BYXZ.std() > 0.1
    np.testing.assert_allclose(out_BYXZ, expected_BYXZ, rtol=1e-4, atol=1e-4)
    assert (stats is None) == (spec.num_sparse == 0)


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("case", ["nucleus", "nucleus, sigmoid", "sd3", "sd3.5"])
def test_one_step_of_training_equals_pytorch(case, tmp_path):
    """Loss, every gradient by its effect on Adam's first step, and the loss after it."""
    import torch

    kind, changes, rows, columns, _ = shown(case)
    theirs = published_folders.save(kind, tmp_path, **changes)
    spec, routing, graphdef, params = load(LAYOUTS[kind], tmp_path)
    given = example(spec, rows, columns)
    if kind == "sd3":
        given["mask_BT"] = np.ones_like(given["mask_BT"])
    target_BYXZ = np.random.default_rng(1).normal(size=given["x_BYXZ"].shape).astype(np.float32)

    def loss(params):
        out_BSP, _ = nnx.merge(graphdef, params)(**given, routing=routing)
        out_BYXZ = unpatchify(out_BSP, spec.patch, rows // spec.patch, columns // spec.patch)
        return jnp.mean(jnp.square(out_BYXZ - target_BYXZ))

    rate, eps = 1e-3, 1e-3  # eps well above what rounding makes of gradients that are zero
    tx = optax.adam(rate, eps=eps)

    @jax.jit
    def step(params):
        before, gradients = jax.value_and_grad(loss)(params)
        updates, _ = tx.update(gradients, tx.init(params))
        return before, optax.apply_updates(params, updates)

    before, stepped = step(params)
    optimizer = torch.optim.Adam(theirs.parameters(), rate, eps=eps)
    target = torch.from_numpy(target_BYXZ)
    expected = []
    for _ in range(2):
        value = (theirs_of(kind, theirs, spec, given) - target).square().mean()
        expected.append(value.item())
        optimizer.zero_grad()
        value.backward()
        if len(expected) == 1:
            optimizer.step()
    np.testing.assert_allclose([before, jax.jit(loss)(stepped)], expected, rtol=1e-4)
    assert expected[1] < 0.98 * expected[0]
    table = LAYOUTS[kind].entries([name for name, _ in named_leaves(params)], spec)
    state = {name: weight.detach().numpy() for name, weight in theirs.named_parameters()}
    moved = dict(name_map.tensors(stepped, table))
    unread = {name for name, _ in LAYOUTS[kind].unread(spec)}
    assert moved.keys() == state.keys() - unread
    for name, ours in moved.items():
        np.testing.assert_allclose(ours, state[name], rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.extra("conformance")
@pytest.mark.parametrize(
    "case", ["nucleus", "nucleus, sigmoid", "nucleus, last block dense", "nucleus, dense", "sd3", "sd3.5"]
)
def test_config_and_tensors_go_both_ways(case, tmp_path):
    kind, changes, *_ = shown(case)
    theirs, layout = published_folders.save(kind, tmp_path, **changes), LAYOUTS[kind]
    spec, moe = layout.read(hub.config(tmp_path), "config.json")
    ours = layout.write(spec, moe)
    assert layout.read(json.loads(json.dumps(ours)), "") == (spec, moe)
    made = type(theirs).from_config(ours)
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()} == shapes

    _, _, _, params = load(layout, tmp_path)
    table = layout.entries([name for name, _ in named_leaves(params)], spec)
    written = dict(layout.unread(spec)) | dict(name_map.tensors(params, table))
    assert written.keys() == shapes.keys()
    passed = {name for name, _ in layout.unread(spec)} - {sd3.POSITIONS}
    for name, tensor in theirs.state_dict().items():
        if name in passed:
            assert written[name].shape == shapes[name]
        elif name == sd3.POSITIONS:
            np.testing.assert_allclose(written[name], tensor.numpy(), atol=1e-5)
        else:
            np.testing.assert_array_equal(written[name], tensor.numpy(), err_msg=name)


SD3 = {"_class_name": sd3.CLASS, **published_folders.SD3}
NUCLEUS = {"_class_name": nucleus.CLASS, **published_folders.NUCLEUS, "axes_dims_rope": [4, 6, 6]}


@pytest.mark.parametrize(
    ("layout", "found", "changes", "message"),
    [
        (
            sd3,
            SD3,
            {"_class_name": "FluxTransformer2DModel"},
            "_class_name is 'FluxTransformer2DModel'; supported: 'SD3",
        ),
        (
            sd3,
            SD3,
            {"dual_attention_layers": [1]},
            r"dual_attention_layers is \[1\]; supported: the first so many blocks",
        ),
        (sd3, SD3, {"caption_projection_dim": 40}, "caption_projection_dim is 40; supported: the width, 32"),
        (sd3, SD3, {"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'; supported: 'rms_norm', None"),
        (sd3, SD3, {"out_channels": 8}, "out_channels is 8; supported: 4"),
        (nucleus, NUCLEUS, {"out_channels": 16}, "comes in as 16 numbers, and goes out as 16 x 4"),
        (nucleus, NUCLEUS, {"dense_moe_strategy": "odd"}, "dense_moe_strategy is 'odd'; supported: leave_first"),
        (nucleus, NUCLEUS, {"axes_dims_rope": [4, 4, 4]}, r"rope_axes \(4, 4, 4\): .* add up to head_dim, 16"),
        (nucleus, NUCLEUS, {"capacity_factors": [2.0]}, "capacity_factors has 1 numbers, and there are 6 blocks"),
    ],
)
def test_other_configs_are_refused(layout, found, changes, message):
    layout.read(found, "here")
    with pytest.raises(UserError, match=message):
        layout.read(found | changes, "config.json")


@pytest.mark.parametrize(
    ("layout", "found", "changes", "message"),
    [
        (sd3, SD3, {"bias": False}, "model.bias is False, not True"),
        (sd3, SD3, {"block": "cross_attention"}, "model.block is cross_attention"),
        (sd3, SD3, {"position_scale": 0.7}, "positions' grid over position_scale"),
        (nucleus, NUCLEUS, {"position_scale": 2.0}, "model.position_scale is 2.0, not 1.0"),
        (nucleus, NUCLEUS, {"ffn_width": 100}, "model.ffn_width, in multiples of 128, is 100"),
    ],
)
def test_what_they_do_not_have_is_not_written(layout, found, changes, message):
    spec, moe = layout.read(found, "here")
    layout.write(spec, moe)
    with pytest.raises(UserError, match=message):
        layout.write(dataclasses.replace(spec, **changes), moe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "score"}, "moe.gate is score, not normalized"),
        ({"shared_width": 8}, "moe.shared_width is 8, not 12"),
        ({"first": 2}, "moe.first, every and stop is .* dense blocks, then sparse ones"),
        ({"stop": 4}, "moe.first, every and stop is .* dense blocks, then sparse ones"),
    ],
)
def test_another_routing_is_not_written(changes, message):
    spec, moe = nucleus.read(NUCLEUS, "here")
    moe = dataclasses.replace(moe, capacity_factors=(), **changes)
    with pytest.raises(UserError, match=message):
        nucleus.write(dataclasses.replace(spec, sparse=narrow(SparseSpec, moe)), moe)


SIZES = {
    "nucleus": (nucleus, nucleus.IMAGE, 16.9e9),  # "17 B, about 2 B activated", 2604.12163
    "sd3_medium": (sd3, sd3.MEDIUM, 2.03e9),  # "2 B", 2403.03206
}


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("name", SIZES)
def test_full_sizes_have_as_many_parameters_as_diffusers(name):
    import diffusers
    import torch

    layout, found, published = SIZES[name]
    spec, _ = layout.read(found, "here")
    with torch.device("meta"):
        theirs = getattr(diffusers, found["_class_name"])(**{key: v for key, v in found.items() if key[0] != "_"})
    unread = {label for label, _ in layout.unread(dataclasses.replace(spec, position_grid=64))}
    counted = sum(weight.numel() for label, weight in theirs.named_parameters() if label not in unread)
    model = nnx.eval_shape(lambda: DiT(spec, rngs=nnx.Rngs(0)))
    assert num_params(nnx.state(model, nnx.Param)) == counted == sizes.sizes(spec).total
    assert counted == pytest.approx(published, rel=0.01)
    if spec.num_sparse:
        assert sizes.sizes(spec).activated == pytest.approx(2e9, rel=0.1)


def test_experts_as_wide_as_dense_layers_are_written_by_their_width():
    spec, moe = nucleus.read(NUCLEUS, "here")
    moe = dataclasses.replace(moe, expert_width=0, shared_width=128, stop=6)
    written = nucleus.write(dataclasses.replace(spec, sparse=narrow(SparseSpec, moe)), moe)
    assert written["moe_intermediate_dim"] == 128
    with pytest.raises(UserError, match=r"moe\.shared_width is 0"):
        nucleus.write(spec, dataclasses.replace(moe, shared_width=0))
