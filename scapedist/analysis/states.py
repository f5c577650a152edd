"""States: numbering, counts, medoids, and maps that are added up volume by volume."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def number_by_size(labels: np.ndarray, occupancy: np.ndarray) -> np.ndarray:
    """Labels (n,) int32 renumbered so that state 0 has the most particles."""
    sizes = np.bincount(labels, occupancy)
    volumes = np.bincount(labels)
    first = np.array([np.argmax(labels == state) for state in range(len(sizes))])
    order = np.lexsort((first, -volumes, -sizes))
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return rank[labels]


def medoids(
    labels: np.ndarray, occupancy: np.ndarray, blocks: Iterable[tuple[int, int, np.ndarray]]
) -> np.ndarray:
    """The medoid of each state: the volume with the least mean distance to the state's particles.

    Parameters
    ----------
    labels : (n,) int
        States from 0 on.
    occupancy : (n,) int
        Number of particles that each volume stands for.
    blocks
        Iterator of start, stop and squared distances (stop - start, n) float64 of consecutive
        volumes.

    Returns
    -------
    (n_states,) int64
        Positions of the medoids in ``labels``.
    """
    weights = np.zeros((len(labels), labels.max() + 1))
    weights[np.arange(len(labels)), labels] = occupancy
    total = np.empty(len(labels))
    for start, stop, squared in blocks:
        sums = np.sqrt(squared) @ weights
        total[start:stop] = sums[np.arange(stop - start), labels[start:stop]]
    order = np.lexsort((total, labels))  # the first of equals
    return order[np.unique(labels[order], return_index=True)[1]]


def weighted_moments(
    blocks: Iterable[np.ndarray], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of arrays, in one pass.

    Parameters
    ----------
    blocks
        Iterator of arrays (m, ...) of consecutive items.
    weights : (n,) float
        Weight of each item.

    Returns
    -------
    mean, deviation : (...) float32
        Both accumulated in float64 around the first item, so that a large mean costs no digits.
    """
    reference, first, second, done = None, None, None, 0
    for block in blocks:
        if reference is None:
            reference = block[0].astype(np.float64)
            first, second = np.zeros_like(reference), np.zeros_like(reference)
        for item in block:
            difference = item - reference
            first += weights[done] * difference
            difference *= difference
            difference *= weights[done]
            second += difference
            done += 1
    if reference is None or first is None or second is None:
        raise ValueError("weighted_moments needs at least one item")
    total = weights[:done].sum()
    first /= total
    variance = np.maximum(second / total - first**2, 0)
    return (reference + first).astype(np.float32), np.sqrt(variance).astype(np.float32)
