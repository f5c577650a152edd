"""Volumes as pictures: projections, slices and their colours, as plain arrays."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

DIRECTIONS = ("z", "y", "x")
_BLUE_WHITE_RED = (
    (0.02, 0.19, 0.38),
    (0.26, 0.58, 0.76),
    (1, 1, 1),
    (0.84, 0.38, 0.30),
    (0.4, 0, 0.12),
)
_DARK_TO_YELLOW = ((0, 0.13, 0.30), (0.34, 0.36, 0.43), (0.65, 0.61, 0.46), (1, 0.92, 0.27))


@dataclasses.dataclass(frozen=True)
class View:
    """The cube that pictures show, and the planes in it that slices go through.

    Attributes
    ----------
    start
        First voxel (z, y, x) of the cube.
    side
        Length of its edge in voxels.
    centre
        Voxel (z, y, x) of the whole box that the slices go through.
    max_side
        Most pixels per side of a picture; larger ones are averaged down.
    """

    start: tuple[int, int, int]
    side: int
    centre: tuple[int, int, int]
    max_side: int = 128

    def crop(self, volume: NDArray) -> NDArray:
        """Give the cube of (d, d, d) ``volume`` that is shown, as a view."""
        z, y, x = self.start
        return volume[z : z + self.side, y : y + self.side, x : x + self.side]

    def projections(self, volume: NDArray) -> NDArray[np.float32]:
        """Give the sums of (d, d, d) ``volume`` along z, y and x: (3, s, s), first row on top."""
        cube = self.crop(volume)
        return np.stack([self._shrink(cube.sum(axis, dtype=np.float32)) for axis in range(3)])

    def slices(self, volume: NDArray) -> NDArray[np.float32]:
        """Give the central planes of (d, d, d) ``volume`` across z, y and x: (3, s, s)."""
        cube = self.crop(volume)
        planes = [c - s for c, s in zip(self.centre, self.start, strict=True)]
        return np.stack([self._shrink(cube.take(planes[axis], axis)) for axis in range(3)])

    def _shrink(self, image: NDArray) -> NDArray[np.float32]:
        """Average blocks of pixels, and turn the first axis up as map viewers do."""
        factor = -(-self.side // self.max_side)
        side = self.side // factor * factor
        blocks = image[:side, :side].reshape(side // factor, factor, side // factor, factor)
        return blocks.mean((1, 3), dtype=np.float32)[::-1]


def view_of_mask(mask: NDArray, margin: float = 0.08) -> View:
    """Give the view around a mask: its voxels above 0, and a margin on each side.

    Parameters
    ----------
    mask
        (d, d, d), axes z, y, x.
    margin
        Width of the margin as a fraction of the mask's longest side.

    Returns
    -------
    View
        A cube within the box; its slices go through the mask's centre of mass.
    """
    box_size = mask.shape[0]
    inside = mask > 0
    profiles = [inside.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
    if not inside.any():
        return View((0, 0, 0), box_size, (box_size // 2,) * 3)
    first = [int(np.flatnonzero(profile)[0]) for profile in profiles]
    last = [int(np.flatnonzero(profile)[-1]) for profile in profiles]
    longest = max(b - a + 1 for a, b in zip(first, last, strict=True))
    side = min(box_size, longest + 2 * max(1, round(margin * longest)))
    start = [
        min(max((a + b + 1 - side) // 2, 0), box_size - side)
        for a, b in zip(first, last, strict=True)
    ]
    centre = [
        round(float(np.average(np.arange(box_size), weights=profile))) for profile in profiles
    ]
    return View((start[0], start[1], start[2]), side, (centre[0], centre[1], centre[2]))


def grey_limits(images: NDArray) -> tuple[float, float]:
    """Give the values shown black and white: the 1st and 99.8th percentile of all images."""
    low, high = np.percentile(images, (1, 99.8))
    return float(low), float(high)


def grey(images: NDArray, limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Colour (..., s, s) values from black to white: (..., s, s, 3)."""
    low, high = limits
    scaled = np.clip((images - low) / max(high - low, 1e-30), 0, 1)
    return np.repeat((scaled * 255).astype(np.uint8)[..., None], 3, axis=-1)


def signed_limit(images: NDArray) -> float:
    """Give the magnitude shown in full colour: the 99.5th percentile of all values together."""
    return float(np.percentile(np.abs(images), 99.5))


def signed(images: NDArray, limit: float) -> NDArray[np.uint8]:
    """Colour (..., s, s) values from blue (negative) over white (0) to red: (..., s, s, 3)."""
    return _coloured(0.5 + 0.5 * images / max(limit, 1e-30), _BLUE_WHITE_RED)


def fraction(images: NDArray) -> NDArray[np.uint8]:
    """Colour (..., s, s) values in 0..1 from dark blue to yellow (cividis): (..., s, s, 3)."""
    return _coloured(images, _DARK_TO_YELLOW)


def _coloured(values: NDArray, colours: tuple) -> NDArray[np.uint8]:
    stops = np.linspace(0, 1, len(colours))
    table = np.stack(
        [np.interp(np.linspace(0, 1, 256), stops, c) for c in zip(*colours, strict=True)], axis=-1
    )
    return (table * 255).astype(np.uint8)[(np.clip(values, 0, 1) * 255).astype(np.intp)]


def scale_bar(view: View, pixel_size_angstroms: float | None) -> tuple[float, str]:
    """Give a round length of about a third of the view: as a fraction of its side, and in words."""
    unit, name = (pixel_size_angstroms, "Å") if pixel_size_angstroms else (1.0, "voxels")
    lengths = np.outer([1, 10, 100, 1000], [1, 2, 5]).ravel()
    length = int(lengths[np.searchsorted(lengths, view.side * unit * 0.4, side="right") - 1])
    return length / (view.side * unit), f"{length} {name}"
