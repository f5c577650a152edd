"""The stage that fits the components of the masked volumes, and walks along them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from scapedist.analysis import gram
from scapedist.analysis.eigen import leading_eigenpairs
from scapedist.analysis.mask import Mask
from scapedist.analysis.passes import (
    MOST_PASSES,
    Passes,
    Subspace,
    coordinates_of,
    principal_subspace,
)
from scapedist.backend import one_numpy_thread
from scapedist.errors import InputError, RunError
from scapedist.files.mrc import write_map
from scapedist.plan import ComponentsPlan, batches, kept_bytes, plan_components
from scapedist.settings import BESIDE, PcaSettings
from scapedist.stages.distances import StoredGram, eigenpairs, store_gram
from scapedist.stages.stored_rows import StoredRows, forget_rows, stored_rows, volume_of
from scapedist.store import Begin, Progress, RunStore
from scapedist.workers import Workers

TRAVERSED_COMPONENTS, TRAVERSAL_POINTS = 5, 10
FEW_PRODUCTS = 3e10
"""Multiply-adds below which this process beats the workers."""
OfAll = Callable[[np.ndarray], tuple[Subspace, dict[str, Any]]]
"""Function from the sketch's components (r, n_voxels) to all particles' directions and a record."""


def included_volumes(store: RunStore, exclude_states: tuple[int, ...]) -> np.ndarray:
    """Whether each volume is analysed, (n,) bool, when states are left out.

    States are those of the last analysis of all volumes, so that the same command means the
    same at every call.
    """
    n = store.array("sketch/particle").shape[0]
    if not exclude_states:
        return np.ones(n, bool)
    if "states/base_label" not in store:
        raise RunError(
            "States can be left out once there are some. This run has none of all its volumes. "
            "Give `scapedist pca RUN` and `scapedist states RUN` first."
        )
    labels = store.read("states/base_label")
    unknown = sorted(set(exclude_states) - set(labels.tolist()))
    if unknown:
        raise InputError(
            f"There is no state {unknown[0]} to leave out: they run from 0 to {labels.max()}."
        )
    included = ~np.isin(labels, exclude_states)
    if included.sum() < 3:
        raise InputError(
            f"An analysis needs three volumes. Without the states {exclude_states} "
            f"{int(included.sum())} are left. Leave out fewer."
        )
    return included


def find_components(
    store: RunStore,
    settings: PcaSettings,
    included: np.ndarray,
    workers: Workers,
    begin: Begin,
    progress: Progress,
    of_all: OfAll | None = None,
) -> dict[str, Any]:
    """Write ``components/``, and ``coordinates`` and ``residual`` of the sketch; traverse them.

    Parameters
    ----------
    store
        Store of a run with a mask.
    settings
        Settings of the components.
    included : (n,) bool
        Sketch volumes that the components are fitted to.
    workers
        Workers to compute on.
    begin
        Called before the first write.
    progress
        Called with how far the stage is.
    of_all
        Function that finds the directions of all particles' volumes from those of the sketch;
        None for components of the sketch.

    Returns
    -------
    dict
        Record of the components.
    """
    device = workers.device
    members = np.flatnonzero(included)
    budget = workers.budget_of_each()
    rows = stored_rows(store, settings, members, device, kept_bytes(budget))
    plan = plan_components(
        len(members),
        rows.n_voxels,
        settings.components,
        budget,
        workers.n_workers,
        settings.solver,
    )
    block = plan.block_rows
    few = rows.n_voxels * len(members) ** 2 < FEW_PRODUCTS
    here = device == "cpu" and (few or len(members) <= block)  # a second's work
    compute: gram.Run = _on_one_thread if here else workers.run
    if plan.solver == "gram":
        fitted, norms = _by_gram(store, settings, rows, block, compute, workers, begin)
        how: dict[str, Any] = {}
    else:
        fitted, norms, how = _by_passes(store, settings, rows, plan, compute, begin, progress)
    own_norms = norms  # as distances between sketch volumes take them
    if of_all is not None:
        found, how = of_all(fitted.vectors)
        fitted, norms = _on_the_sketch(found, settings.components, rows, block, compute)
    n, r = len(included), len(fitted.variance)
    coordinates, all_norms = np.empty((n, r)), np.empty(n)
    coordinates[members], all_norms[members] = fitted.coordinates, norms
    left_out = np.flatnonzero(~included)
    for start, stop in batches(len(left_out), block):
        some = left_out[start:stop]
        voxels = rows.of(rows.main, some) - fitted.mean
        coordinates[some], all_norms[some] = voxels @ fitted.vectors.T, np.square(voxels).sum(1)
    residual = np.maximum(all_norms - np.square(coordinates).sum(1), 0)
    store.write("components/mean", fitted.mean, ("voxel",))
    store.write("components/vectors", fitted.vectors.astype(np.float32), ("component", "voxel"))
    store.write("components/variance", fitted.variance, ("component",))
    store.write("components/variance_ratio", fitted.variance_ratio, ("component",))
    store.write("components/included", included, ("volume",))
    store.write("components/squared_norm", own_norms, ("included",))
    store.write("sketch/coordinates", coordinates, ("volume", "component"))
    store.write("sketch/residual", residual, ("volume",))
    forget_rows()
    if not here:
        workers.everywhere(forget_rows)
    _traverse(store, fitted, members)
    return {
        "components": r,
        "volumes": len(members),
        "variance_explained": round(float(fitted.variance_ratio.sum()), 6),
        "block_rows": block,
        "solver": plan.solver,
        **how,
    }


def _on_the_sketch(
    found: Subspace, n_components: int, rows: StoredRows, block: int, compute: gram.Run
) -> tuple[gram.Components, np.ndarray]:
    """Components of all particles with the sketch's coordinates on them, and the squared norms."""
    r = min(n_components, len(found.vectors))
    vectors, n = found.vectors[:r], len(rows.members)
    coordinates, norms = coordinates_of(rows, n, block, found.mean, vectors, compute)
    ratio = found.variance[:r] / found.total_variance
    return gram.Components(found.mean, vectors, found.variance[:r], ratio, coordinates), norms


