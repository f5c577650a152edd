"""Finding principal axes, groups and densities of all particles from their coordinates."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np

from scapedist.analysis.gram import Run, in_turn
from scapedist.analysis.population import Population
from scapedist.files.mrc import write_map
from scapedist.particles.exact import Embedder
from scapedist.plan import batches
from scapedist.settings import PopulationSettings
from scapedist.stages.decoded_rows import whole_volumes
from scapedist.store import Begin, Reader

BLOCK_ROWS = 65_536
"""Number of particles per block."""
FEW_NUMBERS = 5e7
"""Below this many coordinates, work in this process."""


@dataclass(frozen=True)
class StoredCoordinates:
    """Reads the coordinates of an embedding in the process that calls it.

    Attributes
    ----------
    reader
        Reader of the run.
    method
        Name of the embedding.
    """

    reader: Reader
    method: str

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Coordinates (stop - start, r) float32 of particles start..stop."""
        return self.reader.read(f"embedding/{self.method}/coordinates", slice(start, stop))


def find_population(
    embedder: Embedder, method: str, settings: PopulationSettings, begin: Begin
) -> dict[str, Any]:
    """Write ``population/``, and maps of the particles nearest to its groups' centers."""
    store, workers = embedder.store, embedder.workers
    n, r = store.array(f"embedding/{method}/coordinates").shape
    read = StoredCoordinates(store.reader, method)
    compute: Run = in_turn if n * r < FEW_NUMBERS else workers.run
    every = Population(read, batches(n, BLOCK_ROWS), compute)
    axes, limits = every.axes()
    groups = every.groups(settings.groups, settings.seed)
    densities = every.densities(axes, limits)
    begin()
    store.delete("population")
    for name, data, dimensions in (
        ("axes/mean", axes.mean, ("component",)),
        ("axes/vectors", axes.vectors, ("principal_axis", "component")),
        ("axes/variance", axes.variance, ("principal_axis",)),
        ("group", groups.label, ("particle",)),
        ("center", groups.center, ("population_group", "component")),
        ("medoid", groups.medoid, ("population_group",)),
        ("density", densities.density, ("pair", "first", "second")),
        ("density_axes", densities.pair, ("pair", "which")),
        ("density_edges", densities.edges, ("leading_axis", "edge")),
    ):
        store.write(f"population/{name}", data, dimensions)
    directory = embedder.directory / "maps" / "population"
    shutil.rmtree(directory, ignore_errors=True)
    spans = batches(len(groups.medoid), embedder.batch_size)
    tasks = [embedder.latents[groups.medoid[start:stop]] for start, stop in spans]
    for number, volumes in workers.run(whole_volumes, embedder.projection, tasks):
        for group, volume in enumerate(volumes, spans[number][0]):
            path = directory / f"group_{group:02d}.mrc"
            write_map(path, volume, store.source["pixel_size_angstroms"])
    return {
        "method": method,
        "particles": n,
        "n_particles": np.bincount(groups.label, minlength=settings.groups).tolist(),
        "inertia": groups.inertia,
        "passes": groups.passes,
        "variance_on_leading_axes": (axes.variance[:3] / axes.variance.sum()).tolist(),
    }
