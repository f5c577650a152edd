"""Sketches: which particles represent the others, and how many each one stands for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from scapedist.backend import available_cores, nearest_by_products, one_numpy_thread
from scapedist.errors import InputError
from scapedist.plan import batches, spread_evenly

PLUSPLUS_LIMIT = 2000
"""Largest sketch that starts from k-means++; a larger one starts from random particles."""
SPREAD_ROWS = 16_384
"""Number of particles whose distances are brought up to date at once, in a processor's cache."""
MAX_ITERATIONS = 10
TREE_DIMENSIONS = 8
"""Dimensions up to which nearest centers are always found by a tree."""
SAMPLE, MOST_SEARCHED = 64, 1 / 16
"""Number of points on which a search by tree is tried, and the largest fraction of the tree that it
may look into: beyond, products with all centers take less time."""
Nearest = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
METHODS = ("kmeans", "uniform", "geometric")


@dataclass(frozen=True)
class Sketch:
    """Representative particles and the groups that they stand for.

    Attributes
    ----------
    particle : (n,) int64
        Rows of the representatives in the latents, each once.
    assignment : (n_particles,) int32
        The representative of every particle, as a position in ``particle``; -1 where excluded.
    """

    particle: np.ndarray
    assignment: np.ndarray

    @property
    def occupancy(self) -> np.ndarray:
        """Number of particles that each representative stands for, (n,) int64."""
        members = self.assignment[self.assignment >= 0]
        return np.bincount(members, minlength=len(self.particle)).astype(np.int64)


def grow_sketch(sketch: Sketch, latents: np.ndarray, added: np.ndarray) -> Sketch:
    """A sketch with further representatives; particles that are nearer to one go over to it.

    Parameters
    ----------
    sketch
    latents : (n_particles, zdim) float
    added : (m,) int64
        Rows of the latents to add; those that the sketch has already change nothing.
    """
    added = added[~np.isin(added, sketch.particle)]
    if not len(added):
        return sketch
    assignment = sketch.assignment.copy()
    own, _ = nearest_center(latents[sketch.particle], latents)
    member = assignment >= 0
    center = latents[sketch.particle[assignment[member]]]
    own[member] = np.linalg.norm(latents[member] - center, axis=1)
    distance, nearest = nearest_center(latents[added], latents)
    moved = distance < own
    assignment[moved] = len(sketch.particle) + nearest[moved]
    return Sketch(np.concatenate([sketch.particle, added]), assignment)


def make_sketch(
    latents: np.ndarray,
    size: int,
    method: str = "kmeans",
    seed: int = 0,
    excluded: np.ndarray | None = None,
    nearest: Nearest | None = None,
) -> Sketch:
    """Choose representatives among the particles' latents.

    Parameters
    ----------
    latents : (n_particles, zdim) float
    size
        Number of representatives wanted.
    method
        ``kmeans``: the particle nearest to each k-means center, and the groups are k-means';
        ``uniform``: drawn at random; ``geometric``: evenly over the occupied latent space
        (geometric sketching, Hie et al. 2019, doi:10.1016/j.cels.2019.05.003). With the last
        two a particle belongs to its nearest representative.
    seed
        Seed of the random numbers: the same seed gives the same sketch.
    excluded : (m,) int64
        Rows of the latents that are neither chosen nor counted.
    nearest
        Function that finds distances and numbers of the centers nearest to points:
        :func:`nearest_center`, or :func:`scapedist.backend.nearest_by_gpu`.

    Returns
    -------
    Sketch
        The sketch, made in memory of order n_particles + size, never of their product.

    Raises
    ------
    InputError
        Where there are fewer (distinct) particles than representatives wanted, or the method or
        the seed is invalid.
    """
    if method not in METHODS:
        raise InputError(f"A sketch method is one of {', '.join(METHODS)}. It is {method!r}.")
    if seed < 0:
        raise InputError(f"A seed is 0 or more. It is {seed}.")
    nearest = nearest or nearest_center
    rows = np.arange(len(latents))
    if excluded is not None:
        rows = np.delete(rows, excluded)
    points = latents[rows].astype(np.float64)
    n_distinct = len(points)
    if size < 2 or size > n_distinct:
        raise InputError(
            f"A sketch has from 2 representatives up to the number of particles. It should have "
            f"{size}, there are {n_distinct} particles. Use --sketch-size {n_distinct} or less."
        )
    rng = np.random.default_rng(seed)
    if method == "kmeans":
        chosen, groups = _kmeans_sketch(points, size, rng, nearest)
    else:
        draw = _draw_uniform if method == "uniform" else _draw_geometric
        chosen = np.sort(draw(points, size, rng))
        groups = nearest(points[chosen], points)[1]
        groups[chosen] = np.arange(len(chosen))
    assignment = np.full(len(latents), -1, np.int32)
    assignment[rows] = groups
    return Sketch(particle=rows[chosen].astype(np.int64), assignment=assignment)


