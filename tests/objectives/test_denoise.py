"""The loss against NumPy: times, noise, kept tokens and dropped captions drawn again from the same key."""

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.core.tree import named_leaves
from ec_dit.data.batch import Batch, Text
from ec_dit.flow.ddpm import Ddpm
from ec_dit.flow.rectified import RectifiedFlow
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.spec import DiTSpec
from ec_dit.models.text_spec import TowerSpec
from ec_dit.models.text_to_image import TextToImage, without_variance
from ec_dit.nn.routing.spec import RoutingSpec
from ec_dit.objectives.denoise import Denoise, drop_captions
from ec_dit.sampling.generator import predict_fn
from ec_dit.sampling.samplers import SAMPLERS
from tests import plain

pytestmark = pytest.mark.slow

BATCH, SIZE, PATCH, CHANNELS, LENGTH, FLOOR = 8, 8, 2, 3, 5, 0.05
DIT = DiTSpec(
    width=16,
    num_blocks=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    patch=PATCH,
    latent_size=SIZE,
    channels=CHANNELS,
    text_width=16,
    sparse=SparseSpec(4, first=0, every=1),  # two sparse blocks: a sum over blocks is not a mean
)
TOWER = TowerSpec(vocab_size=11, width=16, num_blocks=1, num_heads=2, length=LENGTH)
ROUTING = RoutingSpec("expert_choice", 2.0)
NULL = Text(jnp.array([9, 0, 0, 0, 0]), jnp.arange(LENGTH) == 0)
# Times from 0.02 to 0.85: below the floor as well, and in several levels.
GOAL = {
    "null_text": NULL,
    "time_mean": -1.2,
    "time_std": 1.6,
    "mask_ratio": 0.5,
    "caption_dropout": 0.4,
    "aux_weight": 0.3,
}
KEY = jax.random.key(6)


@pytest.fixture
def random_model(randomise):
    """(graph definition, parameters), the output layer and the gates as well, which start at zero."""
    return randomise(lambda: TextToImage(DIT, TOWER, rngs=nnx.Rngs(0)), scale=0.2)


def example(batch=BATCH, seed=0):
    """Clean images and captions of 2 to 5 tokens, never those of the null caption."""
    rng = np.random.default_rng(seed)
    x0_BYXZ = rng.normal(size=(batch, SIZE, SIZE, CHANNELS)).astype(np.float32)
    ids_BT = rng.integers(1, 8, (batch, LENGTH)).astype(np.int32)
    return x0_BYXZ, Text(ids_BT, np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (batch, 1)))


def network(graphdef, routing, params, x_BYXZ, t_B, text, keep_BS=None):
    """The model alone: patches and statistics."""
    model = nnx.merge(graphdef, params)
    text = model.encode(text)
    return model.dit(x_BYXZ, t_B, text.tokens, text.mask_BT, routing=routing, keep_BS=keep_BS)


@cache
def forward(graphdef, routing):
    """Compiled once for each routing."""
    return jax.jit(partial(network, graphdef, routing))


def plain_draws(key, goal, shape):
    """(times, noise, kept tokens, dropped captions) in NumPy from JAX's raw draws, keys in the order of the source."""
    key_t, key_noise, key_keep, key_drop = jax.random.split(key, 4)
    t_B = 1 / (1 + np.exp(-(goal.time_mean + goal.time_std * np.float64(jax.random.normal(key_t, shape[:1])))))
    tokens = shape[1] * shape[2] // PATCH**2
    order_BS = np.asarray(jax.random.uniform(key_keep, (shape[0], tokens))).argsort(1, kind="stable")
    keep_BS = np.sort(order_BS[:, : round(tokens * (1 - goal.mask_ratio))], 1)
    drop_B = np.asarray(jax.random.uniform(key_drop, shape[:1])) < goal.caption_dropout
    return t_B, np.float64(jax.random.normal(key_noise, shape)), keep_BS, drop_B


def plain_diffuse(x0_BYXZ, noise_BYXZ, level_B):
    """x_n of DDPM."""
    share, shares = 1.0, []
    for n in range(1000):  # abar_n = prod (1 - beta), betas evenly from 1e-4 to 0.02
        share *= 1 - (1e-4 + n * (0.02 - 1e-4) / 999)
        shares.append(share)
    share_B = np.array(shares)[level_B].reshape(-1, 1, 1, 1)
    return (np.sqrt(share_B) * x0_BYXZ + np.sqrt(1 - share_B) * noise_BYXZ).astype(np.float32)


