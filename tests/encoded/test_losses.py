"""Training on latents and embeddings: what a batch of any shape holds, beside the losses of its records one by one."""

import itertools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from ec_dit import config as config_lib
from ec_dit.config import overrides
from ec_dit.data import dataset
from ec_dit.data.loader import Loader, Share
from ec_dit.models import dit
from ec_dit.nn.routing.spec import RoutingSpec
from ec_dit.runs import feed
from ec_dit.system import step as training_step
from ec_dit.system.model import make_system
from tests import encoded_sets as sets

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("encoded_runs")]  # they share sets that take their time


def make_config(place, **changes):
    (place / "encoded.py").write_text(sets.SETTINGS)
    config = overrides.load(place / "encoded.py")
    config.data.update(path=str(place / "buckets"), **changes)
    return config_lib.typed(config)


def records(folder, split):
    """{id: (mean, deviation, tokens filled up, mask)}, read and decoded without the package under test."""
    found = {}
    for file, fields in sets.fields(folder):
        if f"-{split}_" in file:
            rows, columns = map(int, re.search(r"_(\d+)x(\d+)\.", file).groups())
            mean, std = np.frombuffer(fields["latent"], "<f2").reshape(2, rows, columns, 4).astype(np.float32)
            mask = np.unpackbits(np.frombuffer(fields["mask"], np.uint8))[:20].astype(bool)
            text = np.zeros((20, 16), np.float32)
            text[mask] = np.frombuffer(fields["text"], ml_dtypes.bfloat16).reshape(-1, 16)
            found[fields["id"].decode()] = mean, std, text, mask
    return found


def moments(found):
    """Mean and deviation of each channel of latents drawn from what the autoencoder gives."""
    means, stds = (np.concatenate([each[part].reshape(-1, 4) for each in found.values()]) for part in (0, 1))
    return means.mean(0), np.sqrt(means.var(0) + (stds**2).mean(0))


def positions(rows, columns, width, base, *_):
    """Sines and cosines of the column, then of the row, which count as on a base x base grid of the same area."""
    table = np.zeros((rows * columns, width), np.float32)
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            for i in range(quarter):
                rate = 10000 ** (-i / quarter) * base / (rows * columns) ** 0.5
                place = table[row * columns + column]
                place[i], place[quarter + i] = np.sin(column * rate), np.cos(column * rate)
                place[2 * quarter + i], place[3 * quarter + i] = np.sin(row * rate), np.cos(row * rate)
    return table


