"""Principal components of rows that are never held together, by passes over them.

They serve sketches whose Gram matrix is too large, and all particles of a dataset, whose volumes
are decoded in every pass and never stored. A pass is one product with the scatter matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scapedist.analysis.eigen import Pairs, block_krylov, random_block
from scapedist.analysis.gram import (
    PARTIAL_SUMS,
    Reader,
    Run,
    Span,
    in_order,
    in_turn,
    mean_of,
    signs_of,
)
from scapedist.backend import array_module, to_host
from scapedist.plan import CHUNK_BYTES, batches

MOST_PASSES = 30
"""Number of passes after which an iteration ends although it is not settled."""


@dataclass(frozen=True)
class Subspace:
    """Leading principal directions of rows.

    Attributes
    ----------
    mean : (p,) float64
    vectors : (m, p) float64
        Orthonormal rows, widest first; the entry of largest magnitude of each is positive.
    variance : (m,) float64
        Variance along each direction, with n - 1 degrees of freedom.
    total_variance
        Variance along all directions together.
    residuals : (m,) float64
        How far each is from a principal direction: the norm of its residual under the covariance,
        over its variance.
    passes
        Number of times that the rows were read.
    settled
        Whether the leading directions that were asked for are settled.
    """

    mean: np.ndarray
    vectors: np.ndarray
    variance: np.ndarray
    total_variance: float
    residuals: np.ndarray
    passes: int
    settled: bool


class Passes:
    """Rows that are read from the first to the last for every product.

    Parameters
    ----------
    read
        Reads rows, wherever ``run`` computes.
    n
        Number of rows.
    block_rows
        Number of rows that are read at once.
    run
        Computes the parts of a pass; its sums are added in their order.
    """

    def __init__(self, read: Reader, n: int, block_rows: int, run: Run = in_turn) -> None:
        self._read, self.n, self._run = read, n, run
        spans = batches(n, block_rows)
        size = -(-len(spans) // PARTIAL_SUMS)
        self._spans = spans[:1]
        self.tasks = [spans[a:b] for a, b in batches(len(spans), size)]

    def center(self) -> np.ndarray:
        """The mean (p,) float64 of the first block, near enough to subtract before products."""
        ((_, center),) = self._run(mean_of, self._read, self._spans)
        return to_host(center)

    def scatter(
        self, number: int, center: np.ndarray, block: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Products and sums of the rows minus a center, from one pass.

        Parameters
        ----------
        number
            Number of the pass, from 1 on.
        center : (p,) float64
        block : (p, b) float64

        Returns
        -------
        product : (p, b) float64
            The rows' transpose, times the rows, times the block.
        sums : (p,) float64
        squares
            Sum of all squares.
        """
        product, sums, squares = np.zeros(block.shape), np.zeros(len(center)), 0.0
        for part in in_order(self.parts(number, (self._read, center, block))):
            product += part[0]
            sums += part[1]
            squares += part[2]
        return product, sums, squares

    def parts(
        self, number: int, shared: Any, wanted: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield (task's number, its sums) of a pass in any order, for the tasks wanted or all."""
        chosen = range(len(self.tasks)) if wanted is None else wanted
        for place, found in self._run(_scatter, shared, [self.tasks[task] for task in chosen]):
            yield chosen[place], found


def principal_subspace(
    passes: Passes,
    n_components: int,
    most_columns: int,
    start: np.ndarray | None = None,
    most_passes: int = MOST_PASSES,
    after_pass: Callable[[int, Pairs], None] | None = None,
) -> Subspace:
    """Leading principal directions by block Krylov iteration: exact to rounding once settled.

    Parameters
    ----------
    passes
        Passes over the rows.
    n_components
        Number of directions that are to settle; all that the iteration has found are given.
    most_columns
        Most columns of the iteration's space, each of p numbers.
    start : (k, p) float
        Directions to begin with, such as a sketch's components.
    most_passes
        Number of passes after which it ends in any case.
    after_pass
        Called with the number of each pass and the pairs known after it.
    """
    n, center, scatter, done = passes.n, passes.center(), 0.0, 0

    def apply(block: np.ndarray) -> np.ndarray:
        """The scatter matrix times a block, from one pass; the first one finds the mean as well."""
        nonlocal center, scatter, done
        done += 1
        product, sums, squares = passes.scatter(done, center, block)
        shift = sums / n
        product -= n * np.outer(shift, shift @ block)
        scatter = squares - n * float(shift @ shift)
        center = center + shift
        return product

    first = random_block(len(center), n_components)
    if start is not None:
        first[:, : len(start)] = start.T[:, : first.shape[1]]
    settled, found = False, None
    for found in block_krylov(apply, first, n_components, most_columns):
        wanted = min(n_components, len(found.values))
        settled = len(found.values) >= min(n_components, n - 1) and found.settled(wanted)
        if after_pass is not None:
            after_pass(done, found)
        if settled or done == most_passes:
            break
    assert found is not None
    solid = int((found.values > 1e-13 * max(scatter, np.finfo(float).tiny)).sum())
    kept = min(solid, n - 1)
    vectors = found.vectors(kept).T
    vectors *= signs_of(vectors)[:, None]
    values = found.values[:kept]
    return Subspace(
        mean=center,
        vectors=vectors,
        variance=values / (n - 1),
        total_variance=scatter / (n - 1),
        residuals=found.residuals[:kept] / np.maximum(values, np.finfo(float).tiny),
        passes=done,
        settled=settled or kept < n_components,
    )


def _scatter(
    shared: tuple[Reader, np.ndarray, np.ndarray], spans: list[Span]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Products and sums that some blocks of rows add to a pass."""
    read, center, block = shared
    product: Any = None
    squares = 0.0
    for a, b in spans:
        rows = read(a, b)
        if product is None:
            xp = array_module(rows)
            middle, right = xp.asarray(center), xp.asarray(block)
            product, sums = xp.zeros(block.shape), xp.zeros(len(center))
        for start, stop in batches(len(rows), max(1, CHUNK_BYTES // (8 * len(center)))):
            some = rows[start:stop] - middle
            product += some.T @ (some @ right)
            sums += some.sum(0)
            squares += float(xp.vdot(some, some))
    return to_host(product), to_host(sums), squares


def coordinates_of(
    read: Reader,
    n: int,
    block_rows: int,
    mean: np.ndarray,
    vectors: np.ndarray,
    run: Run = in_turn,
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (n, m) float64 of rows on orthonormal vectors (m, p), and squared norms (n,).

    Parameters
    ----------
    read, n, block_rows, run
        As for :class:`Passes`.
    mean : (p,) float64
    vectors : (m, p) float64
    """
    coordinates, norms = np.empty((n, len(vectors))), np.empty(n)
    spans = batches(n, block_rows)
    for number, found in run(_coordinates_of_span, (read, mean, vectors), spans):
        start, stop = spans[number]
        coordinates[start:stop], norms[start:stop] = found
    return coordinates, norms


def _coordinates_of_span(
    shared: tuple[Reader, np.ndarray, np.ndarray], span: Span
) -> tuple[np.ndarray, np.ndarray]:
    read, mean, vectors = shared
    rows = read(*span)
    xp = array_module(rows)
    middle, right = xp.asarray(mean), xp.asarray(vectors).T
    coordinates, norms = xp.empty((len(rows), len(vectors))), xp.empty(len(rows))
    for start, stop in batches(len(rows), max(1, CHUNK_BYTES // (8 * len(mean)))):
        some = rows[start:stop] - middle
        coordinates[start:stop] = some @ right
        norms[start:stop] = xp.einsum("ij,ij->i", some, some)
    return to_host(coordinates), to_host(norms)
