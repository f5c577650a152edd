"""Masks, and the one way from volumes to masked voxels that fit and projection share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scapedist.backend import array_module, to_device
from scapedist.errors import InputError

PERCENTILE = 99.99


def density_percentile(volume: np.ndarray) -> Any:
    """The 99.99th percentile of a volume (d, d, d): its density level without outliers.

    It is NaN where a density is not finite. It stays on the volume's device: on a GPU nothing waits
    for it, as CuPy's own function would.
    """
    if array_module(volume) is np:
        finite = np.isfinite(volume.min()) and np.isfinite(volume.max())
        return np.percentile(volume, PERCENTILE) if finite else np.float32(np.nan)
    ordered = np.sort(volume.ravel())
    place = PERCENTILE / 100 * (ordered.size - 1)
    below, share = int(place), place - int(place)
    gap = ordered[min(below + 1, ordered.size - 1)] - ordered[below]
    return ordered[below] + gap * share + 0 * (ordered[-1] - ordered[0])


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
        Number of volumes whose density is at least the threshold, per voxel.
    n_volumes
        Number of volumes.
    pixel_size_angstroms
        Edge of a voxel in Å.
    dilate_angstroms
        Distance in Å by which the mask grows, rounded down to whole voxels.
    cosine_edge_angstroms
        Width in Å of a soft edge outside of it.
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
    """The weights (d, d, d) float32 in 0..1 of a user's mask.

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
    """The voxels that are analysed and their factors, shared by fit and projection.

    Attributes
    ----------
    shape
        Shape of a volume, axes z, y, x.
    inside : (n_voxels,) int64
        Flat positions of the mask's voxels, in z, y, x order.
    factor : (n_voxels,) float32 or None
        Factors of the voxels under a soft mask (cryoDRGN's habit); None without one.
    clip_negative
        Whether negative density is set to zero (cryoDRGN's habit).
    """

    shape: tuple[int, ...]
    inside: Any
    factor: Any = None
    clip_negative: bool = False

    @classmethod
    def of(cls, weights: np.ndarray, clip_negative: bool = False, soft: bool = False) -> Mask:
        """Make a mask of the voxels where weights (d, d, d) float32 are above 0."""
        inside = np.flatnonzero(weights > 0)
        return cls(weights.shape, inside, weights.ravel()[inside] if soft else None, clip_negative)

    def on(self, device: str) -> Mask:
        """A copy of the mask for volumes on a device, ``cpu`` or ``cuda``."""
        inside = to_device(self.inside, device)
        factor = None if self.factor is None else to_device(self.factor, device)
        return replace(self, inside=inside, factor=factor)

    @property
    def n_voxels(self) -> int:
        """Number of voxels in the mask."""
        return len(self.inside)

    def rows_of(self, volumes: Any) -> Any:
        """Masked voxels (..., n_voxels) float32 of volumes (..., d, d, d), clipped and weighted."""
        flat = volumes.reshape(*volumes.shape[:-3], -1)
        return self.weigh(flat.take(self.inside, axis=-1))

    def weigh(self, rows: Any) -> Any:
        """Rows (..., n_voxels) of the mask's voxels, clipped and weighted as the mask says."""
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
