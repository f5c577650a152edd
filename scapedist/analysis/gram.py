"""Principal components of wide data through the Gram matrix, out of core.

With n volumes of p masked voxels and p much larger than n, the covariance (p, p) is out of
reach, but the Gram matrix G = Xc Xc^T (n, n) of the centered rows has the same spectrum: with
G u = l u, the component is Xc^T u / sqrt(l), its variance l / (n - 1), and the coordinates of the
volumes on it are sqrt(l) u. All rows together, sqrt(l) u are isometric coordinates: their
distances are the volumes' distances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scapedist.analysis.eigen import (
    WHOLE,
    block_krylov,
    columns_for,
    leading_eigenpairs,
    random_block,
    settle,
)
from scapedist.backend import array_module, to_host
from scapedist.plan import CENTERED_BYTES, ISOMETRIC_COLUMNS, batches

Reader = Callable[[int, int], Any]
"""Function that reads rows start..stop of the masked voxels: (stop - start, p) float32."""
Run = Callable[[Callable[[Any, Any], Any], Any, Sequence[Any]], Iterator[tuple[int, Any]]]
"""Function that calls another with shared data and each task, in this process or on workers, and
yields (task's number, result) in any order."""
Span = tuple[int, int]
DISTANCE_TOLERANCE, MOST_PRODUCTS = 1e-5, 8
"""Tolerance and most products of the iteration for isometric coordinates, whose directions need
not be exact eigenvectors."""
PARTIAL_SUMS = 32
"""Most partial sums per pass: fewer keep fewer workers busy, more send more data."""
ROWS_A_COMPONENT = 8
"""Minimum rows per component of a partial sum, so that under a quarter of its traffic is sent."""


def in_turn(work: Callable[[Any, Any], Any], shared: Any, tasks: Sequence[Any]) -> Any:
    """Call a function with one task after the other in this process."""
    for number, task in enumerate(tasks):
        yield number, work(shared, task)


def in_order(results: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    """Results in the order of their tasks, so that sums do not depend on who is done first."""
    waiting: dict[int, Any] = {}
    expected = 0
    for number, result in results:
        waiting[number] = result
        while expected in waiting:
            yield waiting.pop(expected)
            expected += 1


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
        return into_squared_distances(self.matrix.copy())


def into_squared_distances(matrix: np.ndarray) -> np.ndarray:
    """Squared distances (n, n) of the rows of a Gram matrix, which they overwrite."""
    norms = matrix.diagonal().copy()
    matrix *= -2
    matrix += norms[:, None]
    matrix += norms[None, :]
    matrix.reshape(-1)[:: len(matrix) + 1] = 0
    return np.maximum(matrix, 0, out=matrix)


@dataclass(frozen=True)
class Components:
    """Principal components.

    Attributes
    ----------
    mean : (p,) float64
    vectors : (r, p) float64
        Orthonormal rows; the entry of largest magnitude of each is positive.
    variance : (r,) float64
        Variance along each component, with n - 1 degrees of freedom.
    variance_ratio : (r,) float64
        Fraction of the total variance along each component.
    coordinates : (n, r) float64
        Coordinates of the rows that the components were fitted to.
    """

    mean: np.ndarray
    vectors: np.ndarray
    variance: np.ndarray
    variance_ratio: np.ndarray
    coordinates: np.ndarray


def gram_matrix(read: Reader, n: int, block_rows: int, run: Run = in_turn) -> Gram:
    """The centered Gram matrix, computed in tiles of two blocks of rows each.

    Rows share a large mean, next to which their differences are small: a reference (the mean of
    the first block) is subtracted from the float32 rows before any product, products are
    accumulated in float64, and the rest of the mean is taken out of the matrix exactly.

    Parameters
    ----------
    read
        Reads rows, wherever ``run`` computes.
    n
        Number of rows.
    block_rows
        Number of rows per block.
    run
        Computes the tiles.
    """
    spans = batches(n, block_rows)
    ((_, reference),) = run(mean_of, read, spans[:1])
    tiles = [(left, right) for i, left in enumerate(spans) for right in spans[i:]]
    matrix = np.empty((n, n))
    total = np.zeros_like(reference)
    results = in_order(run(_tile, (read, reference), tiles))
    for ((a, b), (c, d)), (tile, sums) in zip(tiles, results, strict=True):
        matrix[a:b, c:d] = tile
        matrix[c:d, a:b] = tile.T
        if sums is not None:
            total += sums
    return Gram(matrix=_center(matrix), mean=reference + total / n)


def mean_of(read: Reader, span: Span) -> np.ndarray:
    """The mean (p,) float64 of some rows."""
    return to_host(read(*span).mean(0, dtype=np.float64))


def _tile(
    shared: tuple[Reader, np.ndarray], task: tuple[Span, Span]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Products of two blocks' rows minus the reference; with one block twice also its row sums."""
    read, reference = shared
    left, (first, last) = read(*task[0]), task[1]
    xp = array_module(left)
    mean, n_rows = xp.asarray(reference), len(left) + last - first
    tile, ours = xp.zeros((len(left), last - first)), _Centered(left, mean, n_rows)
    if task[0] == task[1]:
        sums = xp.empty(len(mean))
        for start, stop in ours.spans:
            some = ours(start, stop)
            tile += some @ some.T
            sums[start:stop] = some.sum(0)
        return to_host(tile), to_host(sums)
    for a, b, right in _pieces(read, task[1]):
        theirs = _Centered(right, mean, n_rows)
        for start, stop in ours.spans:
            tile[:, a - first : b - first] += ours(start, stop) @ theirs(start, stop).T
    return to_host(tile), None


def _pieces(read: Reader, span: Span) -> Iterator[tuple[int, int, Any]]:
    """Parts of a block of rows as they arrive: a GPU multiplies one while the next is read."""
    if hasattr(read, "pieces"):
        yield from read.pieces(*span)
    else:
        yield *span, read(*span)


class _Centered:
    """Rows (m, p) float32 minus a mean (p,), in float64, some columns at a time, in one buffer.

    It takes as many columns at once as ``n_rows`` rows have in ``CENTERED_BYTES``; parts of a block
    take the same columns as the whole.
    """

    def __init__(self, rows: Any, mean: Any, n_rows: int) -> None:
        self.rows, self.mean = rows, mean
        xp = array_module(rows)
        n_bytes = CENTERED_BYTES["cpu" if xp is np else "cuda"]
        width = min(max(1024, n_bytes // (8 * n_rows)), len(mean))
        self.spans = batches(len(mean), width)
        self._place = xp.empty((len(rows), width))

    def __call__(self, start: int, stop: int) -> Any:
        """Centered columns start..stop, which the next call overwrites."""
        place = self._place[:, : stop - start]
        xp = array_module(place)
        return xp.subtract(self.rows[:, start:stop], self.mean[start:stop], out=place)


def _center(matrix: np.ndarray) -> np.ndarray:
    """Center a Gram matrix in place: that of the rows minus their mean."""
    shift = matrix.mean(0)
    shift -= shift.mean() / 2
    for start, stop in batches(len(matrix), max(1, CENTERED_BYTES["cpu"] // matrix[:1].nbytes)):
        matrix[start:stop] -= shift[start:stop, None] + shift  # the same both ways
    return matrix


def fit_components(
    gram: Gram,
    read: Reader,
    block_rows: int,
    n_components: int,
    run: Run = in_turn,
    eigenpairs: Callable[[Any, int], tuple[Any, Any]] = leading_eigenpairs,
) -> Components:
    """Principal components from a Gram matrix and one more pass over the rows.

    Parameters
    ----------
    gram
        Gram matrix of the rows that ``read`` reads.
    read, block_rows, run
        As for :func:`gram_matrix`.
    n_components
        Number of components, at most n - 1; fewer where the rows have a lower rank.
    eigenpairs
        Finds the largest eigenvalues of the matrix, and their vectors.
    """
    n, p = len(gram.matrix), len(gram.mean)
    values, vectors = eigenpairs(gram.matrix, min(n_components, n - 1, p))
    total = np.trace(gram.matrix)
    solid = values > max(total, np.finfo(float).tiny) * 1e-13
    values, vectors = values[solid], vectors[:, solid]
    blocks = batches(n, block_rows)
    least = -(-ROWS_A_COMPONENT * len(values) // block_rows)
    tasks = [
        (blocks[a:b], vectors[blocks[a][0] : blocks[b - 1][1]])
        for a, b in batches(len(blocks), max(least, -(-len(blocks) // PARTIAL_SUMS)))
    ]
    components = np.zeros((len(values), p))
    for part in in_order(run(_weighted_sum, (read, gram.mean), tasks)):
        components += part
    components /= np.sqrt(values)[:, None]
    signs = signs_of(components)
    components *= signs[:, None]
    return Components(
        mean=gram.mean,
        vectors=components,
        variance=values / (n - 1),
        variance_ratio=values / total,
        coordinates=vectors * (np.sqrt(values) * signs),
    )


def _weighted_sum(
    shared: tuple[Reader, np.ndarray], task: tuple[list[Span], np.ndarray]
) -> np.ndarray:
    """Sum (r, p) that some blocks of rows add to the components."""
    (read, mean), (spans, vectors) = shared, task
    first, result = spans[0][0], None
    for a, b in spans:
        rows = read(a, b)
        xp = array_module(rows)
        weights = xp.asarray(vectors[a - first : b - first].T)
        if result is None:
            result = xp.zeros((len(weights), rows.shape[1]))
        centered = _Centered(rows, xp.asarray(mean), len(rows))
        for start, stop in centered.spans:
            result[:, start:stop] += weights @ centered(start, stop)
    return to_host(result)


def signs_of(vectors: np.ndarray) -> np.ndarray:
    """Signs (k,) that make the largest entry of each of some vectors (k, p) positive."""
    return np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])


def principal_axes(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances (k,), largest first, and axes (k, k), one per row, of a covariance (k, k)."""
    variance, vectors = np.linalg.eigh(covariance)
    variance, vectors = np.maximum(variance[::-1], 0), vectors[:, ::-1].T
    return variance, vectors * signs_of(vectors)[:, None]


def isometric_coordinates(
    apply: Callable[[Any], Any], n: int, on_device: Callable[[np.ndarray], Any] = np.asarray
) -> Any:
    """Coordinates (n, k) float64 whose distances are the rows' distances.

    Up to ``WHOLE`` rows have exact ones, with k their rank; more rows have those along their
    ``ISOMETRIC_COLUMNS`` widest directions.

    Parameters
    ----------
    apply
        Multiplies the Gram matrix with a block (n, b).
    n
        Number of rows.
    on_device
        Moves an array to where the product is made.
    """
    if n <= WHOLE:
        values, vectors = leading_eigenpairs(apply(on_device(np.eye(n))), n)
    else:
        k = ISOMETRIC_COLUMNS
        start = on_device(random_block(n, k))
        pairs = block_krylov(apply, start, k, columns_for(k))
        found = settle(pairs, k, DISTANCE_TOLERANCE, MOST_PRODUCTS)
        values, vectors = found.values[:k], found.vectors(k)
    solid = values > values.sum() * 1e-13
    return vectors[:, solid] * np.sqrt(values[solid])


def nearest_along(coordinates: np.ndarray, component: int, positions: np.ndarray) -> np.ndarray:
    """Rows of the coordinates (n, r) nearest to points on a component's axis, (m,) int64."""
    points = np.zeros((len(positions), coordinates.shape[1]))
    points[:, component] = positions
    distances = np.square(coordinates[None, :, :] - points[:, None, :]).sum(-1)
    return distances.argmin(1)
