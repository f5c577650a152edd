"""The stages that read volumes and write numbers and maps: mask and components."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from scapedist.analysis import gram
from scapedist.analysis import mask as masks
from scapedist.analysis.eigen import leading_eigenpairs
from scapedist.analysis.passes import MOST_PASSES, Passes, coordinates_of, principal_subspace
from scapedist.backend import one_numpy_thread
from scapedist.errors import InputError, RunError
from scapedist.landscape import estimate
from scapedist.landscape.distances import store_gram
from scapedist.landscape.record import Recorded
from scapedist.landscape.rows import READ_BYTES, StoredRows, forget_rows
from scapedist.landscape.whole import whole_subspace
from scapedist.output.maps import read_map, write_map
from scapedist.plan import ComponentsPlan, batches, kept_bytes, plan_components
from scapedist.settings import MaskSettings, PcaSettings, from_record
from scapedist.store import BUILT_ON, GROUP, read_rows
from scapedist.workers import Workers

Begin = Callable[[], None]
"""Called before a stage's first write: until then a bad option costs nothing."""
N_PAIRS = 200
"""Random pairs of sketch volumes that the distances within groups are compared with."""
TRAVERSED_COMPONENTS, TRAVERSAL_POINTS = 5, 10
FEW_PRODUCTS = 3e10
"""Of voxels, for a Gram matrix that this process has sooner than workers."""


# -- mask


def mask(run: Recorded, settings: MaskSettings, begin: Begin) -> dict[str, Any]:
    """Write ``mask``, ``mask_claims``, ``sketch/quality`` and ``maps/mask.mrc``."""
    store = run.store
    if "volumes/masked" in store:
        weights = _check_masked_store(run, settings)
        begin()
    else:
        percentiles = store.read("volumes/percentile")
        weights = make_mask(run, store.array("volumes/0"), percentiles, settings, begin)
    write_map(run.directory / "maps" / "mask.mrc", weights, store.source["pixel_size_angstroms"])
    _measure_quality(run)
    return {
        "voxels": int((weights > 0).sum()),
        "fraction": float((weights > 0).mean()),
        "threshold": store.array("mask").attrs.get("threshold"),
    }


def make_mask(
    run: Recorded,
    volumes: zarr.Array,
    percentiles: np.ndarray,
    settings: MaskSettings,
    begin: Begin,
) -> np.ndarray:
    """Make the mask of volumes by the settings, write it and return it, (d, d, d) float32."""
    store = run.store
    box_size = int(volumes.shape[-1])
    threshold = None
    if settings.mask is not None:
        path = Path(settings.mask)
        weights = masks.check_user_mask(read_map(path)[0], box_size, str(path))
        begin()
        store.delete("mask_claims")
    else:
        threshold = settings.threshold
        if threshold is None:
            threshold = masks.threshold_of(percentiles)
        claims = np.zeros((box_size,) * 3, np.int32)
        for block in _blocks(run, volumes, "masking"):
            claims += (block >= threshold).sum(0, dtype=np.int32)
        pixel_size = store.source["pixel_size_angstroms"] or 1.0
        weights = masks.mask_from_claims(
            claims,
            volumes.shape[0],
            pixel_size,
            settings.dilate,
            settings.cosine_edge,
            settings.min_fraction,
        )
        begin()
        fractions = (claims / volumes.shape[0]).astype(np.float32)
        store.write("mask_claims", fractions, ("z", "y", "x"))
    store.write("mask", weights, ("z", "y", "x"))
    store.array("mask").attrs["threshold"] = threshold
    return weights


def _check_masked_store(run: Recorded, settings: MaskSettings) -> np.ndarray:
    """The mask that a masked store was made with; no other can be had from it."""
    made_with = run.store.stages["generate"]["results"]["mask"]
    if from_record(MaskSettings, {"settings": made_with}) != settings:
        raise RunError(
            f"The volumes of {run.directory} are stored inside one mask only ({made_with}). "
            "Another mask needs another generation: give its options to `scapedist run` with "
            "--overwrite, or store whole volumes with --store volumes."
        )
    return run.store.read("mask")


def _measure_quality(run: Recorded) -> None:
    """Distances in the mask within sampled groups and between random sketch volumes."""
    store = run.store
    group = store.read("sketch/quality/group")
    if not len(group):
        store.delete("sketch/quality/distance")
        store.delete("sketch/quality/between")
        return
    rows = stored_rows(run, PcaSettings())
    members = rows.of("volumes/quality", np.arange(len(group)))
    centers = rows.of(rows.main, np.unique(group))
    within = members - centers[np.searchsorted(np.unique(group), group)]
    rng = np.random.default_rng(0)
    n = store.array(rows.main).shape[0]
    sample = np.sort(rng.choice(n, min(n, 64), replace=False))
    spread = rows.of(rows.main, sample)
    left, right = np.triu_indices(len(sample), 1)
    some = rng.choice(len(left), min(N_PAIRS, len(left)), replace=False)
    between = spread[left[some]] - spread[right[some]]
    store.write("sketch/quality/distance", _rms(within), ("sample",))
    store.write("sketch/quality/between", _rms(between), ("pair",))


