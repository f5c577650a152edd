"""Agglomerative clustering from exact distances, and cutting its tree."""

from __future__ import annotations

import numpy as np

from scapedist.errors import InputError

LINKAGES = ("average", "ward", "complete", "single")


def link(squared_distances: np.ndarray, method: str = "average") -> np.ndarray:
    """The merge tree of volumes (SciPy's nearest-neighbour chain).

    Parameters
    ----------
    squared_distances : (n, n) float64
        Exact, from the Gram matrix.
    method
        ``average`` (the paper's), ``ward``, ``complete`` or ``single``.

    Returns
    -------
    (n - 1, 4) float64
        As :func:`scipy.cluster.hierarchy.linkage`.
    """
    if method not in LINKAGES:
        raise InputError(f"A linkage is one of {', '.join(LINKAGES)}. It is {method!r}.")
    from scipy.cluster import hierarchy  # where it is used: settings are checked before
    from scipy.spatial.distance import squareform

    distances = squareform(squared_distances, checks=False)
    np.sqrt(distances, out=distances)
    return hierarchy.linkage(distances, method)


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
