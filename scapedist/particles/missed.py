"""Finding particles that no sketch volume represents, their groups, and all particles' axes."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

from scapedist.analysis import placing as maths
from scapedist.analysis.gram import Gram
from scapedist.analysis.linkage import cut, link
from scapedist.analysis.states import number_by_size
from scapedist.files.mrc import write_map
from scapedist.particles.exact import Embedder
from scapedist.particles.place import Everyone
from scapedist.plan import batches
from scapedist.stages.decoded_rows import masked_batch, whole_volumes
from scapedist.store import read_rows

REPRESENTATIVES = 24
"""Number of missed particles that are decoded to tell their groups apart."""


def find_missed(embedder: Embedder, everyone: Everyone) -> dict[str, Any]:
    """Find the particles that no sketch volume represents.

    Writes ``missed/``: for every particle the nearest sketch volume, the distance to it and to the
    volume of its own group; for each missed one the particle and its group; for each group its
    medoid and the medoid's volume, also as ``maps/missed/group_NN.mrc``. Writes ``axes/``: the
    principal axes of all particles.
    """
    store, distance = embedder.store, everyone.placed.distance
    threshold = maths.missed_threshold(distance)
    rows = np.flatnonzero(distance > threshold)
    rows = rows[np.argsort(-distance[rows], kind="stable")]
    groups, medoids, chosen = _groups(embedder, everyone.method, rows, threshold)
    axes = maths.axes_from_sums(len(distance), everyone.total, everyone.products)
    store.delete("missed")
    store.delete("axes")
    for name, data, dimension in (
        ("nearest_volume", everyone.placed.nearest, "particle"),
        ("distance", distance.astype(np.float32), "particle"),
        ("group_distance", everyone.group_distance, "particle"),
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
    directory = embedder.directory / "maps" / "missed"
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
        "method": everyone.method,
        "missed": len(rows),
        "threshold": threshold if np.isfinite(threshold) else None,
        "median_distance": float(np.median(distance)),
        "groups": np.bincount(groups, minlength=len(medoids)).tolist(),
        "angle_degrees": axes.angle_degrees[:10].round(3).tolist(),
    }


def _groups(
    embedder: Embedder, method: str, rows: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups (m,) of missed particles (m,), largest first; medoids; the particles decoded."""
    if not len(rows):
        return np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64)
    coordinates, residual = (
        read_rows(embedder.store.array(f"embedding/{method}/{name}"), rows).astype(np.float64)
        for name in ("coordinates", "residual")
    )
    points = np.column_stack([coordinates, np.sqrt(np.maximum(residual, 0))])
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
    """Groups (m,) of particles by average linkage of their decoded volumes, cut at a distance."""
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
