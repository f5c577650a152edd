"""What is made of the stored Gram matrix, in this process or by a worker with a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from scapedist import backend
from scapedist.analysis import gram, linkage
from scapedist.errors import ResourceError
from scapedist.store import read_rows


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


def eigenpairs(stored: StoredGram, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n largest eigenvalues, descending, and eigenvectors."""
    values, vectors = backend.leading_eigenpairs(stored.read().matrix, n)
    return backend.to_host(values), backend.to_host(vectors)


def link(stored: StoredGram, method: str) -> np.ndarray:
    """The merge tree of the volumes, as :func:`scapedist.analysis.linkage.link`.

    Raises
    ------
    ResourceError
        Where the distances do not fit the memory.
    """
    try:
        distances = gram.into_squared_distances(stored.read().matrix)
        return linkage.link(distances, method)
    except MemoryError as error:
        raise ResourceError(
            f"Linkage keeps the distances of all pairs of volumes in memory, and there is not "
            f"enough ({error}). Use --linkage kmeans, or a smaller --sketch-size."
        ) from None


def kmeans(stored: StoredGram, n_states: int, seed: int) -> np.ndarray:
    """Groups (n,) int32 of the volumes by k-means on their isometric coordinates."""
    points: Any = gram.isometric_coordinates(stored.read())
    return backend.kmeans(points, n_states, seed, 300, n_starts=10)[1]
