"""Principal components of wide data through the Gram matrix, out of core.

With n volumes of p masked voxels and p much larger than n, the covariance (p, p) is out of
reach, but the Gram matrix G = Xc Xc^T (n, n) of the centered rows has the same spectrum: with
G u = l u, the component is Xc^T u / sqrt(l), its variance l / (n - 1), and the coordinates of the
volumes on it are sqrt(l) u. All rows together, sqrt(l) u are isometric coordinates: their
distances are the volumes' distances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scapedist.backend import leading_eigenpairs
from scapedist.plan import batches

Reader = Callable[[int, int], np.ndarray]
"""Rows start..stop of the masked voxels, (stop - start, p) float32."""


@dataclass(frozen=True)
class Gram:
    """The centered Gram matrix and the mean of the rows.

    Attributes
    ----------
    matrix : (n, n) float64
        Inner products of the centered rows.
    mean : (p,) float64
    """

    matrix: np.ndarray
    mean: np.ndarray

    @property
    def squared_distances(self) -> np.ndarray:
        """Squared Euclidean distances of the rows, (n, n) float64."""
        norms = np.diag(self.matrix)
        distances = -2 * self.matrix
        distances += norms[:, None]
        distances += norms[None, :]
        np.fill_diagonal(distances, 0)
        return np.maximum(distances, 0, out=distances)


@dataclass(frozen=True)
class Components:
    """Principal components.

    Attributes
    ----------
    mean : (p,) float64
    vectors : (r, p) float64
        Orthonormal rows; the entry of largest magnitude of each is positive.
    variance : (r,) float64
        With n - 1 degrees of freedom.
    variance_ratio : (r,) float64
        Of the total variance.
    coordinates : (n, r) float64
        Scores of the rows they were fitted to.
    """

    mean: np.ndarray
    vectors: np.ndarray
    variance: np.ndarray
    variance_ratio: np.ndarray
    coordinates: np.ndarray


def gram_matrix(read: Reader, n: int, block_rows: int) -> Gram:
    """The centered Gram matrix, tile by tile, with at most two blocks of rows in memory.

    Rows share a large mean, next to which their differences are small: a reference (the mean of
    the first block) is subtracted from the float32 rows before any product, products are
    accumulated in float64, and the rest of the mean is taken out of the matrix exactly.

    Parameters
    ----------
    read
        Reads rows.
    n
        Rows in all.
    block_rows
        Rows of a block.
    """
    spans = batches(n, block_rows)
    first = read(*spans[0])
    reference = first.mean(0, dtype=np.float64)
    matrix = np.empty((n, n))
    total = np.zeros_like(reference)
    for i, (a, b) in enumerate(spans):
        left = (first if i == 0 else read(a, b)) - reference
        total += left.sum(0)
        matrix[a:b, a:b] = left @ left.T
        for c, d in spans[i + 1 :]:
            tile = left @ (read(c, d) - reference).T
            matrix[a:b, c:d] = tile
            matrix[c:d, a:b] = tile.T
    return Gram(matrix=_center(matrix), mean=reference + total / n)


def _center(matrix: np.ndarray) -> np.ndarray:
    """The Gram matrix of the rows minus their mean, in place."""
    row_means = matrix.mean(0)
    grand_mean = row_means.mean()
    matrix -= row_means[:, None]
    matrix -= row_means[None, :]
    matrix += grand_mean
    return matrix


def fit_components(gram: Gram, read: Reader, block_rows: int, n_components: int) -> Components:
    """Components from a Gram matrix, in one more pass over the rows.

    Parameters
    ----------
    gram
        Of the rows that ``read`` reads.
    read, block_rows
        As for :func:`gram_matrix`.
    n_components
        At most n - 1; fewer are given where the rows have a lower rank.
    """
    n, p = len(gram.matrix), len(gram.mean)
    values, vectors = leading_eigenpairs(gram.matrix, min(n_components, n - 1, p))
    total = np.trace(gram.matrix)
    solid = values > max(total, np.finfo(float).tiny) * 1e-13
    values, vectors = values[solid], vectors[:, solid]
    components = np.zeros((len(values), p))
    for start, stop in batches(n, block_rows):
        components += vectors[start:stop].T @ (read(start, stop) - gram.mean)
    components /= np.sqrt(values)[:, None]
    signs = signs_of(components)
    return Components(
        mean=gram.mean,
        vectors=components * signs[:, None],
        variance=values / (n - 1),
        variance_ratio=values / total,
        coordinates=vectors * (np.sqrt(values) * signs),
    )


def signs_of(vectors: np.ndarray) -> np.ndarray:
    """Signs (k,) that make the largest entry of each of some vectors (k, p) positive."""
    return np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])


def principal_axes(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances (k,), widest first, and axes (k, k), one a row, of a covariance (k, k)."""
    variance, vectors = np.linalg.eigh(covariance)
    variance, vectors = np.maximum(variance[::-1], 0), vectors[:, ::-1].T
    return variance, vectors * signs_of(vectors)[:, None]


def isometric_coordinates(gram: Gram) -> np.ndarray:
    """Coordinates (n, rank) float64 whose distances are the rows' distances."""
    n = len(gram.matrix)
    values, vectors = leading_eigenpairs(gram.matrix, n)
    solid = values > np.trace(gram.matrix) * 1e-13
    return vectors[:, solid] * np.sqrt(values[solid])


def nearest_along(coordinates: np.ndarray, component: int, positions: np.ndarray) -> np.ndarray:
    """Rows of the coordinates (n, r) nearest to points on a component's axis, (m,) int64."""
    points = np.zeros((len(positions), coordinates.shape[1]))
    points[:, component] = positions
    distances = np.square(coordinates[None, :, :] - points[:, None, :]).sum(-1)
    return distances.argmin(1)
