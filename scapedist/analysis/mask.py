"""Masks, and the one function from volumes to masked voxels that fit and projection share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scapedist.backend import to_device
from scapedist.errors import InputError

PERCENTILE = 99.99


def density_percentile(volume: np.ndarray) -> Any:
    """The 99.99th percentile of a volume (d, d, d): its density level without outliers.

    A number that is where the volume is: on a GPU it waits for nothing.
    """
    return np.percentile(volume, PERCENTILE)


def threshold_of(percentiles: np.ndarray) -> float:
    """The threshold by cryoDRGN's rule: the mean over volumes of half their 99.99th percentile."""
    return float(np.mean(np.asarray(percentiles, np.float64) / 2.0))


def mask_from_claims(
    claims: np.ndarray,
    n_volumes: int,
    pixel_size_angstroms: float,
    dilate_angstroms: float = 5.0,
    cosine_edge_angstroms: float = 0.0,
    min_fraction: float = 0.0,
) -> np.ndarray:
    """A mask from the number of volumes that claim each voxel.

    Parameters
    ----------
    claims : (d, d, d) int
        Volumes whose density is at least the threshold there.
    n_volumes
        Volumes in all.
    pixel_size_angstroms
        Of a voxel.
    dilate_angstroms
        The mask grows by this distance, rounded down to whole voxels.
    cosine_edge_angstroms
        Width of a soft edge outside of it.
    min_fraction
        Fraction of the volumes that must claim a voxel; at 0 one suffices (cryoDRGN's union).

    Returns
    -------
    (d, d, d) float32
        Weights from 0 to 1, axes z, y, x. Without a soft edge this is cryoDRGN's union of dilated
        masks; with one, the edge falls off around the union (cryoDRGN multiplies the
        complements of soft masks, so that its edge hardens as volumes are added).

    Raises
    ------
    InputError
        Where no voxel is left.
    """
    from scipy import ndimage  # where it is used: workers import this module and start sooner

    core = (claims > 0) & (claims / n_volumes >= min_fraction)
    if not core.any():
        raise InputError(
            f"A mask needs voxels. Not one is claimed by {min_fraction:.3g} of {n_volumes} volumes "
            f"(the most claimed one by {int(claims.max())}). Lower --min-fraction or --threshold, "
            "or check the sign of the density (--invert)."
        )
    n_voxels = int(dilate_angstroms // pixel_size_angstroms)
    if n_voxels:
        core = ndimage.binary_dilation(core, iterations=n_voxels)
    width = cosine_edge_angstroms / pixel_size_angstroms
    if not width:
        return core.astype(np.float32)
    distance = np.minimum(ndimage.distance_transform_edt(~core), width)
    return np.cos(np.pi * distance / width / 2).round(6).astype(np.float32)


def check_user_mask(mask: np.ndarray, box_size: int, name: str) -> np.ndarray:
    """A user's mask (d, d, d) as float32 weights in 0..1.

    Raises
    ------
    InputError
        Where the box differs, values are negative, or no voxel is positive.
    """
    if mask.shape != (box_size,) * 3:
        raise InputError(
            f"A mask has the box of the volumes, {box_size}. {name} has the shape {mask.shape}. "
            "Resample it, or choose --box-size."
        )
    if mask.min() < 0:
        raise InputError(
            f"A mask's weights run from 0 to 1. {name} goes down to {mask.min():.3g}. "
            "Give a mask, not a density map."
        )
    if mask.max() <= 0:
        raise InputError(f"A mask needs voxels above 0. {name} has none. Give another one.")
    if mask.max() > 1 + 1e-3:
        raise InputError(
            f"A mask's weights run from 0 to 1. {name} goes up to {mask.max():.3g}. "
            "Give a mask, not a density map."
        )
    return np.minimum(mask, 1).astype(np.float32)


@dataclass(frozen=True)
class Mask:
    """The voxels that are analysed, and how: what fit and projection both take volumes through.

    Attributes
    ----------
    shape
        Of a volume, axes z, y, x.
    inside : (n_voxels,) int64
        Flat positions of the mask's voxels, in z, y, x order.
    factor : (n_voxels,) float32 or None
        What voxels are multiplied by, with a soft mask (cryoDRGN's habit).
    clip_negative
        Whether negative density is set to zero (cryoDRGN's habit).
    """

    shape: tuple[int, ...]
    inside: Any
    factor: Any = None
    clip_negative: bool = False

    @classmethod
    def of(cls, weights: np.ndarray, clip_negative: bool = False, soft: bool = False) -> Mask:
        """The mask of weights (d, d, d) float32: voxels above 0 are in it."""
        inside = np.flatnonzero(weights > 0)
        return cls(weights.shape, inside, weights.ravel()[inside] if soft else None, clip_negative)

    def on(self, device: str) -> Mask:
        """The same for volumes on a device, ``cpu`` or ``cuda``."""
        inside = to_device(self.inside, device)
        factor = None if self.factor is None else to_device(self.factor, device)
        return replace(self, inside=inside, factor=factor)

    @property
    def n_voxels(self) -> int:
        """How many voxels are in the mask."""
        return len(self.inside)

    def rows_of(self, volumes: Any) -> Any:
        """Masked voxels (..., n_voxels) float32 of volumes (..., d, d, d), as they are analysed."""
        flat = volumes.reshape(*volumes.shape[:-3], -1)
        return self.weigh(flat.take(self.inside, axis=-1))

    def weigh(self, rows: Any) -> Any:
        """Rows (..., n_voxels) that hold the mask's voxels as they are, as they are analysed."""
        rows = rows.astype(np.float32, copy=False)
        if self.factor is not None:
            rows = rows * self.factor
        if self.clip_negative:
            rows = np.maximum(rows, 0)
        return rows

    def volumes_of(self, rows: np.ndarray) -> np.ndarray:
        """Volumes (n, d, d, d) float32 of rows (n, n_voxels); zero outside the mask."""
        volumes = np.zeros((len(rows), *self.shape), np.float32)
        volumes.reshape(len(rows), -1)[:, self.inside] = rows
        return volumes