def losses_by_hand(system, params, batch_of_records):
    """Squared error of the velocity of each picture alone, at the time and with the noise of validation."""
    model, patch = nnx.merge(system.graphdef, params), 2
    latent = batch_of_records[0][1]
    (rows, columns, channels), found = latent.shape, []
    routing = RoutingSpec("expert_choice", 2.0, rows * columns // patch**2)
    forward = jax.jit(lambda *inputs: model.dit(*inputs, routing=routing)[0])
    for index, latent, text, mask in batch_of_records:
        time = np.float32((index * 0.6180339887498949 + 0.5) % 1.0)
        noise = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), index), latent.shape))
        noisy = (1 - time) * latent + time * noise
        out = np.asarray(forward(noisy[None], time[None], text[None], mask[None]))
        grid = out.reshape(rows // patch, columns // patch, patch, patch, channels)
        velocity = grid.transpose(0, 2, 1, 3, 4).reshape(latent.shape)
        found.append(np.mean((velocity - (noise - latent)) ** 2))
    return found


def random_params(system):
    rng = np.random.default_rng(0)
    shapes = system.shapes()
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize("normalize", ["channel", "none"])
def test_the_loss_of_batches_of_every_shape_is_that_of_their_records(place, monkeypatch, normalize):
    config = make_config(place, normalize=normalize, posterior="mean")
    data = dataset.open(place / "buckets")
    system = make_system(config, None, jax.devices()[:1], encoding=data.encoding)
    params = random_params(system)
    stored = records(place / "buckets", "train")
    mean, std = moments(stored) if normalize == "channel" else (0, 1)
    seen = {}
    for batch, _ in zip(feed.make_loader(system, data).batches(), range(12), strict=False):
        seen.setdefault(batch.image_BYXZ.shape[1:3], batch)
    assert set(seen) == {(8, 8), (6, 10), (10, 6)}
    loss_fn = training_step.make_validation(system)
    for shape, batch in seen.items():
        chosen = []
        for index in batch.record_B:
            latent, _, text, mask = stored[data["train"][int(index)].id]
            chosen.append((int(index), np.float32((latent - mean) / std), text, mask))
        np.testing.assert_allclose(
            batch.image_BYXZ, np.stack([latent for _, latent, *_ in chosen]), rtol=1e-3, atol=1e-4
        )
        with jax.set_mesh(system.mesh):
            total, count = loss_fn(params, training_step.place(system, batch._replace(position_B=batch.record_B)))
            with monkeypatch.context() as patch:
                patch.setattr(dit, "sincos_2d", positions)
                expected = losses_by_hand(system, params, chosen)
                patch.setattr(dit, "sincos_2d", lambda rows, columns, *more: positions(columns, rows, *more))
                turned = losses_by_hand(system, params, chosen)
        assert count == 8
        np.testing.assert_allclose(total, sum(expected), rtol=1e-4)
        assert (abs(sum(turned) - sum(expected)) > 1e-3) == (shape != (8, 8))


def test_batches_on_eight_devices_are_those_of_one(place):
    config = make_config(place)
    data = dataset.open(place / "buckets")
    one = make_system(config, None, jax.devices()[:1], encoding=data.encoding)
    eight = make_system(config, None, encoding=data.encoding)
    assert eight.share == Share(tuple(range(8)), 8)
    loaders = [feed.make_loader(system, data) for system in (one, eight)]
    rows = feed.make_rows(one, data, "train", augment=True)
    halves = [Loader(rows, batch_size=8, seed=0, share=Share(blocks, 8)) for blocks in ((0, 1, 2, 3), (4, 5, 6, 7))]
    shapes = set()
    for a, b, *parts in itertools.islice(zip(*(loader.batches(3) for loader in (*loaders, *halves)), strict=True), 12):
        placed = training_step.place(eight, b)
        a, *parts = (each._replace(record_B=None) for each in (a, *parts))
        for array in jax.tree.leaves(placed):
            assert len(array.sharding.device_set) == 8 and array.sharding.shard_shape(array.shape)[0] == 1
        jax.tree.map(np.testing.assert_array_equal, a, placed)
        jax.tree.map(lambda whole, *each: np.testing.assert_array_equal(whole, np.concatenate(each)), a, *parts)
        shapes.add(a.image_BYXZ.shape)
    assert shapes == {(8, 8, 8, 4), (8, 6, 10, 4), (8, 10, 6, 4)}


def test_latents_are_drawn_from_what_the_autoencoder_gives(place):
    data = dataset.open(place / "buckets")
    stored = records(place / "buckets", "train")
    system = make_system(make_config(place), None, jax.devices()[:1], encoding=data.encoding)
    mean, std = moments(stored)
    noise, latents = [], []
    for batch in itertools.islice(feed.make_loader(system, data).batches(), 30):
        for index, latent in zip(batch.record_B, batch.image_BYXZ, strict=True):
            own_mean, own_std, *_ = stored[data["train"][int(index)].id]
            noise.append(((latent * std + mean - own_mean) / own_std).ravel())
            latents.append(latent.reshape(-1, 4))
    noise = np.concatenate(noise)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02 and len(np.unique(noise.round(3))) > 1000
    np.testing.assert_allclose(np.concatenate(latents).mean(0), 0, atol=0.2)
    np.testing.assert_allclose(np.concatenate(latents).std(0), 1, atol=0.2)
