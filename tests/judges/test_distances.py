"""Distances between sets of features: those of pytorch-fid, clean-fid and plain loops; statistics files; standard errors."""

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.judges import bootstrap, distances, moments
from ec_dit.judges.moments import Moments, Sums
from tests import fid_tools


def features(count, width, seed, shift=0.0, rank=None):
    """Correlated numbers that are positive and skewed, as Inception's are; of a lower rank where that is given."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(rank or width, width)) / np.sqrt(width)
    return (np.exp(0.5 * rng.normal(size=(count, rank or width))) @ mixing + shift + 1).astype(np.float32)


@pytest.fixture(scope="module")
def pytorch_fid():
    return fid_tools.load("pytorch_fid.fid_score")


@pytest.mark.extra("conformance")
@pytest.mark.parametrize(
    ("counts", "width", "rank"),
    [((300, 400), 40, None), ((30, 25), 40, None), ((300, 20), 40, None), ((300, 400), 40, 10), ((500, 500), 1, None)],
    ids=["regular", "both singular", "one singular", "of low rank", "one number"],
)
def test_frechet_equals_pytorch_fids(pytorch_fid, counts, width, rank):
    sets = [features(count, width, seed, 0.3 * seed, rank) for seed, count in enumerate(counts)]
    ours = [moments.moments(iter(np.array_split(one, 7))) for one in sets]
    for found, one in zip(ours, sets, strict=True):
        np.testing.assert_allclose(found.mean_D, one.astype(float).mean(0), rtol=1e-12)
        np.testing.assert_allclose(
            found.covariance_DD, np.cov(one.astype(float), rowvar=False).reshape(width, width), atol=1e-12
        )
        assert found.count == len(one)
    wanted = pytorch_fid.calculate_frechet_distance(*(part for m in ours for part in (m.mean_D, m.covariance_DD)))
    assert wanted > 0.01
    assert distances.frechet(*ours) == pytest.approx(wanted, rel=1e-3)
    assert distances.frechet(ours[1], ours[0]) == pytest.approx(wanted, rel=1e-3)
    assert abs(distances.frechet(ours[0], ours[0])) < 1e-9 * np.trace(ours[0].covariance_DD) + 1e-9


def test_frechet_of_normal_distributions_along_axes_is_known():
    """|mean difference|^2 + the sum of squared differences of standard deviations, where covariances are diagonal."""
    a = Moments(np.array([0.0, 1.0]), np.diag([4.0, 9.0]))
    b = Moments(np.array([3.0, 1.0]), np.diag([1.0, 25.0]))
    assert distances.frechet(a, b) == pytest.approx(9 + 1 + 4)


def test_sums_do_not_depend_on_how_the_features_come_and_weights_are_repeats():
    one = features(50, 6, 0, shift=1000)  # whose squares hide their spread
    parts = [moments.moments(iter(np.array_split(one, ways))) for ways in (1, 3, 50)]
    for part in parts:
        np.testing.assert_allclose(part.covariance_DD, np.cov(one.astype(float), rowvar=False), rtol=1e-8)
    weights = np.random.default_rng(1).integers(0, 4, 50)
    weighted, repeated = Sums(), Sums()
    weighted.add(one, weights)
    repeated.add(np.repeat(one, weights, axis=0))
    np.testing.assert_allclose(weighted.moments().covariance_DD, repeated.moments().covariance_DD, rtol=1e-8)
    np.testing.assert_allclose(weighted.moments().mean_D, repeated.moments().mean_D)
    assert weighted.count == weights.sum()


@pytest.mark.parametrize("count", [0, 1])
def test_one_picture_has_no_covariance(count):
    with pytest.raises(UserError, match=f"a covariance needs two pictures at least, and here are {count}"):
        moments.moments(iter([features(1, 3, 0)] * count))


@pytest.mark.extra("conformance")
def test_statistics_files_are_pytorch_fids(pytorch_fid, tmp_path):
    found = moments.moments(iter([features(20, 5, 0)]))
    found.write(tmp_path / "ours.npz")
    mean_D, covariance_DD = pytorch_fid.compute_statistics_of_path(str(tmp_path / "ours.npz"), None, 1, 5, "cpu")
    np.testing.assert_array_equal(mean_D, found.mean_D)
    np.testing.assert_array_equal(covariance_DD, found.covariance_DD)
    again = moments.read(tmp_path / "ours.npz", 5)
    np.testing.assert_array_equal(again.covariance_DD, found.covariance_DD)
    assert again.count == 20
    np.savez_compressed(tmp_path / "theirs.npz", mu=mean_D, sigma=covariance_DD)
    assert moments.read(tmp_path / "theirs.npz", 5).count is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no statistics file"),
        (b"PK\x03\x04 and no more", "is no statistics file"),
        ({"mu": np.zeros(5)}, "it has no arrays mu and sigma"),
        (
            {"mu": np.zeros(4), "sigma": np.zeros((4, 4))},
            "features here are of 5 numbers: it was made with another network",
        ),
        ({"mu": np.full(5, np.nan), "sigma": np.zeros((5, 5))}, "holds numbers that are not finite"),
    ],
)
def test_other_statistics_files_are_refused(tmp_path, content, message):
    path = tmp_path / "some.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(UserError, match=message):
        moments.read(path, 5)


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("counts", [(60, 90), (40, 25)])
def test_kid_equals_clean_fids(monkeypatch, counts):
    fid = fid_tools.load("cleanfid.fid")
    a, b = (features(count, 12, seed, 0.2 * seed) for seed, count in enumerate(counts))
    rng = np.random.default_rng(5)
    monkeypatch.setattr(fid.np.random, "choice", rng.choice)
    wanted = fid.kernel_distance(a.astype(float), b.astype(float), num_subsets=20, max_subset_size=30)
    value, error = distances.kid(a, b, np.random.default_rng(5), subsets=20, size=30)
    assert value == pytest.approx(wanted, rel=1e-9)
    assert 0 < error < abs(wanted)


def test_kid_of_two_halves_is_about_zero():
    one = features(400, 12, 0)
    value, error = distances.kid(one[:200], one[200:], np.random.default_rng(0), size=100)
    apart, _ = distances.kid(one[:200], one[200:] + 0.3, np.random.default_rng(0), size=100)
    assert abs(value) < 0.05 * apart and error < 0.05 * apart


def test_cmmd_equals_plain_loops():
    a, b = (features(count, 8, seed, seed) for seed, count in enumerate((7, 5)))
    kernels = dict.fromkeys(("xx", "yy", "xy"), 0.0)
    for name, (first, second) in {"xx": (a, a), "yy": (b, b), "xy": (a, b)}.items():
        for x in first:
            for y in second:
                kernels[name] += np.exp(-np.sum((x.astype(float) - y) ** 2) / 200) / (len(first) * len(second))
    assert distances.cmmd(a, b) == pytest.approx(1000 * (kernels["xx"] + kernels["yy"] - 2 * kernels["xy"]), rel=1e-9)
    assert distances.cmmd(a, a) == pytest.approx(0, abs=1e-9)


def test_standard_errors_are_those_of_means():
    rng = np.random.default_rng(0)
    values, names = rng.normal(size=400), [str(i) for i in range(400)]
    assert bootstrap.standard_error(values, names) == pytest.approx(values.std() / 20, rel=0.1)
    # Four pictures of a prompt that are alike tell no more than one.
    assert bootstrap.standard_error(np.repeat(values, 4), np.repeat(names, 4)) == pytest.approx(
        values.std() / 20, rel=0.1
    )
    # The mean of the means of two tasks, one of which is sure.
    both = np.concatenate([values, np.ones(50)])
    tasks = ["a"] * 400 + ["b"] * 50
    error = bootstrap.standard_error(both, [str(i) for i in range(450)], tasks)
    assert error == pytest.approx(values.std() / 20 / 2, rel=0.1)
    unknown = bootstrap.standard_error([1.0, 0.0], ["a", "a"])
    assert np.isnan(unknown) and bootstrap.plus_minus(unknown, ".2f") == ""
    assert bootstrap.plus_minus(0.125, ".2f") == " +- 0.12"
