"""The stage that groups the sketch's volumes into states, and writes their maps and particles."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from scapedist.analysis import linkage
from scapedist.analysis import mask as masks
from scapedist.analysis import states as maths
from scapedist.backend import nearest_by_products
from scapedist.errors import InputError
from scapedist.landscape import estimate
from scapedist.landscape.analyse import volume_of
from scapedist.landscape.distances import Distances
from scapedist.landscape.record import Recorded
from scapedist.landscape.rows import READ_BYTES
from scapedist.output.maps import write_map
from scapedist.output.selections import write_state_particles
from scapedist.plan import PANEL_BYTES, batches, plan_linkage
from scapedist.settings import StatesSettings
from scapedist.store import GROUP, read_rows
from scapedist.workers import Workers

LEAST_DENSE = 5
"""Volumes of a dense group, at least; of many volumes a hundredth."""
PRODUCT_PANELS = 16
"""Panels of distances that a search for nearest groups holds."""
nearest_in_panels = partial(nearest_by_products, product_bytes=PRODUCT_PANELS * PANEL_BYTES // 2)


def states(
    run: Recorded, settings: StatesSettings, workers: Workers, begin: Callable[[], None]
) -> dict[str, Any]:
    """Write ``states/``, maps and particle lists of each state."""
    store = run.store
    included = store.read("components/included")
    members = np.flatnonzero(included)
    occupancy = store.read("sketch/occupancy")
    if settings.states > len(members):
        raise InputError(
            f"There are at most as many states as volumes, {len(members)}. {settings.states} "
            f"were asked for. Use --states {len(members)} or less."
        )
    found = _grouped(run, settings, workers)
    begin()
    for name in ("linkage", "micro_state"):
        store.delete(f"states/{name}")
    if found.tree is not None:
        store.write("states/linkage", found.tree, ("merge", "column"))
    if found.micro is not None:
        store.write("states/micro_state", found.micro, ("included",))
    chosen = np.flatnonzero(found.labels >= 0)
    members = members[chosen]
    labels = maths.number_by_size(found.labels[chosen], occupancy[members])
    blocks = Distances(store).blocks(None if len(chosen) == len(found.labels) else chosen)
    medoid = members[maths.medoids(labels, occupancy[members], blocks)]
    every = np.full(len(included), -1, np.int32)
    every[members] = labels
    n_states = int(labels.max()) + 1
    store.write("states/label", every, ("volume",))
    n_volumes = np.bincount(labels, minlength=n_states)
    n_particles = np.bincount(labels, occupancy[members], n_states).astype(np.int64)
    store.write("states/n_volumes", n_volumes, ("state",))
    store.write("states/n_particles", n_particles, ("state",))
    store.write("states/medoid", medoid, ("state",))
    if included.all():
        store.write("states/base_label", every, ("volume",))
    _write_state_maps(run, every, occupancy, medoid)
    assignment = store.read("sketch/assignment")
    of_particles = np.where(assignment >= 0, every[assignment], -1)
    write_state_particles(run.directory / "states", of_particles, run.model.stack_indices)
    return {"states": n_states, "n_particles": n_particles.tolist(), "joined": found.how}


@dataclass(frozen=True)
class _Grouped:
    """Groups of the volumes that are analysed.

    Attributes
    ----------
    labels : (n,) int32
        -1 for none.
    how
        What they were made from, for the record.
    tree : (m - 1, 4) float64 or None
        Of the volumes, or of micro-states.
    micro : (n,) int32 or None
        The micro-state of each volume, where linkage has two levels.
    """

    labels: np.ndarray
    how: str
    tree: np.ndarray | None = None
    micro: np.ndarray | None = None


def _grouped(run: Recorded, settings: StatesSettings, workers: Workers) -> _Grouped:
    """Group the volumes as the settings say, in the memory that there is."""
    store, near = run.store, estimate.one_of(workers)
    group_path = str(store.directory.resolve() / GROUP)
    points = estimate.StoredPoints(group_path, workers.device)
    n = store.array("components/squared_norm").shape[0]
    plan = plan_linkage(n, settings.linkage, workers.memory)
    if settings.linkage == "hdbscan":
        labels = near.call(estimate.hdbscan, points, max(LEAST_DENSE, n // 100))
        if labels.max() < 0:
            raise InputError(
                "HDBSCAN found no dense groups among these volumes. Use --linkage average."
            )
        return _Grouped(labels, "isometric coordinates")
    if settings.linkage == "kmeans":
        labels = near.call(estimate.kmeans, points, settings.states, settings.seed)
        return _Grouped(labels, "isometric coordinates")
    if plan.kind == "distances":
        distances = Distances(store)
        if workers.device != "cpu" and distances.exact:
            stored = estimate.StoredGram(group_path, workers.device)
            tree = near.call(estimate.link, stored, settings.linkage)
        else:
            tree = estimate.link(distances.condensed(), settings.linkage)
        how = "distances of all pairs"
        if not distances.exact:
            how += " in isometric coordinates"
        return _Grouped(linkage.cut(tree, settings.states), how, tree)
    if plan.kind == "vectors":
        tree = near.call(estimate.ward, points, PRODUCT_PANELS * PANEL_BYTES)
        return _Grouped(linkage.cut(tree, settings.states), "isometric coordinates", tree)
    if settings.states > plan.micro_states:
        raise InputError(
            f"Linkage of {n} volumes within this memory joins {plan.micro_states} micro-states. "
            f"{settings.states} states were asked for. Use --states {plan.micro_states} or less, "
            "or a larger --memory-limit."
        )
    both = linkage.two_level(
        points.read(), settings.linkage, plan.micro_states, nearest_in_panels, settings.seed
    )
    how = f"{len(both.tree) + 1} micro-states (k-means on isometric coordinates), then linkage"
    return _Grouped(both.cut(settings.states), how, both.tree, both.micro)


def _write_state_maps(
    run: Recorded, labels: np.ndarray, occupancy: np.ndarray, medoid: np.ndarray
) -> None:
    """Occupancy-weighted mean and standard deviation of each state, as arrays and as maps."""
    store, pixel_size = run.store, run.store.source["pixel_size_angstroms"]
    box_size, n_states = store.source["box_size"], len(medoid)
    directory = run.directory / "maps" / "states"
    shutil.rmtree(directory, ignore_errors=True)
    shape = (n_states, *(box_size,) * 3)
    arrays = {
        kind: store.create(
            f"states/{kind}", shape, "float32", ("state", "z", "y", "x"), (1, *shape[1:]), True
        )
        for kind in ("mean", "std")
    }
    weights = store.read("mask")
    for state in range(n_states):
        rows = np.flatnonzero(labels == state)
        moments = maths.weighted_moments(
            _volume_blocks(run, rows, weights), occupancy[rows].astype(np.float64)
        )
        for kind, moment in zip(("mean", "std"), moments, strict=True):
            arrays[kind][state] = moment
            write_map(directory / f"state_{state:03d}_{kind}.mrc", moment, pixel_size)
        write_map(
            directory / f"state_{state:03d}_medoid.mrc", volume_of(run, medoid[state]), pixel_size
        )
        run.progress("states", state + 1, n_states)


def _volume_blocks(run: Recorded, rows: np.ndarray, weights: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks (m, d, d, d) of the volumes of some rows."""
    masked = "volumes/masked" in run.store
    array = run.store.array("volumes/masked" if masked else "volumes/0")
    size = max(1, READ_BYTES // int(np.prod(weights.shape) * 4))
    for start, stop in batches(len(rows), size):
        block = read_rows(array, rows[start:stop])
        yield masks.to_volume(block, weights) if masked else block
