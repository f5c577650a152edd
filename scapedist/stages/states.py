"""The stage that groups the sketch's volumes into states, and writes their maps and particles."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np

from scapedist.analysis import linkage
from scapedist.analysis import states as maths
from scapedist.analysis.mask import Mask
from scapedist.errors import InputError
from scapedist.files.mrc import write_map
from scapedist.files.particle_lists import write_state_particles
from scapedist.plan import PANEL_BYTES, plan_linkage
from scapedist.settings import StatesSettings
from scapedist.stages import distances
from scapedist.stages.distances import Distances, StoredGram, StoredPoints
from scapedist.stages.stored_rows import volume_blocks, volume_of
from scapedist.store import Begin, Progress, RunStore
from scapedist.workers import Workers
from scapedist.workers.one import one_of

LEAST_DENSE = 5
"""Smallest dense group: 5 volumes or 1 % of all, whichever is more."""
PRODUCT_PANELS = 16
"""Number of panels of distances that a search for nearest groups holds."""


def find_states(
    store: RunStore,
    settings: StatesSettings,
    stack_indices: np.ndarray | None,
    workers: Workers,
    begin: Begin,
    progress: Progress,
) -> dict[str, Any]:
    """Write ``states/``, maps and particle lists of each state.

    Parameters
    ----------
    store
        Store of a run with components.
    settings
        Settings of the states.
    stack_indices : (n_particles,) int64 or None
        Row of each particle in the original stack, where it differs from that in the latents.
    workers
        Workers; where they have GPUs, one of them finds the groups.
    begin
        Called before the first write.
    progress
        Called with for how many states maps are written.

    Returns
    -------
    dict
        Record of the states.
    """
    included = store.read("components/included")
    members = np.flatnonzero(included)
    occupancy = store.read("sketch/occupancy")
    if settings.states > len(members):
        raise InputError(
            f"{settings.states} states were requested, but there are only {len(members)} volumes. "
            f"Use --states {len(members)} or less."
        )
    found = _grouped(store, settings, workers)
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
    _write_state_maps(store, every, occupancy, medoid, progress)
    assignment = store.read("sketch/assignment")
    of_particles = np.where(assignment >= 0, every[assignment], -1)
    write_state_particles(store.directory / "states", of_particles, stack_indices)
    return {"states": n_states, "n_particles": n_particles.tolist(), "joined": found.how}


@dataclass(frozen=True)
class _Grouped:
    """Groups of the volumes that are analysed.

    Attributes
    ----------
    labels : (n,) int32
        Group of each volume, -1 for none.
    how
        What the groups were made from, for the record.
    tree : (m - 1, 4) float64 or None
        Merge tree of the volumes, or of micro-states.
    micro : (n,) int32 or None
        The micro-state of each volume, where linkage has two levels.
    """

    labels: np.ndarray
    how: str
    tree: np.ndarray | None = None
    micro: np.ndarray | None = None


def _grouped(store: RunStore, settings: StatesSettings, workers: Workers) -> _Grouped:
    """Group the volumes as the settings say, in the memory that there is."""
    near, points = one_of(workers), StoredPoints(store.reader, workers.device)
    n = store.array("components/squared_norm").shape[0]
    plan = plan_linkage(n, settings.linkage, workers.budget_of_each())
    if settings.linkage == "hdbscan":
        labels = near.call(distances.hdbscan, points, max(LEAST_DENSE, n // 100))
        if labels.max() < 0:
            raise InputError(
                "HDBSCAN found no dense groups among these volumes. Use --linkage average."
            )
        return _Grouped(labels, "isometric coordinates")
    if settings.linkage == "kmeans":
        labels = near.call(distances.kmeans, points, settings.states, settings.seed)
        return _Grouped(labels, "isometric coordinates")
    if plan.kind == "distances":
        pairs = Distances(store)
        if workers.device != "cpu" and pairs.exact:
            stored = StoredGram(store.reader, workers.device)
            tree = near.call(distances.link, stored, settings.linkage)
        else:
            tree = distances.link(pairs.condensed(), settings.linkage)
        how = "distances of all pairs"
        if not pairs.exact:
            how += " in isometric coordinates"
        return _Grouped(linkage.cut(tree, settings.states), how, tree)
    if plan.kind == "vectors":
        tree = near.call(distances.ward, points, PRODUCT_PANELS * PANEL_BYTES)
        return _Grouped(linkage.cut(tree, settings.states), "isometric coordinates", tree)
    if settings.states > plan.micro_states:
        raise InputError(
            f"Linkage of {n} volumes within this memory joins {plan.micro_states} micro-states. "
            f"{settings.states} states were asked for. Use --states {plan.micro_states} or less, "
            "or a larger --memory-limit."
        )
    both = near.call(
        distances.two_level, points, settings.linkage, plan.micro_states, settings.seed
    )
    how = f"{len(both.tree) + 1} micro-states (k-means on isometric coordinates), then linkage"
    return _Grouped(both.cut(settings.states), how, both.tree, both.micro)


def _write_state_maps(
    store: RunStore,
    labels: np.ndarray,
    occupancy: np.ndarray,
    medoid: np.ndarray,
    progress: Progress,
) -> None:
    """Write the occupancy-weighted mean and deviation of each state, as arrays and as maps."""
    box_size, pixel_size = store.source["box_size"], store.source["pixel_size_angstroms"]
    n_states, directory = len(medoid), store.directory / "maps" / "states"
    shutil.rmtree(directory, ignore_errors=True)
    shape = (n_states, *(box_size,) * 3)
    arrays = {
        kind: store.create(
            f"states/{kind}", shape, "float32", ("state", "z", "y", "x"), (1, *shape[1:]), True
        )
        for kind in ("mean", "std")
    }
    mask = Mask.of(store.read("mask"))
    for state in range(n_states):
        rows = np.flatnonzero(labels == state)
        moments = maths.weighted_moments(
            volume_blocks(store, rows, mask), occupancy[rows].astype(np.float64)
        )
        for kind, moment in zip(("mean", "std"), moments, strict=True):
            arrays[kind][state] = moment
            write_map(directory / f"state_{state:03d}_{kind}.mrc", moment, pixel_size)
        write_map(
            directory / f"state_{state:03d}_medoid.mrc", volume_of(store, medoid[state]), pixel_size
        )
        progress("states", state + 1, n_states)
