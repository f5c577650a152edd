"""Particles placed by their own volumes: nearest sketch volume, state, margin, those missed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from scapedist.analysis import gram
from scapedist.backend import to_device, to_host
from scapedist.plan import batches

MISSED_DEVIATIONS = 4.0
"""Robust standard deviations above the median, in logarithm, from which a particle is missed."""
BLOCK_ROWS, COLUMNS = {"cpu": 512, "cuda": 8192}, 512
"""Particles and sketch volumes whose products are held at once: on the CPU in its cache."""


@dataclass(frozen=True)
class Placed:
    """Where particles lie among the sketch volumes.

    Attributes
    ----------
    nearest : (n,) int32
        Number of the nearest sketch volume.
    distance : (n,) float64
        Lower bound of the distance to it. Within the components it is exact; of the parts that
        components miss only the lengths are known, whose difference is the least that these parts
        can be apart.
    state : (n,) int32
        State of the nearest sketch volume that has one; -1 where no volume has.
    margin : (n,) float64
        1 - distance to the nearest volume of that state / distance to the nearest of another: 0
        on the border between two states, 1 for a particle that equals a sketch volume.
    room : (n,) float64
        How far the volume can move, at least, before its state changes: half the difference of
        these two distances; infinite where there is one state alone.
    """

    nearest: np.ndarray
    distance: np.ndarray
    state: np.ndarray
    margin: np.ndarray
    room: np.ndarray

    @classmethod
    def joined(cls, blocks: list[Placed]) -> Placed:
        """The particles of all blocks, one block after the other."""
        names = [key.name for key in fields(cls)]
        return cls(*(np.concatenate([getattr(block, name) for block in blocks]) for name in names))


@dataclass(frozen=True)
class Volumes:
    """Sketch volumes as points, those of a state side by side, among which particles are placed.

    Attributes
    ----------
    points : (m, r + 2) float64, an array of the device
        Coordinates and the length of what the components miss, centered and negative, and half
        the squared norm of these: the product with a particle's point and 1 is half the squared
        distance, less half the particle's squared norm.
    center : (r + 1,) float64
    number : (m,) int64
        Number of each volume in the sketch.
    parts
        (start, stop) of volumes of one state; those of no state are together, too.
    label : (k,) int32
        State of each part, -1 for none.
    device
        Device that products are computed on.
    """

    points: Any
    center: np.ndarray
    number: np.ndarray
    parts: list[tuple[int, int]]
    label: np.ndarray
    device: str

    @classmethod
    def of(
        cls,
        coordinates: np.ndarray,
        residual: np.ndarray,
        label: np.ndarray | None = None,
        device: str = "cpu",
    ) -> Volumes:
        """Volumes from their coordinates (m, r), residuals (m,) and states (m,), -1 for none."""
        every = np.full(len(coordinates), -1) if label is None else label
        number = np.argsort(every, kind="stable")
        points = _points(coordinates, residual)
        center = points.mean(0)  # products of small numbers lose less
        points = (points - center)[number]
        rows = np.column_stack([-points, np.square(points).sum(1) / 2])
        first = np.flatnonzero(np.diff(every[number], prepend=-2))
        starts = np.union1d(first, np.arange(0, len(number), COLUMNS))
        parts = list(zip(starts.tolist(), [*starts[1:].tolist(), len(number)], strict=True))
        label = every[number][starts]
        return cls(to_device(rows, device), center, number, parts, label, device)

    def place(self, coordinates: np.ndarray, residual: np.ndarray) -> Placed:
        """Place particles by their coordinates (n, r) and residuals (n,), squared norms."""
        points = _points(coordinates, residual) - self.center
        ours = np.column_stack([points, np.ones(len(points))])
        spans = batches(len(ours), BLOCK_ROWS[self.device])
        found = [self._least(to_device(ours[start:stop], self.device)) for start, stop in spans]
        least, row = (np.concatenate(each) for each in zip(*found, strict=True))
        squared = np.maximum(2 * least + np.square(points).sum(1)[:, None], 0)
        smallest = squared.min(1)
        # of equally near volumes the first, as everywhere
        number = np.where(squared == smallest[:, None], self.number[row], len(self.number)).min(1)
        nearest, distance = number.astype(np.int32), np.sqrt(smallest)
        states = np.unique(self.label[self.label >= 0])
        if not len(states):
            none = np.full(len(nearest), np.nan)
            return Placed(nearest, distance, np.full(len(nearest), -1, np.int32), none, none)
        each = np.sqrt(np.stack([squared[:, self.label == state].min(1) for state in states], 1))
        rows, own = np.arange(len(each)), each.argmin(1)
        inner = each[rows, own]
        each[rows, own] = np.inf
        outer = each.min(1)
        ratio = np.divide(inner, outer, out=np.ones_like(inner), where=outer > 0)
        state = states[own].astype(np.int32)
        return Placed(nearest, distance, state, 1 - ratio, (outer - inner) / 2)

    def _least(self, ours: Any) -> tuple[np.ndarray, np.ndarray]:
        """The least product (b, k) of rows (b, r + 2) with each part's volumes, and whose it is."""
        values, rows = [], []
        for start, stop in self.parts:
            if start % COLUMNS == 0:  # the first part of a product
                first, products = start, ours @ self.points[start : start + COLUMNS].T
            some = products[:, start - first : stop - first]
            row = some.argmin(1)
            values.append(np.take_along_axis(some, row[:, None], 1)[:, 0])
            rows.append(row + start)
        return to_host(np.stack(values, 1)), to_host(np.stack(rows, 1))

    def distances_to(
        self, number: np.ndarray, coordinates: np.ndarray, residual: np.ndarray
    ) -> np.ndarray:
        """Distance (n,) float64, as above, of each particle to one volume, given by its number."""
        row = np.argsort(self.number)[number]
        theirs = -to_host(self.points)[row, :-1]
        return np.linalg.norm(_points(coordinates, residual) - self.center - theirs, axis=1)


def _points(coordinates: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Coordinates (n, r) and the length of what components miss as points (n, r + 1) float64."""
    missed = np.sqrt(np.maximum(residual, 0))
    return np.column_stack([coordinates, missed]).astype(np.float64)


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
