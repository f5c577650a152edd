"""Masked voxels of the volumes that are stored, as any process reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
import zarr

from scapedist import backend
from scapedist.analysis import mask as masks
from scapedist.plan import batches
from scapedist.store import read_rows

READ_BYTES = 16 * 2**20
"""Volumes are read in blocks of about this size."""
LEAST_BLOCKS = 2
"""Blocks that a process keeps in any case: those of the tile it computes."""


@dataclass(frozen=True)
class StoredRows:
    """Reads masked voxels; where it is called, blocks of the volumes that are analysed.

    Attributes
    ----------
    group_path
        The run's Zarr group.
    main
        The array of the sketch's volumes: ``volumes/0`` or ``volumes/masked``.
    members : (n,) int64
        Its rows that are analysed.
    clip_negative, soft_mask
        As in the settings of the components.
    device
        Where blocks go: ``cpu`` or ``cuda``.
    kept_bytes
        Of the blocks read last, that a process keeps.
    """

    group_path: str
    main: str
    members: np.ndarray
    clip_negative: bool = False
    soft_mask: bool = False
    device: str = "cpu"
    kept_bytes: int = 0
    token: str = field(default_factory=lambda: uuid4().hex)

    def __call__(self, start: int, stop: int) -> Any:
        """Rows start..stop of the members, (stop - start, n_voxels) float32, on the device."""
        blocks = _kept(self).blocks
        if (start, stop) not in blocks:
            held = 4 * self.n_voxels * (stop - start + sum(b - a for a, b in blocks))
            while len(blocks) >= LEAST_BLOCKS and held > self.kept_bytes:
                a, b = next(iter(blocks))
                held -= 4 * self.n_voxels * (b - a)
                del blocks[a, b]
            found = self.of(self.main, self.members[start:stop])
            blocks[start, stop] = backend.to_device(found, self.device)
        blocks[start, stop] = blocks.pop((start, stop))  # the last one used is the last to go
        return blocks[start, stop]

    def of(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Masked voxels (m, n_voxels) float32 of rows (m,) of an array."""
        array, kept = zarr.open_array(f"{self.group_path}/{name}", mode="r"), _kept(self)
        weighed = kept.weights is not None or self.clip_negative
        if array.ndim == 2 and array.dtype == np.float32 and not weighed:
            return read_rows(array, rows)
        result = np.empty((len(rows), kept.n_voxels), np.float32)
        size = max(1, READ_BYTES // int(np.prod(array.shape[1:]) * 4))
        for start, stop in batches(len(rows), size):
            part = rows[start:stop]
            whole = slice(int(part[0]), int(part[-1]) + 1)
            consecutive = whole.stop - whole.start == len(part)
            block = read_rows(array, whole if consecutive else part)
            if block.ndim > 2:
                block = block[:, kept.mask > 0]
            result[start:stop] = masks.weigh(block, kept.weights, self.clip_negative)
        return result

    @property
    def n_voxels(self) -> int:
        """Voxels in the mask."""
        return _kept(self).n_voxels


class _Kept:
    """What a process keeps of the rows that it read last."""

    def __init__(self, rows: StoredRows) -> None:
        self.mask = read_rows(zarr.open_array(f"{rows.group_path}/mask", mode="r"))
        self.weights = self.mask[self.mask > 0] if rows.soft_mask else None
        self.n_voxels = int((self.mask > 0).sum())
        self.blocks: dict[tuple[int, int], Any] = {}


_KEPT: dict[str, _Kept] = {}


def _kept(rows: StoredRows) -> _Kept:
    if rows.token not in _KEPT:
        _KEPT.clear()
        _KEPT[rows.token] = _Kept(rows)
    return _KEPT[rows.token]


def forget_rows() -> None:
    """Free what this process keeps of volumes that were read."""
    _KEPT.clear()
