"""Particles placed by their own volumes: nearest sketch volume, state, margin, those missed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scapedist.analysis import gram

MISSED_DEVIATIONS = 4.0
"""Robust standard deviations above the median, in logarithm, from which a particle is missed."""


def squared_distances(
    coordinates: np.ndarray,
    residual: np.ndarray,
    sketch_coordinates: np.ndarray,
    sketch_residual: np.ndarray,
) -> np.ndarray:
    """Lower bounds (n, m) float64 of the squared distances of particles and sketch volumes.

    Within the components they are exact; of the parts that components miss only the lengths are
    known, whose difference is the least that these parts can be apart.

    Parameters
    ----------
    coordinates, residual : (n, r) and (n,)
        Coordinates and residuals (squared norms) of the particles.
    sketch_coordinates, sketch_residual : (m, r) and (m,)
        Coordinates and residuals of the sketch volumes.
    """
    ours = np.column_stack([coordinates, np.sqrt(np.maximum(residual, 0))]).astype(np.float64)
    theirs = np.column_stack([sketch_coordinates, np.sqrt(np.maximum(sketch_residual, 0))])
    center = theirs.mean(0)  # products of small numbers lose less
    ours, theirs = ours - center, theirs - center
    squared = -2 * ours @ theirs.T
    squared += np.square(ours).sum(1)[:, None]
    squared += np.square(theirs).sum(1)[None, :]
    return np.maximum(squared, 0, out=squared)


def place(squared: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The state of the nearest sketch volume, and how clearly it is that one.

    Parameters
    ----------
    squared : (n, m) float64
        Squared distances of particles and sketch volumes.
    labels : (m,) int
        States of the sketch volumes, -1 for none; at least one has a state.

    Returns
    -------
    state : (n,) int32
    margin : (n,) float64
        1 - distance to the nearest volume of that state / distance to the nearest of another: 0
        on the border between two states, 1 for a particle that equals a sketch volume.
    room : (n,) float64
        How far the volume can move, at least, before its state changes: half the difference of
        these two distances; infinite where there is one state alone.
    """
    states = np.unique(labels[labels >= 0])
    distance = np.sqrt(np.stack([squared[:, labels == state].min(1) for state in states], 1))
    rows, own = np.arange(len(squared)), distance.argmin(1)
    inner = distance[rows, own]
    distance[rows, own] = np.inf
    outer = distance.min(1)
    ratio = np.divide(inner, outer, out=np.ones_like(inner), where=outer > 0)
    return states[own].astype(np.int32), 1 - ratio, (outer - inner) / 2


def missed_threshold(distance: np.ndarray) -> float:
    """The distance to the nearest sketch volume above which a particle counts as missed."""
    positive = np.log(distance[distance > 0])
    if not len(positive):
        return np.inf
    median = np.median(positive)
    deviation = 1.4826 * np.median(np.abs(positive - median))
    return float(np.exp(median + MISSED_DEVIATIONS * max(deviation, 1e-6)))


def farthest_first(points: np.ndarray, n: int) -> np.ndarray:
    """Rows (n,) int64 spread over points (m, k), each the farthest from those before it."""
    chosen = [int(np.square(points - points.mean(0)).sum(1).argmax())]
    distance = np.square(points - points[chosen[0]]).sum(1)
    while len(chosen) < min(n, len(points)) and distance.max() > 0:
        chosen.append(int(distance.argmax()))
        np.minimum(distance, np.square(points - points[chosen[-1]]).sum(1), out=distance)
    return np.array(chosen, np.int64)


@dataclass(frozen=True)
class Axes:
    """Principal axes of all particles, within the components.

    Attributes
    ----------
    mean : (r,) float64
    vectors : (r, r) float64
        One axis per row, in coordinates on the components; widest first.
    variance : (r,) float64
    angle_degrees : (r,) float64
        Largest angle between the first k components and the first k axes, k = 1..r.
    """

    mean: np.ndarray
    vectors: np.ndarray
    variance: np.ndarray
    angle_degrees: np.ndarray


def axes_from_sums(n: int, total: np.ndarray, products: np.ndarray) -> Axes:
    """Principal axes from sums over particles.

    Parameters
    ----------
    n
        Number of particles.
    total : (r,) float64
        Sum of the particles' coordinates.
    products : (r, r) float64
        Sum of the outer products of the particles' coordinates.
    """
    mean = total / n
    covariance = (products - n * np.outer(mean, mean)) / max(n - 1, 1)
    variance, vectors = gram.principal_axes(covariance)
    cosines = [
        np.linalg.svd(vectors[:k, :k], compute_uv=False)[-1] for k in range(1, len(vectors) + 1)
    ]
    angles = np.degrees(np.arccos(np.clip(cosines, 0, 1)))
    return Axes(mean, vectors, variance, angles)