def _begin(store: RunStore, begin: Begin, scatter: float, n: int, mean: Any) -> None:
    """Begin the stage: withdraw what builds on other components, once new ones are certain."""
    if not scatter > 1e-24 * n * (mean @ mean):
        raise RunError(
            "Components need volumes that differ. These are all the same inside the mask. "
            "Check the latents, or choose another mask."
        )
    begin()
    for name in [name for stage in BESIDE.values() for name in stage.arrays] + ["components"]:
        store.delete(name)


def _by_gram(
    store: RunStore,
    settings: PcaSettings,
    rows: StoredRows,
    block: int,
    compute: gram.Run,
    workers: Workers,
    begin: Begin,
) -> tuple[gram.Components, np.ndarray]:
    """Components and squared norms (n,) from the Gram matrix, which is stored."""
    n = len(rows.members)
    product = gram.gram_matrix(rows, n, block, compute)
    norms = product.matrix.diagonal().copy()
    _begin(store, begin, float(norms.sum()), n, product.mean)
    store_gram(store, product.matrix)
    fitted = gram.fit_components(
        product, rows, block, settings.components, compute, _eigenpairs_by(store, workers)
    )
    return fitted, norms


def _by_passes(
    store: RunStore,
    settings: PcaSettings,
    rows: StoredRows,
    plan: ComponentsPlan,
    compute: gram.Run,
    begin: Begin,
    progress: Progress,
) -> tuple[gram.Components, np.ndarray, dict[str, Any]]:
    """Components, squared norms (n,) and how they were found, from passes over the volumes."""
    n = len(rows.members)

    def told(passes: int, _: Any) -> None:
        progress("finding components, passes", passes, MOST_PASSES)

    passes = Passes(rows, n, plan.block_rows, compute)
    found = principal_subspace(passes, settings.components, plan.columns, after_pass=told)
    scatter = found.total_variance * (n - 1)
    _begin(store, begin, scatter, n, found.mean)
    vectors = found.vectors[: max(plan.isometric, settings.components)]
    every, norms = coordinates_of(rows, n, plan.block_rows, found.mean, vectors, compute)
    isometric = every[:, : plan.isometric].astype(np.float32)
    store.write("components/isometric", isometric, ("included", "direction"))
    r = min(settings.components, len(vectors))
    fitted = gram.Components(
        mean=found.mean,
        vectors=vectors[:r],
        variance=found.variance[:r],
        variance_ratio=found.variance[:r] / found.total_variance,
        coordinates=every[:, :r],
    )
    how = {
        "passes": found.passes,
        "settled": found.settled,
        "largest_residual": float(found.residuals[:r].max()),
        "isometric_directions": isometric.shape[1],
        "isometric_variance": float(np.square(isometric.astype(np.float64)).sum() / norms.sum()),
    }
    return fitted, norms, how


def _on_one_thread(work: Any, shared: Any, tasks: Any) -> Iterator[tuple[int, Any]]:
    """Call a function with each task in this process on one thread, without loading torch."""
    with one_numpy_thread():
        yield from gram.in_turn(work, shared, tasks)


def _eigenpairs_by(
    store: RunStore, workers: Workers
) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """Function that finds eigenpairs, in this process or by a GPU worker from the stored matrix."""
    if workers.device == "cpu":  # nothing needs to be sent
        return leading_eigenpairs
    stored = StoredGram(store.reader, workers.device)

    def find(matrix: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        workers.everywhere(forget_rows)  # the matrix takes their place
        return workers.call(eigenpairs, stored, n) or leading_eigenpairs(matrix, n)

    return find


def _traverse(store: RunStore, fitted: gram.Components, members: np.ndarray) -> None:
    """Write points along the leading components: synthetic maps and the volumes nearest."""
    pixel_size, mask = store.source["pixel_size_angstroms"], Mask.of(store.read("mask"))
    shutil.rmtree(store.directory / "maps" / "components", ignore_errors=True)
    n_components = min(TRAVERSED_COMPONENTS, len(fitted.variance))
    positions = np.empty((n_components, TRAVERSAL_POINTS))
    nearest = np.empty((n_components, TRAVERSAL_POINTS), np.int64)
    for k in range(n_components):
        scores = fitted.coordinates[:, k]
        positions[k] = np.linspace(scores.min(), scores.max(), TRAVERSAL_POINTS)
        found = members[gram.nearest_along(fitted.coordinates, k, positions[k])]
        nearest[k] = found
        synthetic = fitted.mean + positions[k][:, None] * fitted.vectors[k]
        directory = store.directory / "maps" / "components" / f"component_{k + 1:02d}"
        for point, volume in enumerate(mask.volumes_of(synthetic), 1):
            write_map(directory / f"along_{point:02d}.mrc", volume, pixel_size)
            real = volume_of(store, int(found[point - 1]))
            write_map(directory / f"volume_{point:02d}.mrc", real, pixel_size)
    dimensions = ("traversed_component", "point")
    store.write("components/traversal_position", positions, dimensions)
    store.write("components/traversal_volume", nearest, dimensions)
