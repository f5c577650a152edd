"""The lattice points at which a decoder is evaluated.

cryoDRGN's decoders give a volume's Hartley transform h(k) on a lattice of (D + 1)^3 points whose
last plane along each axis is dropped before the inverse transform. A Fourier decoder is evaluated
on one half of the sphere only: with F(k) = a + ib the pair h(k) = a - b, h(-k) = a + b follows
from one evaluation. Every rule below was read off cryoDRGN 4.3.1's ``eval_volume`` methods and
is held to them by the tests in ``tests/oracle``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scapedist.errors import InputError


@dataclass(frozen=True)
class Lattice:
    """Evaluation points of a box, and where their values lie in a volume's coefficients.

    Attributes
    ----------
    box_size
        Voxels along an edge, d.
    coordinates : (n_points, 3) float32
        Frequencies x, y, z, in cryoDRGN's unit: 0.5 is the Nyquist frequency of the full box.
    n_outputs
        Values per point: 2 (h(k), h(-k)) for a Fourier decoder, 1 (h(k)) for a Hartley decoder.
    direct, mirror : (d, d, d // 2 + 1) int32
        Where h(k) and h(-k) of each Fourier coefficient lie in the flattened values of a volume
        (``n_points * n_outputs`` of them); the slot after the last one is the background.
    background
        h(k) where the decoder is not evaluated.
    """

    box_size: int
    coordinates: np.ndarray
    n_outputs: int
    direct: np.ndarray
    mirror: np.ndarray
    background: float

    @property
    def n_points(self) -> int:
        """Number of points at which the decoder is evaluated."""
        return len(self.coordinates)

    @property
    def n_slots(self) -> int:
        """Number of values per volume, the background's slot included."""
        return self.n_points * self.n_outputs + 1

    def low_pass(self, box_size: int) -> Lattice:
        """The lattice with only the points that a smaller box has, and background elsewhere."""
        edge = np.abs(self.coordinates).max() * (box_size / self.box_size) * (1 + 1e-6)
        if self.n_outputs == 2:
            kept = _squared_norms(self.coordinates) <= edge**2
        else:
            kept = np.abs(self.coordinates).max(1) <= edge
        slots = np.full((self.n_points, self.n_outputs), kept.sum() * self.n_outputs, np.int32)
        slots[kept] = np.arange(kept.sum() * self.n_outputs).reshape(-1, self.n_outputs)
        moved = np.append(slots.ravel(), kept.sum() * self.n_outputs).astype(np.int32)
        return dataclasses.replace(
            self,
            coordinates=np.ascontiguousarray(self.coordinates[kept]),
            direct=moved[self.direct],
            mirror=moved[self.mirror],
        )


def make_lattice(
    kind: str,
    model_box_size: int,
    box_size: int,
    extent: float,
    background: float,
    mask_radius: float | None = None,
) -> Lattice:
    """The lattice of a decoder at the full or at a smaller (Fourier-cropped) box.

    Parameters
    ----------
    kind
        ``fourier_sphere``, ``fourier_slice``, ``hartley_cube`` or ``hypervolume``.
    model_box_size
        Voxels along an edge that the model was trained with, D (even).
    box_size
        Voxels along an edge of the volumes wanted, d <= D (even).
    extent
        Frequency of the lattice's last point at the full box (cryoDRGN: 0.5).
    background
        Value of h(k) outside of what the decoder covers.
    mask_radius
        Radius of the output mask in lattice points (``hypervolume`` only).
    """
    check_box_size(box_size, model_box_size)
    d, middle = box_size, box_size // 2
    in_plane = np.linspace(-extent * d / model_box_size, extent * d / model_box_size, d + 1)
    edge = extent * (d / model_box_size)
    across = np.linspace(-edge, edge, d + 1, dtype=np.float32)
    plane_xy = np.stack(np.meshgrid(in_plane, in_plane), -1).reshape(-1, 2).astype(np.float32)

    def coordinates(index: int) -> np.ndarray:
        return np.column_stack([plane_xy, np.full(len(plane_xy), across[index])])

    keep = _keep_rule(kind, coordinates, d, model_box_size, extent, edge, mask_radius)
    slots = np.full((d, d, d), -1, np.int32)
    points: list[np.ndarray] = []
    n_points = 0
    row, column = np.divmod(np.arange((d + 1) ** 2), d + 1)
    inside = (row < d) & (column < d)  # the lattice's last row and column are dropped

    def place(plane: int, chosen: np.ndarray, numbers: np.ndarray) -> None:
        slots[plane, row[chosen], column[chosen]] = numbers

    if kind in ("hartley_cube", "hypervolume"):
        for plane in range(d):
            kept = np.flatnonzero(keep(plane) & inside)
            place(plane, kept, n_points + np.arange(len(kept)))
            points.append(coordinates(plane)[kept])
            n_points += len(kept)
        n_outputs = 1
    else:
        n_outputs = 2
        for plane in range(middle):
            own = keep(plane) & inside
            partner = (keep(d - plane) & inside)[::-1] if plane else np.zeros_like(own)
            evaluated = np.flatnonzero(own | partner)
            number = np.full(len(own), -1, np.int64)
            number[evaluated] = n_points + np.arange(len(evaluated))
            place(plane, np.flatnonzero(own), 2 * number[own])
            if plane:
                mirrored = np.flatnonzero(partner[::-1])
                place(d - plane, mirrored, 2 * number[::-1][mirrored] + 1)
            points.append(coordinates(plane)[evaluated])
            n_points += len(evaluated)
        points.append(
            _middle_plane(kind, coordinates(middle), keep(middle), inside, n_points, place)
        )
        n_points += len(points[-1])

    background_slot = n_points * n_outputs
    slots[slots < 0] = background_slot
    shifted = np.fft.ifftshift(slots)
    opposite = np.roll(shifted[::-1, ::-1, ::-1], 1, axis=(0, 1, 2))
    half = middle + 1
    return Lattice(
        box_size=d,
        coordinates=np.ascontiguousarray(np.concatenate(points)),
        n_outputs=n_outputs,
        direct=np.ascontiguousarray(shifted[:, :, :half]),
        mirror=np.ascontiguousarray(opposite[:, :, :half]),
        background=background,
    )


def check_box_size(box_size: int, model_box_size: int) -> None:
    """Refuse a box that the model cannot give."""
    if box_size % 2 or box_size < 2 or box_size > model_box_size:
        raise InputError(
            f"A box size is even, at least 2 and at most the model's. It is {box_size}, the "
            f"model's is {model_box_size}. Choose an even number up to {model_box_size}."
        )


def _keep_rule(
    kind: str,
    coordinates: Callable[[int], np.ndarray],
    d: int,
    model_box_size: int,
    extent: float,
    edge: float,
    mask_radius: float | None,
) -> Callable[[int], np.ndarray]:
    """The function from a plane's index to which of its (d + 1)^2 points are kept."""
    if kind == "fourier_sphere":
        # float32 on purpose: which points at |k| = extent are kept depends on its rounding
        def sphere(plane: int) -> np.ndarray:
            return _squared_norms(coordinates(plane)) <= np.float32(edge**2)

        return sphere
    if kind == "fourier_slice":
        unit = np.linspace(-1, 1, d + 1)
        in_plane = unit[:, None] ** 2 + unit[None, :] ** 2

        def ball(plane: int) -> np.ndarray:
            return (np.sqrt(in_plane + unit[plane] ** 2) <= 1).ravel()

        return ball
    if kind == "hypervolume":
        if mask_radius is None:
            raise InputError(
                "An abinit checkpoint needs its output_mask_radius. This one has none, and "
                "cryoDRGN cannot evaluate it either. Give a checkpoint of a later epoch."
            )
        points_across = model_box_size + 1
        radius = extent * 2 * mask_radius / points_across

        def discs(plane: int) -> np.ndarray:
            points = coordinates(plane)
            # in float32, as numpy 2 computes cryoDRGN's expression: the disc is one point
            # smaller where rounding falls short of a whole number (D = 32, radius 16)
            height = points[0, 2]
            squared = max(np.float32(radius**2) - height**2, np.float32(0))
            disc = int(np.sqrt(squared) * np.float32(points_across))
            limit = (disc / (points_across // 2) * extent) ** 2
            kept = _squared_norms(points[:, :2]) <= np.float32(limit)
            kept[len(kept) // 2] = False  # the whole kz axis is zero, not only the origin
            return kept

        return discs
    return lambda plane: np.ones((d + 1) ** 2, bool)


def _squared_norms(points: np.ndarray) -> np.ndarray:
    """Sums of squares (n,) float32 of points (n, k) float32, added up from the left."""
    total = points[:, 0] * points[:, 0]
    for column in points.T[1:]:
        total = total + column * column
    return total


def _middle_plane(
    kind: str,
    coordinates: np.ndarray,
    keep: np.ndarray,
    inside: np.ndarray,
    first: int,
    place: Callable[[int, np.ndarray, np.ndarray], None],
) -> np.ndarray:
    """Place the plane kz = 0 of a Fourier decoder and return the points to evaluate in it.

    Where the plane is exactly zero a spherical decoder evaluates the first half of the kept
    points and takes the others as their conjugates. Where rounding left it off zero, and in a
    slice decoder always, each point is evaluated on its own.
    """
    middle = int(np.sqrt(len(coordinates))) // 2
    height = coordinates[0, 2]
    kept = np.flatnonzero(keep)
    if kind == "fourier_sphere" and height == 0.0:
        n_evaluated = (len(kept) + 1) // 2
        numbers = np.empty(len(kept), np.int64)
        numbers[:n_evaluated] = 2 * np.arange(n_evaluated)
        numbers[n_evaluated:] = numbers[len(kept) - 1 - np.arange(n_evaluated, len(kept))] + 1
        wanted = inside[kept]
        place(middle, kept[wanted], 2 * first + numbers[wanted])
        return coordinates[kept[:n_evaluated]]
    kept = kept[inside[kept]]
    place(middle, kept, 2 * (first + np.arange(len(kept))) + int(height > 0))
    return -coordinates[kept] if height > 0 else coordinates[kept]
