"""Reading a run's stored volumes and their masked voxels in any process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np

from scapedist import backend
from scapedist.analysis.mask import Mask
from scapedist.plan import batches
from scapedist.settings import PcaSettings
from scapedist.store import Reader, RunStore, read_rows
from scapedist.workers.held import Held

FULL, MASKED, PILOT, QUALITY = "volumes/0", "volumes/masked", "volumes/pilot", "volumes/quality"
"""Arrays of volumes: the sketch's, whole or masked; a mask's pilot; the quality check's."""
READ_BYTES = 16 * 2**20
"""Approximate bytes of the blocks in which volumes are read."""
PIECE_BYTES = 256 * 2**20
"""Bytes of a block that go to a GPU at once, while it works on those before."""
LEAST_BLOCKS = 2
"""Number of blocks that a process keeps in any case: those of the tile it computes."""


@dataclass(frozen=True)
class StoredRows:
    """Reads masked voxels of a run's volumes in the process that calls it, keeping some blocks.

    Attributes
    ----------
    reader
        Reader of the run.
    main
        Name of the array of the sketch's volumes: ``volumes/0`` or ``volumes/masked``.
    members : (n,) int64
        Rows of that array that are analysed.
    clip_negative, soft_mask
        Options as in the settings of the components.
    device
        Device that blocks go to: ``cpu`` or ``cuda``.
    kept_bytes
        Size of the blocks read last that a process keeps.
    token
        Text that tells these rows from others.
    """

    reader: Reader
    main: str
    members: np.ndarray
    clip_negative: bool = False
    soft_mask: bool = False
    device: str = "cpu"
    kept_bytes: int = 0
    token: str = field(default_factory=lambda: uuid4().hex)

    def __call__(self, start: int, stop: int) -> Any:
        """Masked voxels (stop - start, n_voxels) float32 of members start..stop, on the device."""
        for _ in self.pieces(start, stop):
            pass
        return _kept(self).blocks[start, stop]

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, Any]]:
        """Yield parts of the rows start..stop, each with its span, as they arrive on the device.

        Rows that are kept, and those of the CPU, are one part. A GPU works on one part while the
        next is read.
        """
        blocks = _kept(self).blocks
        if (start, stop) in blocks:
            blocks[start, stop] = blocks.pop((start, stop))  # the last one used is the last to go
            yield start, stop, blocks[start, stop]
            return
        held = 4 * self.n_voxels * (stop - start + sum(b - a for a, b in blocks))
        while len(blocks) >= LEAST_BLOCKS and held > self.kept_bytes:
            a, b = next(iter(blocks))
            held -= 4 * self.n_voxels * (b - a)
            del blocks[a, b]
        if self.device == "cpu":
            blocks[start, stop] = self.of(self.main, self.members[start:stop])
            yield start, stop, blocks[start, stop]
            return
        block = backend.empty((stop - start, self.n_voxels), self.device, np.float32)
        for a, b in batches(stop - start, max(1, PIECE_BYTES // (4 * max(self.n_voxels, 1)))):
            found = self.of(self.main, self.members[start + a : start + b])
            block[a:b] = backend.to_device(found, self.device)
            yield start + a, start + b, block[a:b]
        blocks[start, stop] = block

    def of(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Masked voxels (m, n_voxels) float32 of rows (m,) of an array of volumes."""
        array, mask = self.reader.array(name), _kept(self).mask
        weighed = mask.factor is not None or mask.clip_negative
        if array.ndim == 2 and array.dtype == np.float32 and not weighed:
            return read_rows(array, rows)
        result = np.empty((len(rows), mask.n_voxels), np.float32)
        size = max(1, READ_BYTES // int(np.prod(array.shape[1:]) * 4))
        for start, stop in batches(len(rows), size):
            part = rows[start:stop]
            whole = slice(int(part[0]), int(part[-1]) + 1)
            consecutive = whole.stop - whole.start == len(part)
            block = read_rows(array, whole if consecutive else part)
            result[start:stop] = mask.rows_of(block) if block.ndim > 2 else mask.weigh(block)
        return result

    @property
    def n_voxels(self) -> int:
        """Number of voxels in the mask."""
        return _kept(self).mask.n_voxels


class _Kept:
    """The mask and the blocks of rows read last, which a process keeps."""

    def __init__(self, rows: StoredRows) -> None:
        self.mask = Mask.of(rows.reader.read("mask"), rows.clip_negative, rows.soft_mask)
        self.blocks: dict[tuple[int, int], Any] = {}


_kept = Held(_Kept)


def forget_rows() -> None:
    """Free the blocks of rows that this process keeps."""
    _kept.forget()


def stored_rows(
    store: RunStore,
    fitted: PcaSettings,
    members: np.ndarray | None = None,
    device: str = "cpu",
    kept: int = 0,
) -> StoredRows:
    """The reader of a run's masked voxels, as components of some settings take them."""
    main = MASKED if MASKED in store else FULL
    return StoredRows(
        reader=store.reader,
        main=main,
        members=np.arange(store.array(main).shape[0]) if members is None else members,
        clip_negative=fitted.clip_negative,
        soft_mask=fitted.soft_mask,
        device=device,
        kept_bytes=kept,
    )


def sketch_voxels(store: RunStore, fitted: PcaSettings, rows: np.ndarray) -> np.ndarray:
    """Masked voxels (m, n_voxels) float32 of sketch volumes, as the components take them."""
    reader = stored_rows(store, fitted)
    return reader.of(reader.main, rows)


def volume_of(store: RunStore, row: int) -> np.ndarray:
    """A sketch volume (d, d, d) float32; zero outside the mask where only that is stored."""
    if FULL in store:
        return read_rows(store.array(FULL), slice(row, row + 1))[0].astype(np.float32)
    voxels = read_rows(store.array(MASKED), slice(row, row + 1))
    return Mask.of(store.read("mask")).volumes_of(voxels)[0]


def volume_blocks(store: RunStore, rows: np.ndarray, mask: Mask) -> Iterator[np.ndarray]:
    """Yield blocks (m, d, d, d) of the sketch volumes of some rows (n,), by the run's mask."""
    masked = MASKED in store
    array = store.array(MASKED if masked else FULL)
    size = max(1, READ_BYTES // (4 * int(np.prod(mask.shape))))
    for start, stop in batches(len(rows), size):
        block = read_rows(array, rows[start:stop])
        yield mask.volumes_of(block) if masked else block