def plain_path(x0_BYXZ, noise_BYXZ, t_B):
    """x_t, image by image."""
    images = [(1 - t) * x0 + t * noise for x0, noise, t in zip(x0_BYXZ, noise_BYXZ, t_B, strict=True)]
    return np.array(images, np.float32)


def plain_loss(out_BSP, x0_BYXZ, noise_BYXZ, t_B, keep_BS, prediction):
    """(B,) in float64, image by image.

    The velocity of predicted data is (x_t - data) / t, with t no smaller than the floor; x_t drops out of the difference
    between prediction and target.
    """
    losses = []
    for out_SP, x0, noise, t, keep_S in zip(np.float64(out_BSP), x0_BYXZ, noise_BYXZ, t_B, keep_BS, strict=True):
        if prediction in ("velocity", "epsilon"):
            target = noise - x0 if prediction == "velocity" else noise
            error = out_SP - plain.patches(target, PATCH)[keep_S]
        else:
            error = (out_SP - plain.patches(x0, PATCH)[keep_S]) / max(t, FLOOR)
        losses.append((error**2).mean())
    return np.array(losses)


def plain_inputs(goal, x0_BYXZ, text):
    """What the network gets and what it should answer: ((x_t, t, text, kept tokens), noise)."""
    t_B, noise_BYXZ, keep_BS, drop_B = plain_draws(KEY, goal, x0_BYXZ.shape)
    assert t_B.min() < FLOOR < t_B.max() and 0 < drop_B.sum() < BATCH  # or half of these tests would test nothing
    seen = Text(*(np.array(leaf) for leaf in text[:2]))
    seen.tokens[drop_B], seen.mask_BT[drop_B] = NULL[:2]
    return (plain_path(x0_BYXZ, noise_BYXZ, t_B), np.float32(t_B), seen, keep_BS), noise_BYXZ


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("kind", ["expert_choice", "token_choice"])
def test_the_loss_equals_numpy(random_model, prediction, kind):
    graphdef, params = random_model
    goal = Denoise(path="rectified", prediction=prediction, **GOAL, routing=RoutingSpec(kind, 2.0))
    x0_BYXZ, text = example()
    run = jax.jit(lambda params, *inputs: goal.loss(nnx.merge(graphdef, params), None, *inputs))
    total, parts = run(params, Batch(x0_BYXZ, text), KEY)

    inputs, noise_BYXZ = plain_inputs(goal, x0_BYXZ, text)
    _, t_B, _, keep_BS = inputs
    out_BSP, stats = forward(graphdef, goal.routing)(params, *inputs)
    assert out_BSP.shape == (BATCH, 8, 12) and np.abs(out_BSP).mean() > 0.1
    loss_B = plain_loss(out_BSP, x0_BYXZ, noise_BYXZ, t_B, keep_BS, prediction)
    np.testing.assert_allclose(parts["loss"], loss_B.mean(), rtol=1e-5)

    level_B = (t_B * 4).astype(int)
    assert len(set(level_B)) > 1
    np.testing.assert_allclose(parts["level_sum"], np.bincount(level_B, loss_B, 4), rtol=1e-5)
    np.testing.assert_array_equal(parts["level_count"], np.bincount(level_B, minlength=4))

    aux_L = np.asarray(stats.aux_loss)
    assert aux_L.shape == (2,) and (aux_L > 0.5).all() == (kind == "token_choice")
    np.testing.assert_allclose(total, loss_B.mean() + goal.aux_weight * aux_L.sum(), rtol=1e-5)
    for name in ("untaken", "max_experts", "gate_entropy", "dropped", "aux_loss"):
        np.testing.assert_allclose(parts[f"router/{name}"], getattr(stats, name), rtol=1e-5, atol=1e-6)


def test_other_losses_of_the_router_count_with_their_weights_and_are_told(random_model):
    graphdef, params = random_model
    x0_BYXZ, text = example()

    def run(routing):
        goal = Denoise(path="rectified", prediction="velocity", **GOAL, routing=routing)
        return jax.jit(lambda params, *inputs: goal.loss(nnx.merge(graphdef, params), None, *inputs))(
            params, Batch(x0_BYXZ, text), KEY
        )

    plain_total, _ = run(RoutingSpec(capacity_factor=2.0))
    total, parts = run(RoutingSpec(capacity_factor=2.0, z_weight=0.5, similarity_weight=0.25))
    z_L, similarity_L = parts["router/z_loss"], parts["router/similarity_loss"]
    assert z_L.shape == similarity_L.shape == (2,) and min(z_L.min(), similarity_L.min()) > 0.1
    np.testing.assert_allclose(total - plain_total, 0.5 * z_L.sum() + 0.25 * similarity_L.sum(), rtol=1e-4)


