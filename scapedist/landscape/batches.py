"""What a worker does with a batch: decode, count, write whole chunks, say what it saw."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import zarr

from scapedist import backend
from scapedist.analysis.mask import density_percentile
from scapedist.errors import RunError
from scapedist.model.decoder import Decoder
from scapedist.store import disk_errors, write_row

if TYPE_CHECKING:  # what sends batches starts without torch
    from scapedist.model.field import Field

WRITERS = 4
"""Threads that write what a GPU decodes; on the CPU volumes are written in turn."""


@dataclass(frozen=True)
class VolumeSource:
    """All that a worker needs to make any of a run's volumes; sent to each worker once.

    Attributes
    ----------
    decoder
        The model's, or None where the volumes are maps on disk.
    latents : dict of name -> (n, zdim) float32
        Latents of the volumes of each array.
    map_paths
        Maps on disk, in the sketch's order, instead of a decoder.
    box_size, pixel_size_angstroms
        Of the volumes.
    dtype, flip, invert
        As in the settings.
    threshold
        Density that claims a voxel, where it is known.
    mask : (d, d, d) float32 or None
        Only its voxels are stored, where it is given.
    group_path
        The run's Zarr group.
    device
        Where volumes are decoded: ``cpu`` or ``cuda``.
    """

    decoder: Decoder | None
    latents: dict[str, np.ndarray]
    map_paths: tuple[str, ...]
    box_size: int
    pixel_size_angstroms: float | None
    dtype: str
    flip: bool
    invert: bool
    threshold: float | None
    mask: np.ndarray | None
    group_path: str
    device: str = "cpu"
    token: str = field(default_factory=lambda: uuid4().hex)

    def volumes(self, array: str, start: int, stop: int) -> Any:
        """Yield the volumes (d, d, d) float32 of an array's rows, one after the other."""
        if self.decoder is None:
            from scapedist.output.maps import read_map

            for path in self.map_paths[start:stop]:
                yield self.oriented(read_map(Path(path))[0])
            return
        yield from self.decode(self.latents[array][start:stop])

    def decode(self, latents: np.ndarray, low_pass: int | None = None) -> Any:
        """Yield the volumes (d, d, d) float32 of latents (n, zdim), where they are decoded.

        With ``low_pass`` from the frequencies alone that a box of that size has.
        """
        for volume in field_of(self).volumes(latents, self.box_size, low_pass):
            yield self.oriented(backend.as_array(volume.float()))

    def oriented(self, volume: Any) -> Any:
        """A volume (d, d, d) mirrored and with its sign changed, as the settings say."""
        if self.flip:
            volume = volume[::-1]
        return -volume if self.invert else volume

    @cached_property
    def inside(self) -> np.ndarray:
        """Flat positions of the mask's voxels."""
        assert self.mask is not None
        return np.flatnonzero(self.mask > 0)


_FIELDS: dict[str, Field] = {}


def field_of(source: VolumeSource) -> Field:
    """The source's field in this process, made once."""
    from scapedist.model.field import Field

    if source.token not in _FIELDS:
        _FIELDS.clear()
        assert source.decoder is not None
        _FIELDS[source.token] = Field(source.decoder, source.device, source.dtype)
    return _FIELDS[source.token]


def generate_batch(source: VolumeSource, task: tuple[str, int, int]) -> dict[str, Any]:
    """Decode rows start..stop of an array and write their chunks.

    Returns
    -------
    dict
        The journal's entry: the task, the 99.99th percentile of each volume, and for a masked
        store the claimed voxels outside the mask and the fraction of the density there.

    Raises
    ------
    ResourceError
        Where the disk is full.
    RunError
        Where a volume is not finite.
    """
    name, start, stop = task
    array = zarr.open_array(f"{source.group_path}/{name}", mode="r+")
    on_cpu = source.device == "cpu"
    with (
        disk_errors(Path(source.group_path).parent),
        backend.Outbox(0 if on_cpu else WRITERS) as outbox,
    ):
        inside = None if source.mask is None else backend.to_device(source.inside, source.device)
        for row, volume in enumerate(source.volumes(name, start, stop), start):
            xp = backend.array_module(volume)
            kept = volume if inside is None else volume.ravel()[inside]
            counted = [density_percentile(volume)]
            if inside is not None and source.threshold is not None:
                every, own = volume[volume >= source.threshold], kept[kept >= source.threshold]
                counted.append(len(every) - len(own))
                total = every.sum(dtype=np.float64)
                counted.append(1 - own.sum(dtype=np.float64) / xp.maximum(total, 1e-300))
            numbers = xp.stack([xp.asarray(number, np.float64) for number in counted])
            outbox.put((kept, numbers), partial(_write, array, row))
        numbers = np.array(outbox.results())
    return {
        "array": name,
        "start": start,
        "stop": stop,
        "percentile": numbers[:, 0].tolist(),
        "outside": numbers[:, 1:2].ravel().astype(int).tolist(),
        "escaped": numbers[:, 2:].ravel().tolist(),
    }


def _write(array: zarr.Array, row: int, values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Write a volume if it is finite, and give back a copy of what was counted of it."""
    if not np.isfinite(counted[0]):
        raise RunError(
            f"Volumes are finite. Volume {row} of {array.path} is not. The model may have "
            "diverged, or its precision does not suffice: use --dtype float32."
        )
    write_row(array, row, values)
    return counted.copy()


def whole_volume(source: VolumeSource, name: str, row: int) -> np.ndarray:
    """A volume (d, d, d) float32 of an array's row, also outside the mask."""
    return backend.to_host(next(iter(source.volumes(name, row, row + 1)))).copy()


def precision_error(source: VolumeSource, name: str) -> float:
    """Largest relative L2 error of up to four stored volumes against the source's own."""
    array = zarr.open_array(f"{source.group_path}/{name}", mode="r")
    errors = []
    for row in spread_evenly(len(source.latents[name]), 4).tolist():
        stored = np.asarray(array[row], np.float64)
        volume = backend.to_host(next(iter(source.volumes(name, row, row + 1))))
        if source.mask is not None:
            volume = volume.ravel()[source.inside]
        errors.append(float(np.linalg.norm(stored - volume) / np.linalg.norm(volume)))
    return max(errors)


def spread_evenly(n: int, n_wanted: int) -> np.ndarray:
    """Rows spread evenly over n of them, (m,) int64; all where there are no more."""
    return np.unique(np.linspace(0, n - 1, min(n, n_wanted)).round().astype(np.int64))
