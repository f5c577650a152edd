"""What is estimated from whole arrays: in this process, or by one worker with a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import zarr

from scapedist import backend
from scapedist.analysis import gram, linkage
from scapedist.analysis.eigen import leading_eigenpairs
from scapedist.analysis.embedding import Ridge, fit_ridge
from scapedist.analysis.sketch import Sketch, make_sketch
from scapedist.errors import ResourceError
from scapedist.plan import batches
from scapedist.store import read_rows
from scapedist.workers import Serial, Workers


@dataclass(frozen=True)
class StoredGram:
    """The centered Gram matrix of a run's volumes.

    Attributes
    ----------
    group_path
        The run's Zarr group.
    device
        Where it is computed with: ``cpu`` or ``cuda``.
    """

    group_path: str
    device: str

    def read(self) -> gram.Gram:
        """The matrix on the device; the mean is not read."""
        matrix = read_rows(zarr.open_array(f"{self.group_path}/components/gram", mode="r"))
        return gram.Gram(backend.to_device(matrix, self.device), np.zeros(0))

    def apply(self, block: np.ndarray) -> np.ndarray:
        """The matrix times a block (n, b) float64, some of its rows at a time, on the CPU."""
        array = zarr.open_array(f"{self.group_path}/components/gram", mode="r")
        product = np.empty_like(block)
        for start, stop in batches(len(block), array.chunks[0]):
            product[start:stop] = read_rows(array, slice(start, stop)) @ block
        return product


def eigenpairs(stored: StoredGram, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n largest eigenvalues, descending, and eigenvectors."""
    values, vectors = leading_eigenpairs(stored.read().matrix, n)
    return backend.to_host(values), backend.to_host(vectors)


@dataclass(frozen=True)
class StoredPoints:
    """Coordinates whose distances are those of a run's volumes.

    Attributes
    ----------
    group_path, device
        As for :class:`StoredGram`.
    """

    group_path: str
    device: str

    def read(self) -> Any:
        """The coordinates (n, k) float64 on the device; from the Gram matrix, where that is."""
        group = zarr.open_group(self.group_path, mode="r")
        if "components/gram" in group:
            stored = StoredGram(self.group_path, self.device)
            n = cast(zarr.Array, group["components/gram"]).shape[0]
            apply = stored.read().matrix.__matmul__ if self.device != "cpu" else stored.apply
            to_device = partial(backend.to_device, device=self.device)
            return gram.isometric_coordinates(apply, n, to_device)
        found = read_rows(zarr.open_array(f"{self.group_path}/components/isometric", mode="r"))
        return backend.to_device(found.astype(np.float64), self.device)


def link(source: StoredGram | np.ndarray, method: str) -> np.ndarray:
    """The merge tree of the volumes, as :func:`scapedist.analysis.linkage.link`.

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
            source = gram.into_squared_distances(source.read().matrix)
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


def hdbscan(stored: StoredPoints, least: int) -> np.ndarray:
    """Dense groups (n,) int32 of at least some volumes, -1 for volumes in none, by HDBSCAN."""
    return backend.hdbscan(stored.read(), least)


# -- the same of arrays that are sent


def one_of(workers: Workers) -> Workers:
    """Who estimates: a worker with a GPU; on the CPU this process, with all its cores."""
    return Serial() if workers.device == "cpu" else workers


def sketch_by(workers: Workers) -> Callable[..., Sketch]:
    """:func:`scapedist.analysis.sketch.make_sketch`, with all distances by a GPU where one is."""
    if workers.device == "cpu":
        return make_sketch
    return partial(workers.call, partial(make_sketch, nearest=backend.nearest_by_gpu))


def umap_by(workers: Workers) -> Callable[[np.ndarray, int], np.ndarray]:
    """What makes a UMAP of points (n, k) by a seed: (n, 2) float32."""
    return partial(one_of(workers).call, _umap, workers.device)


def _umap(device: str, points: np.ndarray, seed: int) -> np.ndarray:
    return backend.umap(backend.to_device(points, device), seed)


def ridge_by(workers: Workers) -> Callable[[np.ndarray, np.ndarray], Ridge]:
    """What fits a ridge regression to a kernel (n, n) and targets (n, r), float64."""
    return partial(one_of(workers).call, _ridge, workers.device)


def _ridge(device: str, kernel: np.ndarray, targets: np.ndarray) -> Ridge:
    found = fit_ridge(*(backend.to_device(array, device) for array in (kernel, targets)))
    weights, mean, left_out = map(backend.to_host, (found.weights, found.mean, found.left_out))
    return Ridge(weights, mean, left_out, found.ridge)
