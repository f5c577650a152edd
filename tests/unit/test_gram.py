"""Components through the Gram matrix against numpy's SVD and scikit-learn's PCA, in float64."""

import tracemalloc

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from scapedist.analysis.eigen import leading_eigenpairs
from scapedist.analysis.gram import (
    fit_components,
    gram_matrix,
    isometric_coordinates,
    nearest_along,
)
from scapedist.backend import kmeans
from scapedist.errors import InputError

BLOCKS = [1, 4, 7, 24, 100]


def reader(rows):
    return lambda start, stop: rows[start:stop]


def fit(rows, block=7, n_components=10):
    read = reader(rows)
    return fit_components(gram_matrix(read, len(rows), block), read, block, n_components)


def volumes(n=24, p=700, mean=0.0, scale=1.0, seed=0):
    """Rows (n, p) float32 that share a mean volume and differ by a decaying spectrum."""
    rng = np.random.default_rng(seed)
    common = mean * (1 + rng.random(p))
    rank = min(n, p)
    differences = rng.normal(size=(n, rank)) * 0.7 ** np.arange(rank) @ rng.normal(size=(rank, p))
    return (common + scale * differences).astype(np.float32)


DATA = {
    "plain": volumes(),
    "large mean": volumes(mean=1e3),
    "large mean, tiny differences": volumes(mean=1e4, scale=0.05),
    "more volumes than voxels": volumes(n=50, p=12, mean=30.0),
}


@pytest.fixture(params=list(DATA.values()), ids=list(DATA))
def rows(request):
    return request.param


