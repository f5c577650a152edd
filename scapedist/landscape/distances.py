"""Distances between a run's volumes, a block of rows at a time: from what its components left."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import zarr

from scapedist.plan import PANEL_BYTES, batches
from scapedist.store import RunStore, read_rows


def store_gram(store: RunStore, matrix: np.ndarray) -> None:
    """Write the centered Gram matrix (n, n) float64, whole rows in a chunk."""
    n = len(matrix)
    rows = panel_rows(n)
    dimensions = ("included", "included_")
    array = store.create("components/gram", matrix.shape, matrix.dtype, dimensions, (rows, n))
    for start, stop in batches(n, rows):
        array[start:stop] = matrix[start:stop]


def panel_rows(n: int) -> int:
    """Rows of n distances that are handled at once."""
    return max(1, min(n, PANEL_BYTES // (8 * n)))


class Distances:
    """Squared distances of the volumes that were analysed.

    Parameters
    ----------
    store
        With components.

    Attributes
    ----------
    n
        Volumes.
    exact
        Whether they follow from the Gram matrix, not from isometric coordinates.
    """

    def __init__(self, store: RunStore) -> None:
        self.exact = "components/gram" in store
        self._gram: zarr.Array | None = store.array("components/gram") if self.exact else None
        self._points = np.zeros((0, 0))
        if self._gram is not None:
            self._norms = store.read("components/squared_norm")
        else:
            self._points = store.read("components/isometric").astype(np.float64)
            self._norms = np.einsum("ij,ij->i", self._points, self._points)
        self.n = len(self._norms)

    def blocks(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, int, np.ndarray]]:
        """start, stop and squared distances (stop - start, m) float64 of chosen volumes (m,)."""
        rows = np.arange(self.n) if chosen is None else chosen
        for start, stop in batches(len(rows), panel_rows(self.n)):
            block = self._products(rows[start:stop], None if chosen is None else chosen)
            sums = self._norms[rows[start:stop], None] + self._norms[rows][None, :]
            block *= -2
            block += sums
            block[np.arange(stop - start), np.arange(start, stop)] = 0
            yield start, stop, np.maximum(block, 0, out=block)

    def _products(self, rows: np.ndarray, columns: np.ndarray | None) -> np.ndarray:
        if self._gram is None:
            others = self._points if columns is None else self._points[columns]
            products: np.ndarray = self._points[rows] @ others.T
            return products
        consecutive = rows[-1] - rows[0] == len(rows) - 1
        read = read_rows(self._gram, slice(rows[0], rows[-1] + 1) if consecutive else rows)
        return read if columns is None else read[:, columns]

    def condensed(self) -> np.ndarray:
        """Squared distances of each pair once, (n (n - 1) / 2,) float64, as SciPy orders them."""
        found, at = np.empty(self.n * (self.n - 1) // 2), 0
        for start, _, block in self.blocks():
            for row, values in enumerate(block, start):
                found[at : at + self.n - 1 - row] = values[row + 1 :]
                at += self.n - 1 - row
        return found