@pytest.mark.slow
def test_the_gradient_is_that_of_a_squared_distance_to_constants(random_model):
    # A gradient that stops somewhere on its way leaves all values as they are.
    graphdef, params = random_model
    goal = Denoise(path="rectified", prediction="data", **GOAL, routing=RoutingSpec("token_choice", 2.0))
    x0_BYXZ, text = example()
    inputs, _ = plain_inputs(goal, x0_BYXZ, text)
    _, t_B, _, keep_BS = inputs
    target_BSP = np.array([plain.patches(x0, PATCH)[keep_S] for x0, keep_S in zip(x0_BYXZ, keep_BS, strict=True)])
    weight_B11 = 1 / np.maximum(t_B, FLOOR)[:, None, None]

    def expected(params):
        out_BSP, stats = network(graphdef, goal.routing, params, *inputs)
        return (((out_BSP - target_BSP) * weight_B11) ** 2).mean() + goal.aux_weight * stats.aux_loss.sum()

    def total(params):
        return goal.loss(nnx.merge(graphdef, params), None, Batch(x0_BYXZ, text), KEY)[0]

    gradients = [named_leaves(jax.jit(jax.grad(loss))(params)) for loss in (total, expected)]
    for (name, a), (_, b) in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max(), err_msg=name)
        assert np.abs(b).max() > 1e-4, name


def stand_in(dit):
    """A model whose network is `dit(x_BYXZ, t_B, text) -> patches`; its routing must arrive as it was given."""

    def predict(x_BYXZ, t_B, text, routing):
        assert routing is ROUTING
        return dit(x_BYXZ, t_B, text), None

    return SimpleNamespace(predict=predict, dit=SimpleNamespace(spec=SimpleNamespace(patch=PATCH)))


