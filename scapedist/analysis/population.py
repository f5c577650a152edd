"""Principal axes, groups and densities of all particles' coordinates, read block by block.

Coordinates are never held together. Sums of blocks are added in their order, so that results do
not depend on who computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from scapedist.analysis.gram import Run, in_order, in_turn
from scapedist.analysis.placing import Axes, axes_from_sums
from scapedist.backend import kmeans

SAMPLE = 20_000
"""Number of random particles from which the groups' first centers are found."""
MOST_ITERATIONS = 100
"""Number of passes after which groups count as settled in any case."""
GRID = 96
"""Number of a density's cells along an axis."""
WIDTHS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""Fractions of Scott's kernel width that are tried."""
LEAST_WIDTH = 0.6
"""Smallest width of a kernel, in cells of the grid."""
AXES = 3
"""Number of leading axes whose pairs have a density."""
MARGIN = 0.1
"""Fraction of the particles' range that a density shows beyond it on either side."""

Reader = Callable[[int, int], np.ndarray]
"""Function that reads coordinates (stop - start, r) float of particles start..stop."""
Span = tuple[int, int]


class Population:
    """Coordinates of all particles, read in blocks.

    Parameters
    ----------
    read
        Reads coordinates, wherever ``run`` computes.
    spans
        (start, stop) of the blocks.
    run
        Computes what each block adds.
    """

    def __init__(self, read: Reader, spans: list[Span], run: Run = in_turn) -> None:
        self._read, self.spans, self._run = read, spans, run
        self.n = spans[-1][1]

    def _each(self, work: Callable[[Any, Span], Any], *given: Any) -> Any:
        return in_order(self._run(work, (self._read, *given), self.spans))

    def axes(self) -> tuple[Axes, np.ndarray]:
        """Principal axes, and the smallest and largest coordinate on each leading axis.

        Returns
        -------
        axes : Axes
        limits : (AXES or fewer, 2) float64
        """
        total: Any = 0.0
        products: Any = 0.0
        for sums, outer in self._each(_moments):
            total, products = total + sums, products + outer
        axes = axes_from_sums(self.n, total, products)
        leading = axes.vectors[:AXES]
        found = list(self._each(_limits, axes.mean, leading))
        low = np.min([each[0] for each in found], 0)
        high = np.max([each[1] for each in found], 0)
        return axes, np.stack([low, high], 1)

    def groups(self, n_groups: int, seed: int) -> Groups:
        """k-means groups that start from the best of ten on a sample and settle on all particles.

        Raises
        ------
        InputError
            Where there are fewer particles than groups.
        """
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(self.n, min(self.n, SAMPLE), replace=False))
        sample = np.concatenate(list(self._each(_some, chosen))).astype(np.float64)
        centers, _ = kmeans(sample, n_groups, seed, 300, n_starts=10)
        before, passes = np.inf, 0
        while True:
            sums, counts = np.zeros_like(centers), np.zeros(len(centers))
            labels, inertia, nearest = [], 0.0, []
            for label, own, part, number, near in self._each(_assigned, centers):
                labels.append(label)
                inertia, sums, counts = inertia + own, sums + part, counts + number
                nearest.append(near)
            passes += 1
            if passes == MOST_ITERATIONS or inertia >= before * (1 - 1e-9):
                break
            before, filled = inertia, counts > 0
            centers = centers.copy()
            centers[filled] = sums[filled] / counts[filled, None]
        best = np.stack([near[0] for near in nearest]).argmin(0)
        medoid = np.stack([near[1] for near in nearest])[best, np.arange(len(centers))]
        order = np.argsort(-counts, kind="stable")
        rank = np.argsort(order).astype(np.int32)
        label = rank[np.concatenate(labels)]
        return Groups(label, centers[order], medoid[order], inertia, passes)

    def densities(self, axes: Axes, limits: np.ndarray) -> Densities:
        """Densities on pairs of the leading axes, from counts in a grid smoothed by a Gaussian.

        Scott's rule gives the kernel's shape (Scott 1992, doi:10.1002/9780470316849). It is for
        one peak; how wide the kernel is follows from the likelihood of each particle under all
        others.
        """
        k = len(limits)
        margin = MARGIN * np.maximum(np.ptp(limits, 1), 1e-12)
        edges = np.stack(
            [np.linspace(a - m, b + m, GRID + 1) for (a, b), m in zip(limits, margin, strict=True)]
        )
        pairs = list(combinations(range(k), 2))
        counts = np.zeros((len(pairs), GRID, GRID))
        for part in self._each(_counted, axes.mean, axes.vectors[:k], edges, pairs):
            counts += part
        width = np.maximum(np.sqrt(axes.variance[:k]) * self.n ** (-1 / 6), 1e-300)
        steps = width / np.diff(edges, axis=1)[:, 0]
        return Densities(edges, np.array(pairs, np.int32), _smoothed(counts, pairs, steps, edges))