@pytest.mark.parametrize("block", BLOCKS)
def test_the_matrix(rows, block):
    gram = gram_matrix(reader(rows), len(rows), block)
    exact = rows.astype(np.float64)
    centered = exact - exact.mean(0)
    scale = np.abs(centered @ centered.T).max()
    np.testing.assert_allclose(gram.matrix, centered @ centered.T, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(gram.matrix, gram.matrix.T, rtol=0, atol=1e-14 * scale)
    np.testing.assert_allclose(gram.mean, exact.mean(0), rtol=0, atol=1e-14 * np.abs(exact).max())
    squared = cdist(exact, exact, "sqeuclidean")
    np.testing.assert_allclose(gram.squared_distances, squared, rtol=0, atol=1e-10 * scale)
    assert not np.diag(gram.squared_distances).any()


def test_without_a_reference_it_would_be_noise():
    """The hazard is real: the same data in float32 products, centered afterwards, is garbage."""
    rows = DATA["large mean, tiny differences"]
    naive = (rows @ rows.T).astype(np.float64)
    naive -= naive.mean(0)
    naive -= naive.mean(1)[:, None]
    exact = gram_matrix(reader(rows), len(rows), 7).matrix
    assert np.abs(naive - exact).max() > 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("block", BLOCKS)
def test_components_are_those_of_an_svd(rows, block):
    fitted = fit(rows, block)
    exact = rows.astype(np.float64)
    centered = exact - exact.mean(0)
    left, singular, right = np.linalg.svd(centered, full_matrices=False)
    r = len(fitted.variance)
    assert r == 10
    variance = singular**2 / (len(rows) - 1)
    np.testing.assert_allclose(fitted.variance, variance[:r], rtol=1e-9)
    np.testing.assert_allclose(fitted.variance_ratio, variance[:r] / variance.sum(), rtol=1e-9)
    cosines = np.sum(fitted.vectors * right[:r], 1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-9)
    coordinates = left[:, :r] * singular[:r] * np.sign(cosines)
    atol = 1e-8 * singular[0]
    np.testing.assert_allclose(fitted.coordinates, coordinates, rtol=0, atol=atol)
    np.testing.assert_allclose(fitted.vectors @ fitted.vectors.T, np.eye(r), atol=1e-9)
    np.testing.assert_allclose(centered @ fitted.vectors.T, fitted.coordinates, rtol=0, atol=atol)


def test_components_are_those_of_sklearn(rows):
    fitted = fit(rows, n_components=6)
    pca = PCA(6, svd_solver="full").fit(rows.astype(np.float64))
    np.testing.assert_allclose(fitted.mean, pca.mean_, rtol=0, atol=1e-14 * np.abs(rows).max())
    np.testing.assert_allclose(fitted.variance, pca.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(fitted.variance_ratio, pca.explained_variance_ratio_, rtol=1e-9)
    assert subspace_angles(fitted.vectors.T, pca.components_.T).max() < 1e-7


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_do_not_matter(rows, block):
    one, other = fit(rows, len(rows)), fit(rows, block)
    np.testing.assert_allclose(other.vectors, one.vectors, rtol=0, atol=1e-9)
    np.testing.assert_allclose(other.variance, one.variance, rtol=1e-10)
    np.testing.assert_allclose(other.mean, one.mean, rtol=0, atol=1e-14 * np.abs(rows).max())


def test_the_largest_entry_is_positive(rows):
    fitted = fit(rows)
    largest = np.abs(fitted.vectors).argmax(1)
    assert (fitted.vectors[np.arange(len(largest)), largest] > 0).all()


def test_signs_do_not_depend_on_the_order_of_volumes(rows):
    fitted, reversed_ = fit(rows), fit(rows[::-1].copy())
    np.testing.assert_allclose(reversed_.vectors, fitted.vectors, rtol=0, atol=1e-8)
    scale = np.abs(fitted.coordinates).max()
    np.testing.assert_allclose(
        reversed_.coordinates[::-1], fitted.coordinates, rtol=0, atol=1e-8 * scale
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_fewer_components_where_the_rank_is_lower(block):
    rng = np.random.default_rng(4)
    # small integers: float32 holds them, and so the rank, exactly
    rows = (rng.integers(-9, 9, (24, 3)) @ rng.integers(-9, 9, (3, 200)) + 5000).astype(np.float32)
    fitted = fit(rows, block)
    assert fitted.vectors.shape == (3, 200)
    assert fitted.coordinates.shape == (24, 3)
    assert fitted.variance_ratio.sum() == pytest.approx(1, abs=1e-12)
    gram = gram_matrix(reader(rows), 24, block)
    assert isometric_coordinates(gram.matrix.__matmul__, len(gram.matrix)).shape == (24, 3)
    again = fitted.mean + fitted.coordinates @ fitted.vectors
    np.testing.assert_allclose(again, rows, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n", [2, 3, 12])
@pytest.mark.parametrize("block", [1, 5, 12])
def test_volumes_that_are_all_the_same_have_no_component(n, block):
    rows = np.repeat(volumes(1, 300, mean=0.1), n, axis=0)
    fitted = fit(rows, block)
    assert len(fitted.variance) == 0
    assert fitted.vectors.shape == (0, 300)


def test_at_most_n_minus_1_components():
    rows = volumes(5, 300)
    assert len(fit(rows, n_components=100).variance) == 4
    assert fit(rows, n_components=100).variance_ratio.sum() == pytest.approx(1)


def test_two_volumes():
    rows = volumes(2, 300, mean=50.0)
    fitted = fit(rows)
    distance = np.linalg.norm(rows[0].astype(float) - rows[1])
    assert np.ptp(fitted.coordinates[:, 0]) == pytest.approx(distance, rel=1e-10)


def test_isometric_coordinates_keep_distances(rows):
    gram = gram_matrix(reader(rows), len(rows), 7)
    points = isometric_coordinates(gram.matrix.__matmul__, len(gram.matrix))
    assert points.shape[1] <= min(len(rows) - 1, rows.shape[1])
    exact = cdist(rows.astype(np.float64), rows.astype(np.float64))
    np.testing.assert_allclose(cdist(points, points), exact, rtol=1e-7)


def test_no_more_than_two_blocks_are_read_and_held():
    n, p, block = 40, 30_000, 4
    rng = np.random.default_rng(5)
    asked = []

    def read(start, stop):
        asked.append(stop - start)
        return rng.random((stop - start, p), np.float32)

    tracemalloc.start()
    gram_matrix(read, n, block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(asked) == block
    n_blocks = n // block
    # each tile reads two blocks (a reader may keep the last), the diagonal's one, the reference one
    assert len(asked) == n_blocks * n_blocks + 1
    assert peak < 4.5 * block * p * 8
    assert peak < n * p * 4  # less than the rows themselves


@pytest.mark.parametrize("n", [3, 5])
def test_a_few_leading_pairs_of_a_large_matrix(n):
    """Lanczos finds the spectrum that was put in, the same at every call."""
    size = 3100
    rng = np.random.default_rng(6)
    basis = np.linalg.qr(rng.normal(size=(size, 5)))[0]
    values = np.array([900.0, 500.0, 499.0, 80.0, 7.0])
    matrix = (basis * (values - 1)) @ basis.T + np.eye(size)
    found, vectors = leading_eigenpairs(matrix, n)
    np.testing.assert_allclose(found, values[:n], rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(vectors * basis[:, :n], 0)), 1, atol=1e-9)
    np.testing.assert_array_equal(leading_eigenpairs(matrix, n)[1], vectors)


@pytest.mark.parametrize("n", [1, 7, 20])
def test_leading_pairs_of_a_small_matrix(n):
    rng = np.random.default_rng(7)
    half = rng.normal(size=(20, 30))
    matrix = half @ half.T
    values, vectors = leading_eigenpairs(matrix, n)
    exact = np.linalg.eigvalsh(matrix)[::-1][:n]
    np.testing.assert_allclose(values, exact, rtol=1e-12)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-10)


def test_nearest_along():
    rng = np.random.default_rng(8)
    coordinates = rng.normal(size=(60, 4))
    positions = np.linspace(-2, 2, 9)
    found = nearest_along(coordinates, 2, positions)
    for position, row in zip(positions, found, strict=True):
        point = np.array([0, 0, position, 0])
        assert row == np.linalg.norm(coordinates - point, axis=1).argmin()


def test_kmeans_finds_separate_groups_and_is_the_same_again():
    rng = np.random.default_rng(9)
    points = np.concatenate([rng.normal(c, 0.1, (30, 3)) for c in (0, 5, 10)])
    before = points.copy()
    centers, labels = kmeans(points, 3, seed=0, max_iterations=100, n_starts=3)
    np.testing.assert_array_equal(points, before)
    assert len({tuple(labels[i : i + 30]) for i in (0, 30, 60)}) == 3
    assert all(len(set(labels[i : i + 30])) == 1 for i in (0, 30, 60))
    np.testing.assert_allclose(
        centers[labels[::30]], [points[i : i + 30].mean(0) for i in (0, 30, 60)]
    )
    again = kmeans(points, 3, seed=0, max_iterations=100, n_starts=3)
    np.testing.assert_array_equal(again[1], labels)
    np.testing.assert_array_equal(again[0], centers)


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (-1, 0), (5, 0), (2, -1), (2, 2**32)])
def test_kmeans_that_cannot_be(n, seed):
    with pytest.raises(InputError, match="from 1 to as many groups|from 0 to 4294967295"):
        kmeans(np.eye(4), n, seed, 10)
