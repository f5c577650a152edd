"""Distances between a run's volumes, from its stored Gram matrix or coordinates, and groups.

Each is read and computed by the process that calls it: this one, or a worker with a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from scapedist import backend
from scapedist.analysis import gram, linkage
from scapedist.analysis.eigen import leading_eigenpairs
from scapedist.errors import ResourceError
from scapedist.plan import BLOCK_SHARE, PANEL_BYTES, batches
from scapedist.store import Reader, RunStore, read_rows

if TYPE_CHECKING:
    import zarr


def store_gram(store: RunStore, matrix: np.ndarray) -> None:
    """Write the centered Gram matrix (n, n) float64 in chunks of whole rows."""
    n = len(matrix)
    rows = panel_rows(n)
    dimensions = ("included", "included_")
    array = store.create("components/gram", matrix.shape, matrix.dtype, dimensions, (rows, n))
    for start, stop in batches(n, rows):
        array[start:stop] = matrix[start:stop]


def panel_rows(n: int) -> int:
    """Number of rows of n distances that are handled at once."""
    return max(1, min(n, PANEL_BYTES // (8 * n)))


class Distances:
    """Squared distances of the volumes that were analysed.

    Parameters
    ----------
    store
        Store of a run with components.

    Attributes
    ----------
    n
        Number of volumes.
    exact
        Whether distances follow from the Gram matrix, not from isometric coordinates.
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
        """Yield start, stop, squared distances (stop - start, m) float64 of chosen volumes (m,)."""
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
        """Squared distances (n (n - 1) / 2,) float64 of each pair once, in SciPy's order."""
        found, at = np.empty(self.n * (self.n - 1) // 2), 0
        for start, _, block in self.blocks():
            for row, values in enumerate(block, start):
                found[at : at + self.n - 1 - row] = values[row + 1 :]
                at += self.n - 1 - row
        return found


@dataclass(frozen=True)
class StoredGram:
    """The stored, centered Gram matrix of a run's volumes.

    Attributes
    ----------
    reader
        Reader of the run.
    device
        Device that computes with it: ``cpu`` or ``cuda``.
    """

    reader: Reader
    device: str

    def held_whole(self) -> bool:
        """Whether a GPU holds the matrix whole: up to a share of its free memory; the CPU never."""
        if self.device == "cpu":
            return False
        from scapedist.model.field import free_bytes

        n = self.reader.array("components/gram").shape[0]
        return 8 * n * n <= BLOCK_SHARE * free_bytes(self.device)

    def read(self) -> Any:
        """The matrix (n, n) float64 on the device, to which it goes some rows at a time."""
        array = self.reader.array("components/gram")
        if self.device == "cpu":
            return read_rows(array)
        matrix = backend.empty(array.shape, self.device)
        for start, stop in batches(len(matrix), array.chunks[0]):
            matrix[start:stop] = self._rows(array, start, stop)
        return matrix

    def _rows(self, array: zarr.Array, start: int, stop: int) -> Any:
        return backend.to_device(read_rows(array, slice(start, stop)), self.device)

    def apply(self, block: Any) -> Any:
        """The Gram matrix times a block (n, b) float64 on the device, some rows at a time."""
        array = self.reader.array("components/gram")
        product = backend.array_module(block).empty(block.shape)
        for start, stop in batches(len(block), array.chunks[0]):
            product[start:stop] = self._rows(array, start, stop) @ block
        return product


def eigenpairs(stored: StoredGram, n: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The n largest eigenvalues, descending, and eigenvectors of a stored Gram matrix.

    None where the GPU cannot hold the matrix.
    """
    if not stored.held_whole():
        return None
    values, vectors = leading_eigenpairs(stored.read(), n)
    return backend.to_host(values), backend.to_host(vectors)


@dataclass(frozen=True)
class StoredPoints:
    """Stored coordinates whose distances are those of a run's volumes.

    Attributes
    ----------
    reader, device
        Reader and device as for :class:`StoredGram`.
    """

    reader: Reader
    device: str

    def read(self) -> Any:
        """The coordinates (n, k) float64 on the device, from the Gram matrix where it is stored."""
        if "components/gram" in self.reader:
            stored = StoredGram(self.reader, self.device)
            n = self.reader.array("components/gram").shape[0]
            to_device = partial(backend.to_device, device=self.device)
            apply = stored.read().__matmul__ if stored.held_whole() else stored.apply
            return gram.isometric_coordinates(apply, n, to_device)
        found = self.reader.read("components/isometric")
        return backend.to_device(found.astype(np.float64), self.device)


def link(source: StoredGram | np.ndarray, method: str) -> np.ndarray:
    """The merge tree of the volumes, as :func:`scapedist.analysis.linkage.link` gives it.

    Parameters
    ----------
    source
        Squared distances, or the Gram matrix that a GPU makes them from.
    method

    Raises
    ------
    ResourceError
        Where the distances do not fit the memory.
    """
    try:
        if isinstance(source, StoredGram):
            source = gram.into_squared_distances(source.read())
        return linkage.link(source, method)
    except MemoryError as error:
        raise ResourceError(
            f"Linkage keeps the distances of all pairs of volumes in memory, and there is not "
            f"enough ({error}). Use --linkage kmeans, or a smaller --sketch-size."
        ) from None


def ward(stored: StoredPoints, product_bytes: int) -> np.ndarray:
    """Ward's tree of the volumes from their coordinates."""
    return linkage.ward_of_points(stored.read(), product_bytes)


def kmeans(stored: StoredPoints, n_states: int, seed: int) -> np.ndarray:
    """Groups (n,) int32 of the volumes by k-means on their isometric coordinates."""
    return backend.kmeans(stored.read(), n_states, seed, 300, n_starts=10)[1]


def two_level(stored: StoredPoints, method: str, n_micro: int, seed: int) -> linkage.TwoLevel:
    """Linkage of the volumes by way of micro-states, from their coordinates."""
    points = stored.read()

    def nearest(centers: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance and number of the center nearest to each point, where the points are."""
        there = backend.to_device(centers, stored.device)
        return backend.nearest_by_products(there, points)

    return linkage.two_level(backend.to_host(points), method, n_micro, nearest, seed)


def hdbscan(stored: StoredPoints, least: int) -> np.ndarray:
    """Dense groups (n,) int32 of the volumes by HDBSCAN, -1 for volumes in none."""
    return backend.hdbscan(stored.read(), least)