@dataclass(frozen=True)
class Groups:
    """k-means groups of all particles.

    Attributes
    ----------
    label : (n,) int32
        The largest group is 0.
    center : (k, r) float64
    medoid : (k,) int64
        The particle nearest to each center.
    inertia
        Sum of squared distances to the centers.
    passes
        Number of passes over all particles.
    """

    label: np.ndarray
    center: np.ndarray
    medoid: np.ndarray
    inertia: float
    passes: int


@dataclass(frozen=True)
class Densities:
    """Densities of all particles on pairs of principal axes.

    Attributes
    ----------
    edges : (k, GRID + 1) float64
        Edges of the grid's cells along each axis.
    pair : (m, 2) int32
        Axes of each density.
    density : (m, GRID, GRID) float32
        Fraction of the particles per unit area; its sum times a cell's area is 1.
    """

    edges: np.ndarray
    pair: np.ndarray
    density: np.ndarray


def _moments(shared: tuple[Reader], span: Span) -> tuple[np.ndarray, np.ndarray]:
    rows = shared[0](*span).astype(np.float64)
    return rows.sum(0), rows.T @ rows


def _limits(shared: tuple[Reader, Any, Any], span: Span) -> tuple[np.ndarray, np.ndarray]:
    read, mean, vectors = shared
    on_axes = (read(*span) - mean) @ vectors.T
    return on_axes.min(0), on_axes.max(0)


def _some(shared: tuple[Reader, np.ndarray], span: Span) -> np.ndarray:
    """Coordinates of the particles among those chosen (m,) that are in a block."""
    read, chosen = shared
    start, stop = span
    return read(start, stop)[chosen[(chosen >= start) & (chosen < stop)] - start]


def _assigned(shared: tuple[Reader, np.ndarray], span: Span) -> tuple[Any, ...]:
    """A block's nearest centers (b,), inertia, sums and counts of groups, and candidate medoids."""
    read, centers = shared
    rows = read(*span).astype(np.float64)
    middle = centers.mean(0)
    rows -= middle
    squared = np.square(rows).sum(1)[:, None] + np.square(centers - middle).sum(1)
    squared -= 2 * rows @ (centers - middle).T
    label = squared.argmin(1)
    inertia = float(np.maximum(squared[np.arange(len(rows)), label], 0).sum())
    sums = np.zeros_like(centers)
    np.add.at(sums, label, rows)
    counts = np.bincount(label, minlength=len(centers)).astype(np.float64)
    sums += counts[:, None] * middle
    near = squared.argmin(0)
    found = (squared[near, np.arange(len(centers))], span[0] + near)
    return label.astype(np.int32), inertia, sums, counts, found


def _counted(shared: tuple[Any, ...], span: Span) -> np.ndarray:
    """Counts (m, GRID, GRID) of a block's particles in the cells of each pair of axes."""
    read, mean, vectors, edges, pairs = shared
    on_axes = (read(*span) - mean) @ vectors.T
    counts = np.zeros((len(pairs), GRID, GRID))
    for count, (i, j) in zip(counts, pairs, strict=True):
        count += np.histogram2d(on_axes[:, i], on_axes[:, j], (edges[i], edges[j]))[0]
    return counts


def _smoothed(
    counts: np.ndarray, pairs: list[tuple[int, int]], steps: np.ndarray, edges: np.ndarray
) -> np.ndarray:
    """Counts (m, GRID, GRID) as densities, by the kernel under which they are most likely.

    ``steps`` are Scott's widths in grid points; the best of some fractions of these is taken.
    """
    found = np.empty(counts.shape, np.float32)
    for number, (i, j) in enumerate(pairs):
        tried = [_under_kernel(counts[number], np.array([steps[i], steps[j]]) * f) for f in WIDTHS]
        smooth = max(tried, key=lambda each: each[0])[1]
        area = (edges[i, 1] - edges[i, 0]) * (edges[j, 1] - edges[j, 0])
        found[number] = smooth / (smooth.sum() * area)
    return found


def _under_kernel(counts: np.ndarray, width: np.ndarray) -> tuple[float, np.ndarray]:
    """Log-likelihood of all particles, each under the others' kernels, and the smoothed counts."""
    from scipy.ndimage import gaussian_filter

    sigma = np.maximum(width, LEAST_WIDTH)
    smooth = gaussian_filter(counts, sigma, mode="constant", truncate=6)
    alone = np.zeros_like(counts)
    alone[GRID // 2, GRID // 2] = 1
    own = gaussian_filter(alone, sigma, mode="constant", truncate=6).max()
    others = np.maximum(smooth - own * counts.clip(max=1), 1e-12 * own)
    return float((counts * np.log(others)).sum()), smooth
