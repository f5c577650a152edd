"""Placing particles among the sketch volumes: the state of each by its own volume, its margin."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import uuid4

import numpy as np

from scapedist.analysis.gram import Run, in_order, in_turn
from scapedist.analysis.placing import Placed, Volumes
from scapedist.backend import one_numpy_thread
from scapedist.errors import RunError
from scapedist.files.particle_lists import write_state_particles
from scapedist.particles.exact import WRITE_ROWS
from scapedist.plan import batches
from scapedist.store import Progress, Reader, RunStore, embeddings, read_rows
from scapedist.workers import Workers
from scapedist.workers.held import Held

FEW_PAIRS = 1e9
"""Below this many pairs of a particle and a sketch volume, work in this process."""


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


def sketch_volumes(
    reader: Reader | RunStore, n_components: int, with_states: bool, device: str = "cpu"
) -> Volumes:
    """The sketch's volumes on the first components, in the order of their states."""
    coordinates, residual = reader.read("sketch/coordinates"), reader.read("sketch/residual")
    residual = residual + np.square(coordinates[:, n_components:]).sum(1)
    label = reader.read("states/label") if with_states else None
    return Volumes.of(coordinates[:, :n_components], residual, label, device)


# -- all particles of an embedding


@dataclass(frozen=True)
class Everyone:
    """Where all particles lie among the sketch volumes.

    Attributes
    ----------
    method
        The embedding that says so.
    placed
    group_distance : (n,) float32
        Distance to the volume of the particle's own group; NaN where it is in none.
    total : (r,) float64
        Sum of the particles' coordinates.
    products : (r, r) float64
        Sum of the outer products of the particles' coordinates.
    """

    method: str
    placed: Placed
    group_distance: np.ndarray
    total: np.ndarray
    products: np.ndarray


@dataclass(frozen=True)
class Placing:
    """The placing of a run's particles on workers, done once for all who ask.

    Attributes
    ----------
    store
    workers
    progress
        Called with how many particles are placed.
    """

    store: RunStore
    workers: Workers
    progress: Progress

    @cached_property
    def everyone(self) -> Everyone:
        """All particles, placed by the run's most exact embedding."""
        return _place_all(self.store, self.workers, self.progress)


def _place_all(store: RunStore, workers: Workers, progress: Progress) -> Everyone:
    method = placed_by(store)
    n, r = store.array(f"embedding/{method}/coordinates").shape
    assignment = store.read("sketch/assignment")
    few = n * store.array("sketch/particle").shape[0] < FEW_PAIRS
    compute: Run = in_turn if few else workers.run
    device = "cpu" if few else workers.device
    shared = _Blocks(store.reader, method, "states" in store.stages, device)
    spans = batches(n, WRITE_ROWS)
    tasks = [(start, stop, assignment[start:stop]) for start, stop in spans]
    blocks, distances = [], np.empty(n, np.float32)
    total, products = np.zeros(r), np.zeros((r, r))
    with one_numpy_thread():  # as workers compute
        found = in_order(compute(_place_block, shared, tasks))
        for (start, stop), (placed, distance, sums, outer) in zip(spans, found, strict=True):
            blocks.append(placed)
            distances[start:stop] = distance
            total += sums
            products += outer
            progress("placing particles", stop, n)
    return Everyone(method, Placed.joined(blocks), distances, total, products)


@dataclass(frozen=True)
class _Blocks:
    """What all blocks of an embedding's particles share.

    Attributes
    ----------
    reader
    method
        Name of the embedding.
    with_states
        Whether the sketch volumes have states.
    device
        Device that distances are computed on.
    token
        Text that tells these from others.
    """

    reader: Reader
    method: str
    with_states: bool
    device: str
    token: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True)
class _Opened:
    """An embedding's arrays and the sketch volumes, opened in this process."""

    coordinates: Any
    residual: Any
    volumes: Volumes


def _open(blocks: _Blocks) -> _Opened:
    coordinates, residual = (
        blocks.reader.array(f"embedding/{blocks.method}/{name}")
        for name in ("coordinates", "residual")
    )
    r = coordinates.shape[1]
    volumes = sketch_volumes(blocks.reader, r, blocks.with_states, blocks.device)
    return _Opened(coordinates, residual, volumes)


opened = Held(_open)
"""The embedding that this process places particles by."""


def _place_block(
    blocks: _Blocks, task: tuple[int, int, np.ndarray]
) -> tuple[Placed, np.ndarray, np.ndarray, np.ndarray]:
    """Place particles start..stop, whose groups are given.

    Returns
    -------
    Placed
    (b,) float32
        Distance to the volume of the own group; NaN without one.
    (r,), (r, r) float64
        Sums of coordinates and of their outer products.
    """
    start, stop, group = task
    held = opened(blocks)
    coordinates = read_rows(held.coordinates, slice(start, stop)).astype(np.float64)
    residual = read_rows(held.residual, slice(start, stop)).astype(np.float64)
    placed = held.volumes.place(coordinates, residual)
    distance = np.full(stop - start, np.nan, np.float32)
    own = np.flatnonzero(group >= 0)
    to_group = held.volumes.distances_to(group[own], coordinates[own], residual[own])
    # products round: what is nearest is not farther than another
    distance[own] = np.maximum(to_group, placed.distance[own])
    return placed, distance, coordinates.sum(0), coordinates.T @ coordinates


def write_placed(placing: Placing, stack_indices: np.ndarray | None) -> dict[str, Any]:
    """Write ``particles/`` and lists of the particles of each state.

    With error bars, ``within_posterior`` marks particles whose latent's uncertainty alone may
    move their volume into another state.
    """
    store, placed = placing.store, placing.everyone.placed
    labels, assignment = store.read("states/label"), store.read("sketch/assignment")
    state, margin = placed.state, placed.margin.astype(np.float32)
    store.delete("particles")
    store.write("particles/state", state, ("particle",))
    store.write("particles/margin", margin, ("particle",))
    uncertain: dict[str, Any] = {}
    if "embedding/reduced/covariance" in store:
        within = placed.room < _posterior_deviation(store, len(state))
        store.write("particles/within_posterior", within, ("particle",))
        uncertain["within_posterior"] = int(within.sum())
    write_state_particles(store.directory / "states" / "by_volume", state, stack_indices)
    n_states = int(labels.max()) + 1
    by_group = np.where(assignment >= 0, labels[assignment], -1)
    return {
        "method": placing.everyone.method,
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


# -- any coordinates


def place_rows(
    store: RunStore, coordinates: np.ndarray, residual: np.ndarray
) -> dict[str, np.ndarray]:
    """Nearest sketch volume, distance, state and margin of any coordinates (n, r)."""
    volumes = sketch_volumes(store, coordinates.shape[1], "states" in store.stages)
    found = volumes.place(coordinates, residual)
    placed = {"nearest_volume": found.nearest, "distance": found.distance.astype(np.float32)}
    if "states" in store.stages:
        placed |= {"state": found.state, "margin": found.margin.astype(np.float32)}
    return placed
