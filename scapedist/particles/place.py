"""Placing particles among the sketch volumes: the state of each by its own volume, its margin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from scapedist.analysis import placing as maths
from scapedist.errors import RunError
from scapedist.files.particle_lists import write_state_particles
from scapedist.particles.exact import WRITE_ROWS
from scapedist.plan import batches
from scapedist.store import RunStore, embeddings, read_rows


def placed_by(store: RunStore) -> str:
    """The most exact embedding of a run, by which particles are placed.

    Raises
    ------
    RunError
        Where there is none.
    """
    for method in embeddings(store.beside):
        return method
    raise RunError(
        f"Particles are placed by an embedding. {store.directory} has none that is up to date. "
        f"Give `scapedist embed {store.directory}` first."
    )


class SketchVolumes:
    """Coordinates of the sketch volumes on the first components, and their residuals."""

    def __init__(self, store: RunStore, n_components: int) -> None:
        coordinates = store.read("sketch/coordinates")
        self.coordinates = coordinates[:, :n_components]
        beyond = np.square(coordinates[:, n_components:]).sum(1)
        self.residual = store.read("sketch/residual") + beyond

    def squared_distances(self, coordinates: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Squared distances (n, m) float64 of particles to the sketch volumes."""
        return maths.squared_distances(coordinates, residual, self.coordinates, self.residual)


class Embedded:
    """An embedding, read in blocks next to the sketch volumes."""

    def __init__(self, store: RunStore, method: str) -> None:
        self.array = store.array(f"embedding/{method}/coordinates")
        self.residual = store.read(f"embedding/{method}/residual").astype(np.float64)
        self.n, self.r = self.array.shape
        self._sketch = SketchVolumes(store, self.r)

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Yield start, stop, coordinates, squared distances to the sketch volumes, by blocks."""
        rows = max(1, min(WRITE_ROWS, 2**26 // (8 * len(self._sketch.coordinates))))
        for start, stop in batches(self.n, rows):
            block = read_rows(self.array, slice(start, stop)).astype(np.float64)
            squared = self._sketch.squared_distances(block, self.residual[start:stop])
            yield start, stop, block, squared


def place_particles(
    store: RunStore, method: str, stack_indices: np.ndarray | None
) -> dict[str, Any]:
    """Write ``particles/`` from an embedding, and lists of the particles of each state.

    With error bars, ``within_posterior`` marks particles whose latent's uncertainty alone may
    move their volume into another state.
    """
    embedded = Embedded(store, method)
    labels, assignment = store.read("states/label"), store.read("sketch/assignment")
    state, margin = np.empty(embedded.n, np.int32), np.empty(embedded.n, np.float32)
    room = np.empty(embedded.n)
    for start, stop, _, squared in embedded.blocks():
        state[start:stop], margin[start:stop], room[start:stop] = maths.place(squared, labels)
    store.delete("particles")
    store.write("particles/state", state, ("particle",))
    store.write("particles/margin", margin, ("particle",))
    uncertain: dict[str, Any] = {}
    if "embedding/reduced/covariance" in store:
        within = room < _posterior_deviation(store, embedded.n)
        store.write("particles/within_posterior", within, ("particle",))
        uncertain["within_posterior"] = int(within.sum())
    write_state_particles(store.directory / "states" / "by_volume", state, stack_indices)
    n_states = int(labels.max()) + 1
    by_group = np.where(assignment >= 0, labels[assignment], -1)
    return {
        "method": method,
        "n_particles": np.bincount(state, minlength=n_states).tolist(),
        "n_particles_by_group": np.bincount(by_group[by_group >= 0], minlength=n_states).tolist(),
        "differ": int((state != by_group).sum()),
        "median_margin": float(np.median(margin)),
        **uncertain,
    }


def _posterior_deviation(store: RunStore, n: int) -> np.ndarray:
    """Rms distance (n,) by which the uncertainty of a latent alone moves its volume."""
    covariance, deviation = store.array("embedding/reduced/covariance"), np.empty(n)
    for start, stop in batches(n, WRITE_ROWS):
        block = read_rows(covariance, slice(start, stop)).astype(np.float64)
        deviation[start:stop] = np.sqrt(np.einsum("nkk->n", block))
    return deviation


def place_rows(
    store: RunStore, coordinates: np.ndarray, residual: np.ndarray
) -> dict[str, np.ndarray]:
    """Nearest sketch volume, distance, state and margin of any coordinates (n, r)."""
    sketch = SketchVolumes(store, coordinates.shape[1])
    squared = sketch.squared_distances(coordinates, residual)
    placed = {
        "nearest_volume": squared.argmin(1).astype(np.int32),
        "distance": np.sqrt(squared.min(1)).astype(np.float32),
    }
    if "states" in store.stages:
        state, margin, _ = maths.place(squared, store.read("states/label"))
        placed |= {"state": state, "margin": margin.astype(np.float32)}
    return placed
