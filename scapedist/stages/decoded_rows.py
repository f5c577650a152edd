"""Masked voxels of any particles' volumes, decoded in the process that asks and never stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import uuid4

import numpy as np

from scapedist import backend
from scapedist.analysis.mask import Mask
from scapedist.sources.decoded import Decoded
from scapedist.store import Reader


@dataclass(frozen=True)
class Projection:
    """All that a worker needs to project; sent to each worker once, arrays are read there.

    Attributes
    ----------
    source
        Source that decodes the volumes.
    reader
        Reader of the run.
    clip_negative, soft_mask
        Options that the components were fitted with.
    low_pass
        Box whose frequencies alone are decoded, or None for all.
    map_name
        Name of the reduced map that is used: ``map``, or ``coarse`` with fewer points.
    token
        Text that tells this projection from others.
    """

    source: Decoded
    reader: Reader
    clip_negative: bool
    soft_mask: bool
    low_pass: int | None = None
    map_name: str = "map"
    token: str = field(default_factory=lambda: uuid4().hex)

    @cached_property
    def mask(self) -> Mask:
        """The mask that takes volumes to masked voxels, on the source's device."""
        mask = Mask.of(self.reader.read("mask"), self.clip_negative, self.soft_mask)
        return mask.on(self.source.device)

    def on_device(self, array: np.ndarray) -> Any:
        """An array in the memory of the source's device."""
        return backend.to_device(array, self.source.device)

    def volumes(self, latents: np.ndarray) -> Any:
        """Yield the volumes (d, d, d) float32 of latents (b, zdim), low-passed if so set."""
        return self.source.decode(latents, self.low_pass)


def masked_rows(projection: Projection, latents: np.ndarray) -> Any:
    """Masked voxels (b, n_voxels) float32 of latents (b, zdim), on the source's device."""
    mask = projection.mask
    rows = backend.array_module(mask.inside).empty((len(latents), mask.n_voxels), np.float32)
    for row, volume in zip(rows, projection.volumes(latents), strict=True):
        row[:] = mask.rows_of(volume)
    return rows


def masked_batch(projection: Projection, latents: np.ndarray) -> np.ndarray:
    """Masked voxels (b, n_voxels) float32 of latents (b, zdim), in host memory."""
    return backend.to_host(masked_rows(projection, latents))


def whole_volumes(projection: Projection, latents: np.ndarray) -> np.ndarray:
    """Whole volumes (b, d, d, d) float32 of latents (b, zdim), in host memory."""
    decoded = projection.source.decode(latents)
    return np.stack([backend.to_host(volume).copy() for volume in decoded])


@dataclass(frozen=True)
class DecodedRows:
    """Decodes masked voxels of latents in the process that calls it.

    Attributes
    ----------
    projection
        Projection that decodes and masks.
    latents : (n, zdim) float
    """

    projection: Projection
    latents: np.ndarray

    def __call__(self, start: int, stop: int) -> Any:
        """Masked voxels (stop - start, n_voxels) float32 of latents start..stop, on the device."""
        return masked_rows(self.projection, self.latents[start:stop])
