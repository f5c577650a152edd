"""Components from passes over rows against numpy's SVD in float64."""

import tracemalloc

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from scapedist.analysis.passes import Passes, coordinates_of, principal_subspace


def volumes(n=300, p=900, mean=0.0, seed=0):
    rng = np.random.default_rng(seed)
    rank = min(n, p, 80)
    rows = rng.normal(size=(n, rank)) * 0.85 ** np.arange(rank) @ rng.normal(size=(rank, p))
    return (mean * (1 + rng.random(p)) + rows + 0.01 * rng.normal(size=(n, p))).astype(np.float32)


DATA = {
    "plain": volumes(),
    "large mean": volumes(mean=1e3),
    "more volumes than voxels": volumes(n=900, p=200, mean=30.0),
    "few volumes": volumes(n=12, p=500, mean=3.0),
}


@pytest.fixture(params=list(DATA.values()), ids=list(DATA))
def rows(request):
    return request.param


def subspace(rows, block=70, n=10, columns=200, **options):
    passes = Passes(lambda start, stop: rows[start:stop], len(rows), block)
    return principal_subspace(passes, n, columns, **options)


def svd(rows):
    exact = rows.astype(np.float64)
    centered = exact - exact.mean(0)
    _, singular, right = np.linalg.svd(centered, full_matrices=False)
    return centered, singular**2 / (len(rows) - 1), right


@pytest.mark.parametrize("block", [1, 70, 1000])
def test_components_are_those_of_an_svd(rows, block):
    found, (centered, variance, right) = subspace(rows, block), svd(rows)
    assert found.settled
    np.testing.assert_allclose(found.variance[:10], variance[:10], rtol=1e-10)
    assert found.total_variance == pytest.approx(variance.sum(), rel=1e-12)
    np.testing.assert_allclose(found.mean, rows.astype(float).mean(0), rtol=1e-12, atol=1e-12)
    assert subspace_angles(found.vectors[:10].T, right[:10].T).max() < 1e-6
    m = len(found.vectors)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(m), atol=1e-12)
    largest = np.abs(found.vectors).argmax(1)
    assert (found.vectors[np.arange(m), largest] > 0).all()
    coordinates, norms = coordinates_of(
        lambda start, stop: rows[start:stop], len(rows), block, found.mean, found.vectors
    )
    np.testing.assert_allclose(coordinates, centered @ found.vectors.T, atol=1e-9 * norms.max())
    np.testing.assert_allclose(norms, np.square(centered).sum(1), rtol=1e-9)


@pytest.mark.parametrize("columns", [54])
def test_little_room_takes_more_passes(columns):
    rows = DATA["plain"]
    passes = []
    found = subspace(rows, columns=columns, after_pass=lambda n, _: passes.append(n))
    assert found.settled
    assert passes == list(range(1, found.passes + 1))
    assert found.passes > subspace(rows).passes
    assert subspace_angles(found.vectors[:10].T, svd(rows)[2][:10].T).max() < 1e-6


def test_directions_to_begin_with_save_passes():
    rows = DATA["plain"]
    cold = subspace(rows)
    start = svd(rows)[2][:10] + 1e-7
    warm = subspace(rows, start=start.astype(np.float32))
    assert warm.settled
    assert warm.passes < cold.passes
    assert subspace_angles(warm.vectors[:10].T, cold.vectors[:10].T).max() < 1e-6


def test_an_end_before_it_is_settled_is_told():
    found = subspace(DATA["plain"], most_passes=2)
    assert found.passes == 2
    assert not found.settled
    assert found.residuals[9] > 1e-8


@pytest.mark.parametrize("n", [2, 5])
def test_few_rows_have_few_components(n):
    found = subspace(volumes(n=n, p=60), n=20)
    assert found.settled
    assert found.vectors.shape == (n - 1, 60)


def test_rows_that_are_all_the_same_have_no_component():
    rows = np.repeat(volumes(n=1, p=60, mean=5.0), 9, axis=0)
    found = subspace(rows)
    assert len(found.variance) == 0
    assert found.vectors.shape == (0, 60)


def test_the_rows_are_never_held():
    n, p, block = 400, 20_000, 10
    rng = np.random.default_rng(5)
    basis = rng.random((8, p), np.float32)

    def read(start, stop):
        weights = np.random.default_rng(start).random((stop - start, 8), np.float32)
        return weights @ basis

    tracemalloc.start()
    principal_subspace(Passes(read, n, block), 4, 48)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (48 + 7 * 16 + 10) * p * 8 + 3 * block * p * 8
    assert peak < 0.9 * n * p * 8
