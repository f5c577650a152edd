"""Agglomerative clustering from exact distances, and cutting its tree."""

from __future__ import annotations

import numpy as np

from scapedist.backend import array_module, to_host
from scapedist.errors import InputError

LINKAGES = ("average", "ward", "complete", "single")


def link(squared_distances: np.ndarray, method: str = "average") -> np.ndarray:
    """The merge tree of volumes: SciPy's on the CPU, our own on a GPU.

    Parameters
    ----------
    squared_distances : (n, n) float64
        Exact, from the Gram matrix; of numpy, or of CuPy, whose memory is used up.
    method
        ``average`` (the paper's), ``ward``, ``complete`` or ``single``.

    Returns
    -------
    (n - 1, 4) float64
        As :func:`scipy.cluster.hierarchy.linkage`.
    """
    if method not in LINKAGES:
        raise InputError(f"A linkage is one of {', '.join(LINKAGES)}. It is {method!r}.")
    if array_module(squared_distances) is not np:
        return nearest_neighbor_chain(squared_distances, method)
    from scipy.cluster import hierarchy  # where it is used: settings are checked before
    from scipy.spatial.distance import squareform

    distances = squareform(squared_distances, checks=False)
    np.sqrt(distances, out=distances)
    return hierarchy.linkage(distances, method)


def nearest_neighbor_chain(squared: np.ndarray, method: str) -> np.ndarray:
    """The same by the nearest-neighbour chain, on any device, in place of the distances.

    A chain goes from a group to its nearest one, on to that one's nearest, and so on; distances
    along it shrink, and where two groups are each other's nearest they are merged. For these
    linkages such pairs are merges of the greedy tree, whatever the order they are found in
    (Murtagh 1983; Müllner 2011, arXiv:1109.2378). Each step reads one row.

    Parameters
    ----------
    squared : (n, n) float64
        Squared distances, of numpy or CuPy; overwritten.
    method
        One of ``LINKAGES``.

    Returns
    -------
    (n - 1, 4) float64
        As SciPy's, of numpy; the same merges where no two distances are equal.
    """
    xp, n = array_module(squared), len(squared)
    distances = squared if method == "ward" else np.sqrt(squared, out=squared)
    distances.reshape(-1)[:: n + 1] = np.inf
    sizes, on_device = np.ones(n, np.int64), xp.ones(n)
    merges = np.empty((n - 1, 3))
    chain: list[int] = []
    links: list[float] = []
    """Distances between neighbours on the chain."""
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
            if links and distance >= links[-1]:  # the one before is as near
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


def _tree(merges: np.ndarray) -> np.ndarray:
    """Merges (n - 1, 3) of one member each, and heights, as SciPy's tree (n - 1, 4)."""
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
    """Labels (n,) int32 of exactly n_states groups: the tree without its last merges.

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
    _, first, labels = np.unique(group[:n], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return rank[labels].astype(np.int32)
