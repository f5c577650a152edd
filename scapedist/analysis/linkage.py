"""Agglomerative clustering from exact distances, and cuts of its tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scapedist.analysis.sketch import lloyd
from scapedist.backend import array_module, to_host
from scapedist.errors import InputError
from scapedist.plan import batches

LINKAGES = ("average", "ward", "complete", "single")


def link(squared_distances: np.ndarray, method: str = "average") -> np.ndarray:
    """The merge tree of volumes: fastcluster's on the CPU, our own on a GPU.

    Parameters
    ----------
    squared_distances : (n, n) or (n (n - 1) / 2,) float64
        Exact squared distances from the Gram matrix: of all pairs, or of each pair once in the
        order of :func:`scipy.spatial.distance.squareform`. The latter, and CuPy's, are overwritten.
    method
        ``average`` (the paper's), ``ward``, ``complete`` or ``single``.

    Returns
    -------
    (n - 1, 4) float64
        Merges, as :func:`scipy.cluster.hierarchy.linkage` gives them.
    """
    if method not in LINKAGES:
        raise InputError(f"A linkage is one of {', '.join(LINKAGES)}. It is {method!r}.")
    if array_module(squared_distances) is not np:
        return nearest_neighbor_chain(squared_distances, method)
    import fastcluster  # where it is used: settings are checked before

    distances = squared_distances
    if distances.ndim == 2:
        from scipy.spatial.distance import squareform

        distances = squareform(distances, checks=False)
    np.sqrt(distances, out=distances)
    tree: np.ndarray = fastcluster.linkage(distances, method, preserve_input=False)
    return tree


def nearest_neighbor_chain(
    squared: np.ndarray, method: str, sizes: np.ndarray | None = None
) -> np.ndarray:
    """The merge tree by the nearest-neighbour chain, on any device; distances are overwritten.

    A chain goes from a group to its nearest one, on to that one's nearest, and so on; distances
    along it shrink, and where two groups are each other's nearest they are merged. For these
    linkages such pairs are merges of the greedy tree, whatever the order they are found in
    (Murtagh 1983; Müllner 2011, arXiv:1109.2378). Each step reads one row.

    Parameters
    ----------
    squared : (n, n) float64
        Squared distances, a symmetric numpy or CuPy array; overwritten.
    method
        One of ``LINKAGES``.
    sizes : (n,) int
        Number of members of each group to be joined; None for one each.

    Returns
    -------
    (n - 1, 4) float64
        Merges in SciPy's format, a numpy array; the same as SciPy's where no two distances are
        equal. The last column counts groups, not their members.
    """
    xp, n = array_module(squared), len(squared)
    distances = squared if method == "ward" else np.sqrt(squared, out=squared)
    distances.reshape(-1)[:: n + 1] = np.inf
    sizes = np.ones(n, np.int64) if sizes is None else sizes.astype(np.int64)
    on_device = xp.asarray(sizes.astype(np.float64))
    merges = np.empty((n - 1, 3))
    chain: list[int] = []
    links: list[float] = []
    """Squared distances between neighbours on the chain."""
    first = 0
    for merge in merges:
        if not chain:
            while not sizes[first]:
                first += 1
            chain.append(first)
        while True:
            row = distances[chain[-1]]
            found = to_host(xp.stack([row.argmin().astype(np.float64), row.min()]))
            nearest, distance = int(found[0]), float(found[1])
            if links and (distance >= links[-1] or nearest == chain[-2]):  # each other's nearest
                break
            chain.append(nearest)
            links.append(distance)
        (gone, kept), height = sorted(chain[-2:]), links.pop()
        del chain[-2:], links[-1:]
        merge[:] = gone, kept, height
        row = _merged(distances, gone, kept, height, sizes, on_device, method)
        row[[gone, kept]] = np.inf
        distances[kept], distances[:, kept] = row, row
        distances[gone], distances[:, gone] = np.inf, np.inf
        sizes[kept] += sizes[gone]
        sizes[gone] = 0
        on_device[kept] = sizes[kept]
    if method == "ward":
        np.sqrt(merges[:, 2], out=merges[:, 2])
    return _tree(merges)


def _merged(
    distances: np.ndarray,
    a: int,
    b: int,
    height: float,
    sizes: np.ndarray,
    on_device: np.ndarray,
    method: str,
) -> np.ndarray:
    """Distances (n,) of the union of two groups to all others (Lance & Williams)."""
    of_a, of_b = distances[a], distances[b]
    if method == "single":
        return np.minimum(of_a, of_b)
    if method == "complete":
        return np.maximum(of_a, of_b)
    n_a, n_b = float(sizes[a]), float(sizes[b])
    if method == "average":
        return (n_a * of_a + n_b * of_b) / (n_a + n_b)
    # squared distances: Ward's
    both = (on_device + n_a) * of_a + (on_device + n_b) * of_b - on_device * height
    return both / (on_device + (n_a + n_b))


def ward_of_points(points: Any, product_bytes: int) -> np.ndarray:
    """Ward's tree of points whose distances do not fit the memory, from the points alone.

    In rounds: the nearest neighbour of each group is found by products of blocks of centers, all
    groups that are each other's nearest are joined, and only who lost its neighbour, or is new,
    looks again. A union is never nearer to a third group than both its parts were, so that these
    are the merges of the greedy tree (Bruynooghe 1978; Murtagh 1983).

    Parameters
    ----------
    points : (n, k) float
        Points, a numpy or CuPy array.
    product_bytes
        Bytes of the distances that are held at once.

    Returns
    -------
    (n - 1, 4) float64
        Merges, as :func:`scipy.cluster.hierarchy.linkage` gives them for the points; the same
        where no two distances are equal.
    """
    xp, n = array_module(points), len(points)
    centers = points.astype(np.float64)
    centers -= centers.mean(0)
    sizes, slots = np.ones(n), np.arange(n)  # slots: which point stands for the group
    nearest, distance = _nearest_ward(xp, centers, sizes, np.arange(n), product_bytes)
    merges = np.empty((0, 3))
    while len(slots) > 1:
        here = np.arange(len(slots))
        mutual = np.flatnonzero((nearest[nearest] == here) & (here < nearest))
        if not len(mutual):  # rounding: a circle of equal distances
            mutual = np.array([distance.argmin()])
        other = nearest[mutual]
        found = np.column_stack([slots[mutual], slots[other], distance[mutual]])
        merges = np.concatenate([merges, found])
        united = sizes[mutual] + sizes[other]
        share = xp.asarray(sizes[other] / united)[:, None]
        centers[mutual] += share * (centers[other] - centers[mutual])
        sizes[mutual] = united
        changed = np.zeros(len(slots), bool)
        changed[mutual] = changed[other] = True
        again = changed | changed[nearest]
        left = np.ones(len(slots), bool)
        left[other] = False
        moved = np.cumsum(left) - 1
        centers, sizes, slots = centers[xp.asarray(left)], sizes[left], slots[left]
        nearest, distance = moved[nearest[left]], distance[left]
        looking = np.flatnonzero(again[left])
        if len(slots) > 1:
            nearest[looking], distance[looking] = _nearest_ward(
                xp, centers, sizes, looking, product_bytes
            )
    merges[:, 2] = np.sqrt(merges[:, 2])
    return _tree(merges)


def _nearest_ward(
    xp: Any, centers: Any, sizes: np.ndarray, rows: np.ndarray, product_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest group (m,) of some groups (m,), and Ward's squared distance to it."""
    weights, norms = xp.asarray(sizes), xp.square(centers).sum(1)
    nearest, distance = np.empty(len(rows), np.int64), np.empty(len(rows))
    for start, stop in batches(len(rows), max(1, product_bytes // (16 * len(centers)))):
        some = xp.asarray(rows[start:stop])
        squared = centers[some] @ (-2 * centers.T)
        squared += norms[None, :]
        squared += norms[some, None]
        mine = weights[some, None]
        squared *= weights[None, :]
        squared /= mine + weights[None, :]
        squared[xp.arange(len(some)), some] = np.inf
        found = squared.argmin(1)
        gaps = xp.square(centers[some] - centers[found]).sum(1)  # products lose digits
        exact = 2 * weights[some] * weights[found] / (weights[some] + weights[found]) * gaps
        nearest[start:stop], distance[start:stop] = to_host(found), to_host(exact)
    return nearest, distance


@dataclass(frozen=True)
class TwoLevel:
    """Linkage of many points by way of micro-states.

    Attributes
    ----------
    micro : (n,) int32
        The micro-state of each point.
    tree : (m - 1, 4) float64
        Merge tree of the micro-states.
    """

    micro: np.ndarray
    tree: np.ndarray

    def cut(self, n_states: int) -> np.ndarray:
        """Labels (n,) int32 of n_states groups of points, numbered by their first member."""
        return _in_order_of_first(cut(self.tree, n_states)[self.micro])


def two_level(
    points: np.ndarray,
    method: str,
    n_micro: int,
    nearest: Callable[[Any, Any], tuple[np.ndarray, np.ndarray]],
    seed: int,
) -> TwoLevel:
    """Linkage of points by way of k-means micro-states, each with the weight of its points.

    Two micro-states are as far apart, with ``average``, as the root mean square distance of their
    points (what lies within them included); with other linkages, as their centers.

    Parameters
    ----------
    points : (n, k) float
    method
        ``average``, ``complete``, ``single`` or ``ward``.
    n_micro
        Number of micro-states, at most.
    nearest
        Function that finds the center nearest to each point: distance and number.
    seed
        Seed of the k-means start.
    """
    rng = np.random.default_rng(seed)
    start = points[np.sort(rng.choice(len(points), min(n_micro, len(points)), replace=False))]
    _, groups = lloyd(points, start, nearest)
    _, micro, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    centers = np.zeros((len(sizes), points.shape[1]))
    np.add.at(centers, micro, points)
    centers /= sizes[:, None]
    within = np.bincount(micro, np.square(points - centers[micro]).sum(1)) / sizes
    norms = np.square(centers).sum(1)
    squared = centers @ centers.T  # of a matrix with itself: the same to the last bit both ways
    squared *= -2
    squared += norms[:, None] + norms[None, :]
    if method == "average":
        squared += within[:, None] + within[None, :]
    elif method == "ward":
        squared *= 2 * sizes[:, None] * sizes[None, :] / (sizes[:, None] + sizes[None, :])
    np.maximum(squared, 0, out=squared)
    tree = nearest_neighbor_chain(squared, method, sizes)
    return TwoLevel(micro.astype(np.int32), tree)


def _tree(merges: np.ndarray) -> np.ndarray:
    """SciPy's tree (n - 1, 4) of merges (n - 1, 3): a member of each group, and the height."""
    n = len(merges) + 1
    merges = merges[np.argsort(merges[:, 2], kind="stable")]
    parent, tree = list(range(2 * n - 1)), np.empty((n - 1, 4))
    size = [1] * n + [0] * (n - 1)

    def root(node: int) -> int:
        top = node
        while parent[top] != top:
            top = parent[top]
        while parent[node] != top:
            parent[node], node = top, parent[node]
        return top

    for step, (a, b, height) in enumerate(merges.tolist()):
        left, right = sorted((root(int(a)), root(int(b))))
        parent[left] = parent[right] = n + step
        size[n + step] = size[left] + size[right]
        tree[step] = left, right, height, size[n + step]
    return tree


def cut(tree: np.ndarray, n_states: int) -> np.ndarray:
    """Labels (n,) int32 of exactly n_states groups, from the tree without its last merges.

    Groups are numbered in the order of their first member.
    """
    n = len(tree) + 1
    if not 1 <= n_states <= n:
        raise InputError(
            f"There are from 1 to as many states as volumes. {n_states} states were asked for, "
            f"there are {n} volumes. Use --states {n} or less."
        )
    group = np.arange(n + len(tree))
    for step in range(n - n_states):
        group[tree[step, :2].astype(np.int64)] = n + step
    for node in range(n + len(tree) - 1, -1, -1):  # parents have higher numbers than children
        group[node] = group[group[node]]
    return _in_order_of_first(group[:n])


def _in_order_of_first(groups: np.ndarray) -> np.ndarray:
    """Labels (n,) int32 from 0 on, in the order in which groups first appear."""
    _, first, labels = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return rank[labels].astype(np.int32)