@pytest.mark.parametrize("kind", ["euler", "heun", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("prediction", ["velocity", "data", "epsilon"])
def test_the_true_answer_leads_from_noise_to_the_data(prediction, kind):
    # More columns than rows, so that a grid laid out the wrong way shows; last times below the floor of the loss, which
    # would stop short of the data here.
    data_BYXZ, noise_BYXZ = np.random.default_rng(0).normal(size=(2, 3, 4, 8, CHANNELS)).astype(np.float32)
    if prediction == "epsilon" and kind in ("euler", "heun"):
        return  # of rectified flow only
    answer = {"velocity": noise_BYXZ - data_BYXZ, "data": data_BYXZ, "epsilon": noise_BYXZ}[prediction]
    condition = Text(np.array([plain.patches(image, PATCH) for image in answer]), np.ones((3, 8), bool))
    model = stand_in(lambda x_BYXZ, t_B, text: text.tokens)
    predict = predict_fn(model, ROUTING)
    grid = (Ddpm() if prediction == "epsilon" else RectifiedFlow()).grid(40)
    start_BYXZ = grid.signal[0] * data_BYXZ + grid.noise[0] * noise_BYXZ

    x_BYXZ = SAMPLERS[kind](lambda x, t: predict(x, jnp.full(3, t), condition), prediction, start_BYXZ, grid)
    np.testing.assert_allclose(x_BYXZ, data_BYXZ, rtol=1e-3, atol=1e-4)


def test_a_prediction_by_hand():
    # One patch; the network sees x, its own time and both halves of the text.
    model = stand_in(
        lambda x_BYXZ, t_B, text: x_BYXZ.reshape(2, 1, 4) * t_B[:, None, None] + text.tokens * text.mask_BT
    )
    text = Text(jnp.array([[[1.0]], [[1.0]]]), jnp.array([[[True]], [[False]]]))
    x_BYXZ, t_B = jnp.full((2, 2, 2, 1), 3.0), jnp.array([0.5, 0.01])
    out_BYXZ = predict_fn(model, ROUTING)(x_BYXZ, t_B, text)
    np.testing.assert_allclose(out_BYXZ, np.broadcast_to(np.reshape([2.5, 0.03], (2, 1, 1, 1)), x_BYXZ.shape))


def test_the_prediction_of_a_real_model_is_its_answer_laid_out_as_an_image(random_model):
    graphdef, params = random_model
    x_BYXZ, text = example(2)
    x_BYXZ, t_B = x_BYXZ[:, :4], np.float32([0.3, 0.9])  # 2 x 4 patches

    def run(params):
        model = nnx.merge(graphdef, params)
        return predict_fn(model, ROUTING)(x_BYXZ, t_B, model.encode(text))

    made_BYXZ = np.asarray(jax.jit(run)(params))
    out_BSP, _ = forward(graphdef, ROUTING)(params, x_BYXZ, t_B, text)
    np.testing.assert_allclose([plain.patches(image, PATCH) for image in made_BYXZ], out_BSP, rtol=1e-4, atol=1e-5)


def test_a_learned_variance_is_left_out():
    spec = SimpleNamespace(channels=1, out_channels=2)
    out_BSP = without_variance(jnp.arange(8.0).reshape(1, 1, 8), spec)  # (row, column, channel)
    np.testing.assert_array_equal(out_BSP, [[[0, 2, 4, 6]]])


def test_the_loss_of_ddpm_equals_numpy(random_model):
    graphdef, params = random_model
    goal = Denoise(path="ddpm", prediction="epsilon", **GOAL | {"caption_dropout": 0.0}, routing=ROUTING)
    x0_BYXZ, text = example()
    run = jax.jit(lambda params, *inputs: goal.loss(nnx.merge(graphdef, params), None, *inputs))
    loss, parts = run(params, Batch(x0_BYXZ, text), KEY)

    key_t, key_noise, key_keep, _ = jax.random.split(KEY, 4)
    level_B = np.asarray(jax.random.randint(key_t, (BATCH,), 0, 1000))
    noise_BYXZ = np.asarray(jax.random.normal(key_noise, x0_BYXZ.shape))
    keep_BS = np.sort(np.argsort(np.asarray(jax.random.uniform(key_keep, (BATCH, 16))), axis=1)[:, :8], axis=1)
    x_BYXZ = plain_diffuse(x0_BYXZ, noise_BYXZ, level_B)
    out_BSP, _ = forward(graphdef, ROUTING)(params, x_BYXZ, (level_B / 1000).astype(np.float32), text, keep_BS)
    expected_B = plain_loss(out_BSP, x0_BYXZ, noise_BYXZ, level_B / 1000, keep_BS, "epsilon")
    assert float(parts["loss"]) == pytest.approx(expected_B.mean(), rel=1e-4)
    assert float(loss) == float(parts["loss"])  # expert choice has no auxiliary loss


@pytest.mark.parametrize("width", [(), (3,)], ids=["ids", "embeddings"])
@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_dropped_captions_become_the_null_caption_tokens_and_mask(width, rate):
    batch, rng = 4000, np.random.default_rng(0)
    mask_BT = np.arange(LENGTH) < rng.integers(2, 6, (batch, 1))
    text = Text(rng.integers(1, 8, (batch, LENGTH, *width)), mask_BT, rng.integers(1, 8, (batch, 2)) if width else None)
    null = Text(np.full((LENGTH, *width), 9), np.arange(LENGTH) == 0, np.full(2, 9) if width else None)
    dropped = drop_captions(jax.random.key(0), text, null, rate)
    tokens, mask_BT = np.asarray(dropped.tokens), np.asarray(dropped.mask_BT)
    dropped_B = (tokens == 9).reshape(batch, -1).all(1)
    np.testing.assert_array_equal(tokens[~dropped_B], text.tokens[~dropped_B])
    np.testing.assert_array_equal(mask_BT[~dropped_B], text.mask_BT[~dropped_B])
    np.testing.assert_array_equal(mask_BT[dropped_B], np.tile(null.mask_BT, (dropped_B.sum(), 1)))
    if width:  # with the vector of the whole caption
        np.testing.assert_array_equal((np.asarray(dropped.pooled_BM) == 9).all(1), dropped_B)
    assert dropped_B.mean() == pytest.approx(rate, abs=0.03)  # four standard deviations


def test_without_dropout_the_text_stays_as_it_is():
    _, text = example()
    assert drop_captions(jax.random.key(0), text, NULL, 0.0) is text


@cache
def validation(graphdef, prediction):
    goal = Denoise(
        path="ddpm" if prediction == "epsilon" else "rectified", prediction=prediction, **GOAL, routing=ROUTING
    )
    return jax.jit(lambda params, *inputs: goal.validation_loss(nnx.merge(graphdef, params), None, *inputs))


@pytest.mark.parametrize("prediction", ["velocity", "data", "epsilon"])
def test_the_validation_loss_equals_numpy(random_model, prediction):
    graphdef, params = random_model
    x0_BYXZ, text = example()
    position_B = np.array([0, 1, 2, 3, 24, 5, 14, 12_000_019], np.int32)
    loss_B = validation(graphdef, prediction)(params, Batch(x0_BYXZ, text, position_B=position_B))

    golden = round((5**0.5 - 1) / 2 * 2**32)  # its multiples spread evenly over the unit interval
    t_B = np.array([(int(position) * golden + 2**31) % 2**32 / 2**32 for position in position_B])
    noise_BYXZ = [jax.random.normal(jax.random.fold_in(jax.random.key(0), n), x0_BYXZ.shape[1:]) for n in position_B]
    noise_BYXZ = np.asarray(noise_BYXZ)
    if prediction == "epsilon":
        level_B = (1000 * t_B).astype(int)
        t_B = level_B / 1000
        x_BYXZ = plain_diffuse(x0_BYXZ, noise_BYXZ, level_B)
    else:
        x_BYXZ = plain_path(x0_BYXZ, noise_BYXZ, t_B)
    out_BSP, _ = forward(graphdef, ROUTING)(params, x_BYXZ, np.float32(t_B), text)
    everything_BS = np.tile(np.arange(16), (BATCH, 1))
    expected_B = plain_loss(out_BSP, x0_BYXZ, noise_BYXZ, t_B, everything_BS, prediction)
    np.testing.assert_allclose(loss_B, expected_B, rtol=2e-4)  # t in float32, and 1 / t


def test_the_validation_loss_at_given_times_equals_numpy(random_model):
    graphdef, params = random_model
    x0_BYXZ, text = example()
    position_B, times = np.array([0, 1, 2, 3, 4, 5, 13, 800], np.int32), np.array([0.25, 0.5, 0.9], np.float32)
    batch = Batch(x0_BYXZ, text, position_B=position_B)
    loss_B = validation(graphdef, "velocity")(params, batch, times)
    t_B = np.array([times[position % 3] for position in position_B])
    noise_BYXZ = np.asarray(
        [jax.random.normal(jax.random.fold_in(jax.random.key(0), n), x0_BYXZ.shape[1:]) for n in position_B]
    )
    out_BSP, _ = forward(graphdef, ROUTING)(params, plain_path(x0_BYXZ, noise_BYXZ, t_B), np.float32(t_B), text)
    everything_BS = np.tile(np.arange(16), (BATCH, 1))
    expected_B = plain_loss(out_BSP, x0_BYXZ, noise_BYXZ, t_B, everything_BS, "velocity")
    np.testing.assert_allclose(loss_B, expected_B, rtol=2e-4)


def test_the_validation_loss_of_an_image_depends_on_its_position_and_on_no_neighbour(random_model):
    graphdef, params = random_model
    run = validation(graphdef, "velocity")
    x0_BYXZ, text = example()
    position_B = np.arange(10, 10 + BATCH, dtype=np.int32)
    loss_B = run(params, Batch(x0_BYXZ, text, position_B=position_B))

    x0, tokens, mask, positions = (a[::-1] for a in (x0_BYXZ, *text[:2], position_B))
    np.testing.assert_allclose(
        run(params, Batch(x0, Text(tokens, mask), position_B=positions)), loss_B[::-1], rtol=1e-5
    )

    others, of_others = example(seed=1)  # the first image stays, between other images at other positions
    x0 = np.concatenate([x0_BYXZ[:1], others[1:]])
    tokens, mask = (np.concatenate([a[:1], b[1:]]) for a, b in zip(text[:2], of_others[:2], strict=True))
    positions = np.concatenate([position_B[:1], position_B[1:] + 100])
    alone_B = run(params, Batch(x0, Text(tokens, mask), position_B=positions))
    np.testing.assert_allclose(alone_B[0], loss_B[0], rtol=1e-5)
    assert (np.abs(alone_B[1:] - loss_B[1:]) > 1e-3).all()

    x0, tokens, mask = (np.repeat(a[:1], BATCH, axis=0) for a in (x0_BYXZ, *text[:2]))
    same_B = run(params, Batch(x0, Text(tokens, mask), position_B=position_B))
    np.testing.assert_allclose(same_B[0], loss_B[0], rtol=1e-5)
    assert len(set(np.asarray(same_B).round(4).tolist())) == BATCH  # one image, eight positions
