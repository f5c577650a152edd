"""A worker's part with a batch of volumes: make them, count, write whole chunks, report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scapedist import backend
from scapedist.analysis.mask import Mask, density_percentile
from scapedist.errors import RunError
from scapedist.files.aside import disk_errors
from scapedist.plan import spread_evenly
from scapedist.sources.source import Source
from scapedist.store import Reader, write_row

if TYPE_CHECKING:
    import zarr

WRITERS = 4
"""Number of threads that write what a GPU decodes; on the CPU volumes are written in turn."""


@dataclass(frozen=True)
class Writing:
    """Arrays of a run that are filled with volumes; sent to each worker once.

    Attributes
    ----------
    source
        Source of the volumes.
    reader
        Reader of the run.
    rows : dict of name -> (n,) int64
        Rows of the source that each array holds, by the array's name.
    mask
        Mask whose voxels alone are stored; None to store whole volumes.
    threshold
        Density that claims a voxel, where there is a mask.
    """

    source: Source
    reader: Reader
    rows: dict[str, np.ndarray]
    mask: Mask | None = None
    threshold: float | None = None

    def volume(self, name: str, row: int) -> np.ndarray:
        """The whole volume (d, d, d) float32 of an array's row, also outside the mask."""
        volumes = self.source.volumes(self.rows[name][row : row + 1])
        return backend.to_host(next(iter(volumes))).copy()


def write_batch(writing: Writing, task: tuple[str, int, int]) -> dict[str, Any]:
    """Make the volumes of rows start..stop of an array and write their chunks.

    Returns
    -------
    dict
        Entry for the journal: the task, the 99.99th percentile of each volume, and for a masked
        store the claimed voxels outside the mask and the fraction of the density there.

    Raises
    ------
    ResourceError
        Where the disk is full.
    RunError
        Where a volume is not finite.
    """
    name, start, stop = task
    source = writing.source
    array = writing.reader.array(name, "r+")
    on_cpu = source.device == "cpu"
    with (
        disk_errors(Path(writing.reader.path).parent),
        backend.Outbox(0 if on_cpu else WRITERS) as outbox,
    ):
        mask = None if writing.mask is None else writing.mask.on(source.device)
        for row, volume in enumerate(source.volumes(writing.rows[name][start:stop]), start):
            xp = backend.array_module(volume)
            kept = volume if mask is None else mask.rows_of(volume)
            counted = [density_percentile(volume)]
            if mask is not None and writing.threshold is not None:
                every, own = (_claimed(array, writing.threshold) for array in (volume, kept))
                counted.append(every[0] - own[0])
                counted.append(1 - own[1] / xp.maximum(every[1], 1e-300))
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


def _claimed(densities: Any, threshold: float) -> tuple[Any, Any]:
    """Number and sum of the densities that are at least a threshold; a GPU is not waited for."""
    claimed = densities >= threshold
    return claimed.sum(), (densities * claimed).sum(dtype=np.float64)


def _write(array: zarr.Array, row: int, values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Write a volume if it is finite, and return a copy of its counts."""
    if not np.isfinite(counted[0]):
        raise RunError(
            f"Volume {row} of {array.path} contains NaN or infinite values. The model may have "
            "diverged, or its precision does not suffice: use --dtype float32."
        )
    write_row(array, row, values)
    return counted.copy()


def precision_error(writing: Writing, name: str) -> float:
    """Largest relative L2 error of up to four stored volumes against those of the source."""
    array = writing.reader.array(name)
    errors = []
    for row in spread_evenly(len(writing.rows[name]), 4).tolist():
        stored, volume = np.asarray(array[row], np.float64), writing.volume(name, row)
        if writing.mask is not None:
            volume = writing.mask.rows_of(volume)
        errors.append(float(np.linalg.norm(stored - volume) / np.linalg.norm(volume)))
    return max(errors)
