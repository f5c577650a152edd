"""Leading eigenpairs of symmetric matrices held in memory or known only by their products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scapedist.backend import array_module
from scapedist.plan import SPARE_COLUMNS, batches

WHOLE = 3000
"""Rows of the largest matrix whose whole spectrum is computed where much of it is wanted."""
TOLERANCE = 1e-8
"""Largest residual of a settled pair, relative to its eigenvalue."""
ROTATED_ROWS = 4096
"""Number of rows of a basis that are rotated at once."""
NOISE = 1e-13
"""Fraction of the trace below which an eigenvalue is rounding."""


@dataclass(frozen=True)
class Pairs:
    """Approximate eigenpairs of a matrix.

    Attributes
    ----------
    values : (m,) float64
        Eigenvalues, descending.
    residuals : (m,) float64
        Norms of A v - value v, one per pair.
    basis : (size, m) float64
        Orthonormal basis of the space, as columns; it changes when the iteration goes on.
    inside : (m, m) float64
        Eigenvectors in that basis, one per column.
    products
        Number of blocks that the matrix was multiplied with.
    """

    values: Any
    residuals: Any
    basis: Any
    inside: Any
    products: int

    def vectors(self, n: int) -> Any:
        """Eigenvectors (size, n) float64 of the first n pairs; they overwrite the basis."""
        return _rotate(self.basis, self.inside[:, :n])

    def settled(self, n: int, tolerance: float = TOLERANCE) -> bool:
        """Whether the residuals of the first n pairs are within a tolerance, up to rounding."""
        floor = NOISE * float(self.values.sum())
        return bool((self.residuals[:n] <= tolerance * self.values[:n] + floor).all())


def block_krylov(
    apply: Callable[[Any], Any], start: Any, n: int, most_columns: int
) -> Iterator[Pairs]:
    """Rayleigh-Ritz pairs from a growing block Krylov space, after every product.

    Block Lanczos with full orthogonalisation and thick restarts (Stewart 2002, doi:10.1137/
    S0895479800371529; Zhou & Saad 2008, doi:10.1007/s11075-008-9192-9): one product, which costs
    a pass over all volumes, serves all vectors of a block.

    Parameters
    ----------
    apply
        Multiplies a symmetric matrix without negative eigenvalues with a block (size, b).
    start : (size, b) float64
        First block, a numpy or CuPy array; linearly dependent columns are left out.
    n
        Number of pairs wanted; the caller stops the iteration when they are settled.
    most_columns
        Most columns of the space, at least n + 2 b; where one more block would not fit, the
        iteration restarts from the leading pairs.

    Yields
    ------
    Pairs
        All pairs of the space so far; the iteration ends where the space is exhausted.
    """
    xp = array_module(start)
    block, _ = _orthonormal(xp, start, 0.0)
    space = xp.empty((len(start), max(most_columns, block.shape[1])))
    inner = xp.zeros((0, 0))
    products = 0
    while True:
        old, new = len(inner), len(inner) + block.shape[1]
        image = apply(block)
        products += 1
        space[:, old:new] = block
        basis = space[:, :new]
        across = basis.T @ image
        grown = xp.zeros((new, new))
        grown[:old, :old] = inner
        grown[:, old:], grown[old:, :] = across, across.T
        grown[old:, old:] = (across[old:] + across[old:].T) / 2
        inner = grown
        image -= basis @ across
        image -= basis @ (basis.T @ image)  # once more: rounding of the first
        values, inside = xp.linalg.eigh(inner)
        values, inside = values[::-1], inside[:, ::-1]
        block, remainder = _orthonormal(xp, image, 1e-14 * float(xp.abs(values).max()))
        residuals = xp.linalg.norm(remainder @ inside[old:], axis=0)
        yield Pairs(xp.maximum(values, 0), residuals, basis, inside, products)
        if not block.shape[1]:
            return
        if new + block.shape[1] > most_columns:
            kept = max(n, n + (most_columns - n) // 3 - block.shape[1])
            _rotate(basis, inside[:, :kept])
            inner = xp.diag(values[:kept])


def _rotate(basis: Any, inside: Any) -> Any:
    """Product of a basis (size, m) and (m, k), in the place of the basis's first k columns."""
    k = inside.shape[1]
    for start, stop in batches(len(basis), ROTATED_ROWS):
        basis[start:stop, :k] = basis[start:stop] @ inside
    return basis[:, :k]


def _orthonormal(xp: Any, columns: Any, least: float) -> tuple[Any, Any]:
    """An orthonormal basis (size, k) of columns (size, b), and their coefficients (k, b) in it.

    Directions no longer than ``least`` are left out.
    """
    q, r = xp.linalg.qr(columns)
    left, lengths, right = xp.linalg.svd(r)
    kept = lengths > max(least, 1e-14 * float(lengths.max()))
    return q @ left[:, kept], lengths[kept][:, None] * right[kept]


def leading_eigenpairs(matrix: Any, n: int) -> tuple[Any, Any]:
    """The n largest eigenvalues, descending, and eigenvectors of a symmetric matrix.

    Small matrices are solved in full where much of their spectrum is wanted (LAPACK, cuSOLVER);
    else a block Krylov space finds the leading pairs.

    Parameters
    ----------
    matrix : (m, m) float64
        Numpy or CuPy array; no eigenvalue is negative, up to rounding.
    n
        Number of pairs wanted, at most m.

    Returns
    -------
    values : (n,) float64
    vectors : (m, n) float64
        Fewer of both where the matrix has a lower rank.
    """
    size, xp = len(matrix), array_module(matrix)
    if size <= WHOLE and n > size // 20 or size < 8 * (n + SPARE_COLUMNS):
        return _whole_spectrum(matrix, n)
    start = random_block(size, n)
    columns = columns_for(n)
    best = settle(block_krylov(matrix.__matmul__, xp.asarray(start), n, columns), n)
    return best.values[:n], best.vectors(n)


def _whole_spectrum(matrix: Any, n: int) -> tuple[Any, Any]:
    size, xp = len(matrix), array_module(matrix)
    if xp is np:
        from scipy.linalg import eigh

        values, vectors = eigh(matrix, subset_by_index=(size - n, size - 1))
    else:
        values, vectors = xp.linalg.eigh(matrix)
        values, vectors = values[size - n :], vectors[:, size - n :]
    return values[::-1], vectors[:, ::-1]


def columns_for(n: int) -> int:
    """Number of columns of a space in which n pairs settle soon."""
    width = n + SPARE_COLUMNS
    return max(3 * width, min(16 * width, 512))


def random_block(size: int, n: int) -> np.ndarray:
    """Random first block (size, b) of an iteration for n pairs; the same at every call."""
    columns = min(size, n + SPARE_COLUMNS)
    return np.random.default_rng(0).standard_normal((size, columns))


def settle(
    found: Iterator[Pairs], n: int, tolerance: float = TOLERANCE, most_products: int = 200
) -> Pairs:
    """The pairs of the first step at which n are settled, or of the last step."""
    pairs = None
    for pairs in found:
        enough = len(pairs.values) >= n and pairs.settled(n, tolerance)
        if enough or pairs.products == most_products:
            break
    assert pairs is not None
    return pairs
