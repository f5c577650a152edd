"""All particles together: their principal axes, groups and densities, from their coordinates."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from scapedist.analysis.gram import Run, in_turn
from scapedist.analysis.population import Population
from scapedist.landscape.embedder import Embedder
from scapedist.landscape.projection import whole_volumes
from scapedist.output.maps import write_map
from scapedist.plan import batches
from scapedist.settings import PopulationSettings
from scapedist.store import GROUP, read_rows

BLOCK_ROWS = 65_536
"""Particles of a block."""
FEW_NUMBERS = 5e7
"""Coordinates in all that this process is through with sooner than workers."""


@dataclass(frozen=True)
class StoredCoordinates:
    """Coordinates of an embedding, read where it is called.

    Attributes
    ----------
    group_path
        The run's Zarr group.
    method
        The embedding.
    """

    group_path: str
    method: str

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Coordinates (stop - start, r) float32."""
        name = f"{self.group_path}/embedding/{self.method}/coordinates"
        return read_rows(zarr.open_array(name, mode="r"), slice(start, stop))


def population(
    embedder: Embedder, method: str, settings: PopulationSettings, begin: Callable[[], None]
) -> dict[str, Any]:
    """Write ``population/`` and maps of its groups' particles."""
    run, store, workers = embedder.run, embedder.store, embedder.workers
    n, r = store.array(f"embedding/{method}/coordinates").shape
    read = StoredCoordinates(str(store.directory.resolve() / GROUP), method)
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
    directory = run.directory / "maps" / "population"
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
