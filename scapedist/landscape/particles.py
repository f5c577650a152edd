"""All particles by their own volumes: states, margins, and what the sketch missed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from scapedist.analysis import particles as maths
from scapedist.analysis.gram import Gram
from scapedist.analysis.linkage import cut, link
from scapedist.analysis.states import number_by_size
from scapedist.errors import RunError
from scapedist.landscape.embedder import WRITE_ROWS, Embedder
from scapedist.landscape.projection import masked_batch, whole_volumes
from scapedist.landscape.record import Recorded
from scapedist.output.maps import write_map
from scapedist.output.selections import write_state_particles
from scapedist.plan import batches
from scapedist.store import RunStore, embeddings, read_rows

REPRESENTATIVES = 24
"""Missed particles that are decoded to tell groups of them apart."""


def placed_by(store: RunStore) -> str:
    """The embedding that particles are placed by, the most exact one.

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
    """The sketch volumes on the first components, and what these miss of them."""

    def __init__(self, store: RunStore, n_components: int) -> None:
        coordinates = store.read("sketch/coordinates")
        self.coordinates = coordinates[:, :n_components]
        beyond = np.square(coordinates[:, n_components:]).sum(1)
        self.residual = store.read("sketch/residual") + beyond

    def squared_distances(self, coordinates: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Of particles (n, r), (n,) and the sketch volumes, (n, m) float64."""
        return maths.squared_distances(coordinates, residual, self.coordinates, self.residual)


class _Embedded:
    """An embedding, read in blocks next to the sketch volumes."""

    def __init__(self, store: RunStore, method: str) -> None:
        self.array = store.array(f"embedding/{method}/coordinates")
        self.residual = store.read(f"embedding/{method}/residual").astype(np.float64)
        self.n, self.r = self.array.shape
        self._sketch = SketchVolumes(store, self.r)

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """start, stop, coordinates of particles, squared distances to the sketch volumes."""
        rows = max(1, min(WRITE_ROWS, 2**26 // (8 * len(self._sketch.coordinates))))
        for start, stop in batches(self.n, rows):
            block = read_rows(self.array, slice(start, stop)).astype(np.float64)
            squared = self._sketch.squared_distances(block, self.residual[start:stop])
            yield start, stop, block, squared


def place_particles(run: Recorded, method: str) -> dict[str, Any]:
    """Write ``particles/`` from an embedding, and lists of the particles of each state.

    Where there are error bars, ``within_posterior`` marks particles whose latent's uncertainty
    alone may move their volume into another state.
    """
    store, embedded = run.store, _Embedded(run.store, method)
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
    write_state_particles(run.directory / "states" / "by_volume", state, run.model.stack_indices)
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


def find_missed(embedder: Embedder, method: str) -> dict[str, Any]:
    """Where particles lie among the sketch volumes, and those that none of these represents.

    Writes ``missed/``: of every particle the nearest sketch volume, the distance to it and to the
    volume of its own group; of the missed ones particle, distance and group; of each group its
    medoid and that one's volume, also as ``maps/missed/group_NN.mrc``. And ``axes/``: principal
    axes of all particles.
    """
    run, store = embedder.run, embedder.store
    embedded, assignment = _Embedded(store, method), store.read("sketch/assignment")
    nearest, distance = np.empty(embedded.n, np.int32), np.empty(embedded.n)
    to_group = np.full(embedded.n, np.nan, np.float32)
    total, products = np.zeros(embedded.r), np.zeros((embedded.r, embedded.r))
    for start, stop, block, squared in embedded.blocks():
        nearest[start:stop] = squared.argmin(1)
        distance[start:stop] = np.sqrt(squared.min(1))
        group = assignment[start:stop]
        own = np.flatnonzero(group >= 0)
        to_group[start + own] = np.sqrt(squared[own, group[own]])
        total += block.sum(0)
        products += block.T @ block
    threshold = maths.missed_threshold(distance)
    rows = np.flatnonzero(distance > threshold)
    rows = rows[np.argsort(-distance[rows], kind="stable")]
    groups, medoids, chosen = _groups(embedder, embedded, rows, threshold)
    axes = maths.axes_from_sums(embedded.n, total, products)
    store.delete("missed")
    store.delete("axes")
    for name, data, dimension in (
        ("nearest_volume", nearest, "particle"),
        ("distance", distance.astype(np.float32), "particle"),
        ("group_distance", to_group, "particle"),
        ("missed_particle", rows, "missed"),
        ("missed_group", groups, "missed"),
        ("medoid", medoids, "missed_group"),
        ("representative", chosen, "representative"),
    ):
        store.write(f"missed/{name}", data, (dimension,))
    store.write("axes/mean", axes.mean, ("component",))
    store.write("axes/vectors", axes.vectors, ("principal_axis", "component"))
    store.write("axes/variance", axes.variance, ("principal_axis",))
    store.write("axes/angle_degrees", axes.angle_degrees, ("principal_axis",))
    directory = run.directory / "maps" / "missed"
    shutil.rmtree(directory, ignore_errors=True)
    if len(medoids):
        volumes = embedder.workers.call(
            whole_volumes, embedder.projection, embedder.latents[medoids]
        )
        store.write("missed/volume", volumes, ("missed_group", "z", "y", "x"))
        for number, volume in enumerate(volumes):
            path = directory / f"group_{number:02d}.mrc"
            write_map(path, volume, store.source["pixel_size_angstroms"])
    return {
        "method": method,
        "missed": len(rows),
        "threshold": threshold if np.isfinite(threshold) else None,
        "median_distance": float(np.median(distance)),
        "groups": np.bincount(groups, minlength=len(medoids)).tolist(),
        "angle_degrees": axes.angle_degrees[:10].round(3).tolist(),
    }


def _groups(
    embedder: Embedder, embedded: _Embedded, rows: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups (m,) of missed particles (m,), largest first; medoids; who was decoded to tell."""
    if not len(rows):
        return np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64)
    coordinates = read_rows(embedded.array, rows).astype(np.float64)
    points = np.column_stack([coordinates, np.sqrt(np.maximum(embedded.residual[rows], 0))])
    spread = maths.farthest_first(points, REPRESENTATIVES)
    label = _linked(embedder, rows[spread], threshold)
    squared = np.stack([np.square(points - points[row]).sum(1) for row in spread], 1)
    groups = number_by_size(label[squared.argmin(1)], np.ones(len(points)))
    medoids = np.empty(groups.max() + 1, np.int64)
    for group in range(len(medoids)):
        members = np.flatnonzero(groups == group)
        center = points[members].mean(0)
        medoids[group] = rows[members[np.square(points[members] - center).sum(1).argmin()]]
    return groups, medoids, rows[spread]


def _linked(embedder: Embedder, particles: np.ndarray, threshold: float) -> np.ndarray:
    """Groups (m,) of particles by their decoded volumes: linked on average below a distance."""
    if len(particles) == 1:
        return np.zeros(1, np.int32)
    spans = batches(len(particles), embedder.batch_size)
    tasks = [embedder.latents[particles[start:stop]] for start, stop in spans]
    found = embedder.workers.gather(masked_batch, embedder.projection, tasks)
    voxels = np.concatenate(found).astype(np.float64)
    mean = voxels.mean(0)
    distances = Gram((voxels - mean) @ (voxels - mean).T, mean).squared_distances
    tree = link(distances, "average")
    return cut(tree, 1 + int((tree[:, 2] > threshold).sum()))
