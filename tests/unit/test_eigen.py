"""Leading eigenpairs by block Krylov iteration against spectra that were put in."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from scapedist.analysis.eigen import block_krylov, leading_eigenpairs, random_block, settle

SIZE = 600


def matrix_of(values, seed=0):
    """A symmetric matrix (600, 600) with some eigenvalues, and its vectors."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))[0]
    return (basis * values) @ basis.T, basis


DECAYS = {
    "slow": 1e6 / np.sqrt(1 + np.arange(SIZE)),
    "usual": 1e6 / (1 + np.arange(SIZE)) ** 1.5,
    "fast": 1e6 * 0.8 ** np.arange(SIZE),
}


@pytest.mark.parametrize("columns", [84, 100, 400])
@pytest.mark.parametrize("decay", DECAYS)
def test_pairs_settle_in_any_room(decay, columns):
    """Also where the space has to restart; what is said to have settled has."""
    matrix, basis = matrix_of(DECAYS[decay])
    found = settle(block_krylov(matrix.__matmul__, random_block(SIZE, 20), 20, columns), 20)
    assert found.settled(20)
    assert len(found.values) <= columns
    np.testing.assert_allclose(found.values[:20], DECAYS[decay][:20], rtol=1e-12)
    vectors = found.vectors(20)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(20), atol=1e-13)
    assert subspace_angles(vectors, basis[:, :20]).max() < 1e-6


def test_residuals_are_what_is_missed():
    matrix, _ = matrix_of(DECAYS["usual"])
    for pairs in block_krylov(matrix.__matmul__, random_block(SIZE, 5), 5, 200):
        if pairs.products == 3:
            break
    values, residuals = pairs.values.copy(), pairs.residuals.copy()
    vectors = pairs.vectors(len(values))
    missed = np.linalg.norm(matrix @ vectors - vectors * values, axis=0)
    np.testing.assert_allclose(residuals, missed, rtol=1e-5, atol=1e-7)
    assert not pairs.settled(40)


def test_fewer_products_from_a_good_start():
    matrix, basis = matrix_of(DECAYS["slow"])
    start = random_block(SIZE, 20)
    cold = settle(block_krylov(matrix.__matmul__, start, 20, 400), 20).products
    start[:, :20] = basis[:, :20] + 1e-6 * start[:, :20]
    warm = settle(block_krylov(matrix.__matmul__, start, 20, 400), 20).products
    assert warm < cold


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_a_space_that_is_exhausted(rank):
    values = np.zeros(SIZE)
    values[:rank] = 10.0 + np.arange(rank)
    matrix, basis = matrix_of(values)
    found = settle(block_krylov(matrix.__matmul__, random_block(SIZE, 20), 20, 200), 20)
    assert found.products <= 2
    np.testing.assert_allclose(found.values[:rank], values[:rank][::-1], rtol=1e-12)
    assert (found.values[rank:] < 1e-12).all()
    assert subspace_angles(found.vectors(rank), basis[:, :rank]).max() < 1e-10


def test_nothing_at_all():
    found = settle(block_krylov(lambda block: 0 * block, random_block(50, 3), 3, 45), 3)
    assert (found.values == 0).all()


def test_a_start_of_dependent_columns():
    matrix, basis = matrix_of(DECAYS["fast"])
    start = random_block(SIZE, 8)
    start[:, 3] = start[:, 2]
    found = settle(block_krylov(matrix.__matmul__, start, 8, 200), 8)
    assert subspace_angles(found.vectors(8), basis[:, :8]).max() < 1e-6


@pytest.mark.parametrize("n", [1, 20, 60, 600])
def test_leading_pairs_however_many(n):
    matrix, _ = matrix_of(DECAYS["usual"])
    values, vectors = leading_eigenpairs(matrix, n)
    np.testing.assert_allclose(values, DECAYS["usual"][:n], rtol=1e-9)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-2)
    np.testing.assert_array_equal(leading_eigenpairs(matrix, n)[1], vectors)