def _rms(differences: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(differences.astype(np.float64)).mean(1))


# -- reading volumes


def _blocks(run: Recorded, volumes: zarr.Array, what: str) -> Iterator[np.ndarray]:
    """Blocks (m, d, d, d) of consecutive volumes."""
    size = max(1, READ_BYTES // int(np.prod(volumes.shape[1:]) * 4))
    for start, stop in batches(volumes.shape[0], size):
        yield read_rows(volumes, slice(start, stop))
        run.progress(what, stop, volumes.shape[0])


def stored_rows(
    run: Recorded,
    fitted: PcaSettings,
    members: np.ndarray | None = None,
    device: str = "cpu",
    kept: int = 0,
) -> StoredRows:
    """Masked voxels of a run's volumes, as components of some settings take them."""
    store = run.store
    main = "volumes/masked" if "volumes/masked" in store else "volumes/0"
    return StoredRows(
        group_path=_group_path(run),
        main=main,
        members=np.arange(store.array(main).shape[0]) if members is None else members,
        clip_negative=fitted.clip_negative,
        soft_mask=fitted.soft_mask,
        device=device,
        kept_bytes=kept,
    )


def sketch_voxels(run: Recorded, fitted: PcaSettings, rows: np.ndarray) -> np.ndarray:
    """Masked voxels (m, n_voxels) float32 of sketch volumes, as the components were fitted to."""
    reader = stored_rows(run, fitted)
    return reader.of(reader.main, rows)


# -- components


def included_volumes(run: Recorded, exclude_states: tuple[int, ...]) -> np.ndarray:
    """Which volumes are analysed, (n,) bool, when states are left out.

    States are those of the last analysis of all volumes, so that the same command means the
    same at every call.
    """
    n = run.store.array("sketch/particle").shape[0]
    if not exclude_states:
        return np.ones(n, bool)
    if "states/base_label" not in run.store:
        raise RunError(
            "States can be left out once there are some. This run has none of all its volumes. "
            "Give `scapedist pca RUN` and `scapedist states RUN` first."
        )
    labels = run.store.read("states/base_label")
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


def pca(
    run: Recorded,
    settings: PcaSettings,
    included: np.ndarray,
    workers: Workers,
    fingerprint: str,
    begin: Begin,
) -> dict[str, Any]:
    """Write ``components/``, and ``coordinates`` and ``residual`` of the sketch; traverse them."""
    store, device = run.store, workers.device
    members = np.flatnonzero(included)
    kept = kept_bytes(workers.memory_limit, device)
    rows = stored_rows(run, settings, members, device, kept)
    plan = plan_components(
        len(members),
        rows.n_voxels,
        settings.components,
        workers.memory,
        workers.memory_limit is not None,
        workers.n_workers,
        device,
        settings.solver,
    )
    block = plan.block_rows
    few = rows.n_voxels * len(members) ** 2 < FEW_PRODUCTS
    here = device == "cpu" and (few or len(members) <= block)  # a second's work
    compute: gram.Run = _on_one_thread if here else workers.run
    if plan.solver == "gram":
        fitted, norms = _by_gram(run, settings, rows, members, block, compute, workers, begin)
        how: dict[str, Any] = {}
    else:
        fitted, norms, how = _by_passes(run, settings, rows, members, plan, compute, begin)
    own_norms = norms  # as distances between sketch volumes take them
    if settings.all_particles:
        fitted, norms, how = _of_all_particles(
            run, settings, rows, included, fitted, block, workers, fingerprint
        )
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
    _traverse(run, fitted, members)
    return {
        "components": r,
        "volumes": len(members),
        "variance_explained": round(float(fitted.variance_ratio.sum()), 6),
        "block_rows": block,
        "solver": plan.solver,
        **how,
    }


def _of_all_particles(
    run: Recorded,
    settings: PcaSettings,
    rows: StoredRows,
    included: np.ndarray,
    sketch: gram.Components,
    block: int,
    workers: Workers,
    fingerprint: str,
) -> tuple[gram.Components, np.ndarray, dict[str, Any]]:
    """Components of all particles, the sketch's coordinates on them and its squared norms."""
    found, how = whole_subspace(run, settings, workers, included, sketch.vectors, fingerprint)
    r = min(settings.components, len(found.vectors))
    vectors = found.vectors[:r]
    n = len(rows.members)
    coordinates, norms = coordinates_of(rows, n, block, found.mean, vectors, _on_one_thread)
    ratio = found.variance[:r] / found.total_variance
    fitted = gram.Components(found.mean, vectors, found.variance[:r], ratio, coordinates)
    return fitted, norms, how


def _begin_components(run: Recorded, begin: Begin, scatter: float, n: int, mean: Any) -> None:
    """Withdraw what builds on other components, once it is sure that there will be some."""
    if not scatter > 1e-24 * n * (mean @ mean):
        raise RunError(
            "Components need volumes that differ. These are all the same inside the mask. "
            "Check the latents, or choose another mask."
        )
    begin()
    for name in (*BUILT_ON, "axes", "components"):
        run.store.delete(name)


def _by_gram(
    run: Recorded,
    settings: PcaSettings,
    rows: StoredRows,
    members: np.ndarray,
    block: int,
    compute: gram.Run,
    workers: Workers,
    begin: Begin,
) -> tuple[gram.Components, np.ndarray]:
    """Components and squared norms (n,) from the Gram matrix, which is stored."""
    product = gram.gram_matrix(rows, len(members), block, compute)
    norms = product.matrix.diagonal().copy()
    _begin_components(run, begin, float(norms.sum()), len(members), product.mean)
    store_gram(run.store, product.matrix)
    fitted = gram.fit_components(
        product, rows, block, settings.components, compute, _eigenpairs_by(run, workers)
    )
    return fitted, norms


def _by_passes(
    run: Recorded,
    settings: PcaSettings,
    rows: StoredRows,
    members: np.ndarray,
    plan: ComponentsPlan,
    compute: gram.Run,
    begin: Begin,
) -> tuple[gram.Components, np.ndarray, dict[str, Any]]:
    """The same from passes over the volumes; what the isometric coordinates hold is recorded."""
    n = len(members)

    def told(passes: int, _: Any) -> None:
        run.progress("finding components, passes", passes, MOST_PASSES)

    passes = Passes(rows, n, plan.block_rows, compute)
    found = principal_subspace(passes, settings.components, plan.columns, after_pass=told)
    scatter = found.total_variance * (n - 1)
    _begin_components(run, begin, scatter, n, found.mean)
    vectors = found.vectors[: max(plan.isometric, settings.components)]
    every, norms = coordinates_of(rows, n, plan.block_rows, found.mean, vectors, compute)
    isometric = every[:, : plan.isometric].astype(np.float32)
    run.store.write("components/isometric", isometric, ("included", "direction"))
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
    """Call a function with each task here, as any worker does; torch need not be there."""
    with one_numpy_thread():
        yield from gram.in_turn(work, shared, tasks)


def _group_path(run: Recorded) -> str:
    return str(run.store.directory.resolve() / GROUP)


def _eigenpairs_by(
    run: Recorded, workers: Workers
) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """What finds eigenvalues: this process, or a GPU, which reads the matrix that is stored."""
    if workers.device == "cpu":  # nothing needs to be sent
        return leading_eigenpairs
    stored = estimate.StoredGram(_group_path(run), workers.device)
    return lambda _, n: workers.call(estimate.eigenpairs, stored, n)


def _traverse(run: Recorded, fitted: gram.Components, members: np.ndarray) -> None:
    """Points along the leading components: synthetic maps, and the real volumes nearest to them."""
    store, pixel_size = run.store, run.store.source["pixel_size_angstroms"]
    weights = store.read("mask")
    shutil.rmtree(run.directory / "maps" / "components", ignore_errors=True)
    n_components = min(TRAVERSED_COMPONENTS, len(fitted.variance))
    positions = np.empty((n_components, TRAVERSAL_POINTS))
    nearest = np.empty((n_components, TRAVERSAL_POINTS), np.int64)
    for k in range(n_components):
        scores = fitted.coordinates[:, k]
        positions[k] = np.linspace(scores.min(), scores.max(), TRAVERSAL_POINTS)
        found = members[gram.nearest_along(fitted.coordinates, k, positions[k])]
        nearest[k] = found
        synthetic = fitted.mean + positions[k][:, None] * fitted.vectors[k]
        directory = run.directory / "maps" / "components" / f"component_{k + 1:02d}"
        for point, volume in enumerate(masks.to_volume(synthetic, weights), 1):
            write_map(directory / f"along_{point:02d}.mrc", volume, pixel_size)
            real = volume_of(run, int(found[point - 1]))
            write_map(directory / f"volume_{point:02d}.mrc", real, pixel_size)
    dimensions = ("traversed_component", "point")
    store.write("components/traversal_position", positions, dimensions)
    store.write("components/traversal_volume", nearest, dimensions)


def volume_of(run: Recorded, row: int) -> np.ndarray:
    """A sketch volume (d, d, d) float32; zero outside the mask where only that is stored."""
    if "volumes/0" in run.store:
        return read_rows(run.store.array("volumes/0"), slice(row, row + 1))[0].astype(np.float32)
    voxels = read_rows(run.store.array("volumes/masked"), slice(row, row + 1))
    return masks.to_volume(voxels, run.store.read("mask"))[0]