def _kmeans_sketch(
    points: np.ndarray, size: int, rng: np.random.Generator, nearest: Nearest
) -> tuple[np.ndarray, np.ndarray]:
    """k-means groups and the particle of each group that is nearest to its center."""
    spread = size <= PLUSPLUS_LIMIT
    start = draw_spread(points, size, rng) if spread else np.sort(_draw_uniform(points, size, rng))
    centers, groups = lloyd(points, points[start], nearest)
    distance = np.square(points - centers[groups]).sum(1)
    order = np.lexsort((distance, groups))
    present, first = np.unique(groups[order], return_index=True)
    if len(present) < size:
        raise InputError(
            f"A k-means sketch needs as many distinct latents as groups. {size} groups were "
            f"asked for, {len(present)} hold particles. Use --sketch-size {len(present)} or less."
        )
    return order[first], groups


def lloyd(
    points: np.ndarray, centers: np.ndarray, nearest: Nearest
) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's iterations, in memory of order n + size.

    scikit-learn's k-means adds partial sums in the order in which threads finish; here sums run in
    the particles' order, so that the same seed gives the same sketch.
    """
    size = len(centers)
    groups = np.full(len(points), -1)
    for _ in range(MAX_ITERATIONS):
        distances, found = nearest(centers, points)
        if np.array_equal(found, groups):
            break
        groups = found
        counts = np.bincount(groups, minlength=size)
        sums = np.column_stack([np.bincount(groups, column, size) for column in points.T])
        filled = counts > 0
        centers = np.divide(sums, counts[:, None], where=filled[:, None], out=centers.copy())
        n_empty = size - int(filled.sum())
        if n_empty:  # an empty group restarts at the particles worst represented
            centers[~filled] = points[np.argsort(-distances, kind="stable")[:n_empty]]
    groups = nearest(centers, points)[1]
    return centers, groups


def nearest_center(centers: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance and number of the center nearest to each point, by a k-d tree or by products.

    In many dimensions a tree hardly narrows the search, unless the points lie along few of them.
    Which way is taken follows from the centers and the points alone, so that it is the same
    everywhere.
    """
    from scipy.spatial import cKDTree  # where it is used: settings are checked before

    tree = cKDTree(centers)
    if centers.shape[1] > TREE_DIMENSIONS:
        some = points[spread_evenly(len(points), SAMPLE)]
        if _searched(tree, some) > MOST_SEARCHED:
            return nearest_by_products(centers, points)
    distances, nearest = tree.query(points, workers=-1)
    return distances, nearest


def _searched(tree: Any, points: np.ndarray) -> float:
    """Fraction of a tree's leaves that a search looks into: those as near as the nearest center."""
    starts, ordered = np.arange(0, tree.n, tree.leafsize), tree.data[tree.indices]
    low, high = np.minimum.reduceat(ordered, starts), np.maximum.reduceat(ordered, starts)
    near = [
        np.linalg.norm(np.maximum(np.maximum(low - point, point - high), 0), axis=1) <= distance
        for point, distance in zip(points, tree.query(points)[0], strict=True)
    ]
    return float(np.mean(near))


def draw_spread(points: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Starts by k-means++ (Arthur & Vassilvitskii 2007), each drawn by its squared distance."""
    norms = np.square(points).sum(1)
    chosen = np.empty(size, np.int64)
    chosen[0] = rng.integers(len(points))
    nearest, cumulated = np.full(len(points), np.inf), np.empty(len(points))

    def approach(span: tuple[int, int], last: np.ndarray) -> None:
        """Bring some particles' squared distances to those chosen up to date with the last one."""
        rows = slice(*span)
        squared = points[rows] @ last
        squared *= -2
        squared += norms[rows]
        squared += last @ last
        np.maximum(squared, 0, out=squared)
        np.minimum(nearest[rows], squared, out=nearest[rows])

    spans = batches(len(points), SPREAD_ROWS)
    with one_numpy_thread(), ThreadPoolExecutor(available_cores()) as threads:
        for k in range(1, size):
            last = points[chosen[k - 1]]
            for _ in threads.map(partial(approach, last=last), spans):
                pass
            np.cumsum(nearest, out=cumulated)
            if cumulated[-1] <= 0:  # fewer distinct particles than asked for
                chosen[k:] = chosen[0]
                break
            chosen[k] = np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right")
    return np.minimum(chosen, len(points) - 1)


def _draw_uniform(points: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(len(points), size, replace=False)


def _draw_geometric(points: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """One random particle from each of about ``size`` equal boxes that cover the particles."""
    scaled = points - points.min(0)
    scaled /= max(scaled.max(), np.finfo(float).tiny)
    low, high = 0.0, 1.0
    boxes = np.zeros(len(points), np.int64)
    for _ in range(60):  # bisect the box's edge until about `size` boxes are occupied
        edge = (low + high) / 2
        cells = np.floor(scaled / edge).astype(np.int64)
        boxes = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
        n_boxes = boxes.max() + 1
        if size <= n_boxes <= 1.1 * size:
            break
        low, high = (edge, high) if n_boxes > size else (low, edge)
    shuffled = rng.permutation(len(points))
    _, first = np.unique(boxes[shuffled], return_index=True)
    one_of_each = shuffled[first]
    if len(one_of_each) >= size:
        return rng.choice(one_of_each, size, replace=False)
    others = np.setdiff1d(np.arange(len(points)), one_of_each)
    more = rng.choice(others, size - len(one_of_each), replace=False)
    return np.concatenate([one_of_each, more])


def quality_sample(
    sketch: Sketch, n_groups: int, n_members: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Further members of a few sketch groups, to compare the volumes within a group.

    Parameters
    ----------
    sketch
        Sketch whose groups are sampled.
    n_groups, n_members
        Number of groups drawn (weighted by occupancy, among those with other members), and of
        members drawn from each.
    seed
        Seed of the drawing.

    Returns
    -------
    group : (q,) int32
    particle : (q,) int64
        Rows in the latents; representatives are not among them.
    """
    rng = np.random.default_rng([seed, 1])
    occupancy = sketch.occupancy
    candidates = np.flatnonzero(occupancy > 1)
    n_groups = min(n_groups, len(candidates))
    if n_groups == 0:
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    weights = occupancy[candidates] / occupancy[candidates].sum()
    groups = np.sort(rng.choice(candidates, n_groups, replace=False, p=weights))
    chosen_groups, chosen_particles = [], []
    for group in groups:
        members = np.flatnonzero(sketch.assignment == group)
        members = members[members != sketch.particle[group]]
        picked = np.sort(rng.choice(members, min(n_members, len(members)), replace=False))
        chosen_particles.append(picked)
        chosen_groups.append(np.full(len(picked), group, np.int32))
    return np.concatenate(chosen_groups), np.concatenate(chosen_particles).astype(np.int64)
