"""Leading principal components of the masked volumes in a run's Zarr store, by several methods.

Every method reads the same volumes and finds components, variances and coordinates, in a process
of its own that has done so with a few volumes before. Memory is the peak above what the process
held then; with several processes the sum of their peaks, whenever they were. Errors are against
the singular value decomposition of the centered volumes in float64: the largest principal angle
between the leading components, and the largest relative error of a variance.
"""

from __future__ import annotations

import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import harness
import numpy as np
import zarr
from harness import EPOCH, Panel, Row, Table

from scapedist import Run
from scapedist.analysis.gram import fit_components, gram_matrix, in_turn
from scapedist.analysis.passes import Passes, coordinates_of, principal_subspace
from scapedist.backend import one_numpy_thread
from scapedist.landscape import open_workers
from scapedist.plan import batches, kept_bytes, plan_components
from scapedist.stages.stored_rows import StoredRows
from scapedist.store import GROUP, Reader, RunStore, read_rows
from scapedist.workers import Workers, available_cores

TITLE = "Components"
TABLES = (
    Table("targets", "case | target | processes | found | at most | met"),
    Table(
        "rows",
        "case | rows | method | processes | seconds: time, s | above idle MiB: above idle, MiB "
        "| angle | error: failed with",
    ),
)
PLOTS = tuple(
    Panel("rows", "method", "{case}, {processes} processes", key, label)
    for key, label in (("seconds", "time, s"), ("above idle MiB", "memory above idle, MiB"))
)
COMPONENTS, BATCH_ROWS = 20, 200
"""Leading components; rows of a batch, or of a Dask chunk."""
FEW_ROWS = 60
"""Volumes of the store that a process does first."""
VOLUMES = "volumes/masked"
Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Components (r, p), variances (r,), coordinates (n, r)."""


Case = namedtuple("Case", "rows box voxels rounds", defaults=(0, 0, 3))
"""Volumes in a store: of the bundled model in a box, or of so many voxels, synthetic."""
SIZES = {
    "tiny": (Case(FEW_ROWS, voxels=500, rounds=1),),
    "small": (Case(500, box=48),),
    "full": (Case(2000, box=48), Case(1000, voxels=160_000, rounds=2)),
}


# -- methods: functions of workers and a Zarr group


def by_gram(workers: Workers, group: Path) -> Found:
    """From the Gram matrix, as scapedist's stage does."""
    rows, n, plan, compute = _stored(group, workers, "gram")
    product = gram_matrix(rows, n, plan.block_rows, compute)
    found = fit_components(product, rows, plan.block_rows, COMPONENTS, compute)
    return found.vectors, found.variance, found.coordinates


def by_passes(workers: Workers, group: Path) -> Found:
    """From passes over the volumes, as scapedist's stage does."""
    rows, n, plan, compute = _stored(group, workers, "iteration")
    found = principal_subspace(Passes(rows, n, plan.block_rows, compute), COMPONENTS, plan.columns)
    vectors = found.vectors[:COMPONENTS]
    coordinates, _ = coordinates_of(rows, n, plan.block_rows, found.mean, vectors, compute)
    return vectors, found.variance[:COMPONENTS], coordinates


def _stored(group: Path, workers: Workers, solver: str) -> tuple[Any, int, Any, Any]:
    """Rows, their number, the plan, and what computes."""
    n = _array(group).shape[0]
    kept = kept_bytes(workers.budget)
    rows = StoredRows(Reader(str(group)), VOLUMES, np.arange(n), kept_bytes=kept)
    about = (n, rows.n_voxels, COMPONENTS, workers.budget, workers.n_workers)
    compute = _on_one_thread if workers.n_workers == 1 else workers.run
    return rows, n, plan_components(*about, solver=solver), compute


def _on_one_thread(work: Any, shared: Any, tasks: Any) -> Iterator[tuple[int, Any]]:
    with one_numpy_thread():
        yield from in_turn(work, shared, tasks)


def by_sklearn(solver: str, dtype: str, workers: Workers, group: Path) -> Found:
    """scikit-learn's PCA of the whole array."""
    from sklearn.decomposition import PCA

    voxels = read_rows(_array(group)).astype(dtype, copy=False)
    pca = PCA(COMPONENTS, svd_solver=solver, random_state=0)
    coordinates = pca.fit_transform(voxels)
    return pca.components_, pca.explained_variance_, coordinates


def by_increments(workers: Workers, group: Path) -> Found:
    """scikit-learn's IncrementalPCA, a batch of rows at a time."""
    from sklearn.decomposition import IncrementalPCA

    array, pca = _array(group), IncrementalPCA(COMPONENTS)
    spans = [slice(*span) for span in batches(array.shape[0], BATCH_ROWS)]
    for span in spans:
        pca.partial_fit(read_rows(array, span))
    coordinates = np.concatenate([pca.transform(read_rows(array, span)) for span in spans])
    return pca.components_, pca.explained_variance_, coordinates


def by_compression(n_power_iter: int, workers: Workers, group: Path) -> Found:
    """Dask's randomized decomposition of chunks of rows."""
    import dask
    import dask.array

    rows = _chunked(group)
    of = dask.array.linalg.svd_compressed(
        rows - rows.mean(0), COMPONENTS, iterator="QR", n_power_iter=n_power_iter, seed=0
    )
    left, lengths, right = dask.compute(*of)
    return right, lengths**2 / (len(rows) - 1), left * lengths


def by_dask_ml(name: str, workers: Workers, group: Path) -> Found:
    """An estimator of dask-ml with its default settings."""
    pca = getattr(import_module("dask_ml.decomposition"), name)(COMPONENTS)
    rows = _chunked(group)
    coordinates = np.asarray(pca.fit(rows).transform(rows))
    return pca.components_, pca.explained_variance_, coordinates


def _chunked(group: Path) -> Any:
    import dask.array

    return dask.array.from_zarr(str(group / VOLUMES)).rechunk((BATCH_ROWS, -1))


def _array(group: Path) -> Any:
    return zarr.open_array(group / VOLUMES, mode="r")


GRAM, PASSES = "scapedist, Gram matrix", "scapedist, passes"
FULL, RANDOMIZED = "scikit-learn, full", "scikit-learn, randomized"
OURS = (GRAM, PASSES)
METHODS: dict[str, Callable[[Workers, Path], Found]] = {
    GRAM: by_gram,
    PASSES: by_passes,
    FULL: partial(by_sklearn, "full", "float32"),
    f"{FULL}, float64": partial(by_sklearn, "full", "float64"),
    RANDOMIZED: partial(by_sklearn, "randomized", "float32"),
    f"{RANDOMIZED}, float64": partial(by_sklearn, "randomized", "float64"),
    "scikit-learn, incremental": by_increments,
    "Dask, svd_compressed": partial(by_compression, 0),
    "Dask, svd_compressed, 4 iterations": partial(by_compression, 4),
    "dask-ml, PCA": partial(by_dask_ml, "PCA"),
    "dask-ml, IncrementalPCA": partial(by_dask_ml, "IncrementalPCA"),
}
OPTIONS: dict[str, Row] = {
    "--only": {"choices": tuple(METHODS), "nargs": "+", "help": "these methods"},
    "--workers": {"type": int, "help": "scapedist's (default: one a core)"},
}


def child(method: str, n_workers: int, group: str, few: str, result: str) -> Row:
    """Seconds and peak of a method in a fresh process; its components are left in a file."""
    harness.limit_memory()
    with open_workers(n_workers) as workers:

        def everywhere(call: Callable[[], int]) -> int:
            others = getattr(workers, "connected", None)
            return call() + (sum(others().run(call).values()) if others else 0)

        def work(place: Path) -> Row:
            found = METHODS[method](workers, place)
            return dict(zip(("vectors", "variance", "coordinates"), found, strict=True))

        return harness.timed(work, Path, few, group, result, everywhere)


# -- stores


def make_store(case: Case, place: Path) -> Path:
    """The Zarr group of a run whose volumes are those of a case."""
    if not case.box:
        _synthetic(case.rows, case.voxels, place)
        return place / GROUP
    with harness.bundled() as (workdir, _), open_workers() as workers:
        run = Run.create(workdir, EPOCH, place).sketch(size=case.rows, quality_groups=0)
        run.generate(workers, box_size=case.box, store="masked").mask()
    return place / GROUP


def _synthetic(n: int, p: int, place: Path) -> None:
    """Rows of a large mean, of variances that decay as 1 / k^2, and a hundredth of noise."""
    rng, rank = np.random.default_rng(0), min(n // 2, 200)
    store, edge = RunStore(place, "w-"), int(np.ceil(p ** (1 / 3) - 1e-9))
    mask = (np.arange(edge**3) < p).astype(np.float32)
    store.write("mask", mask.reshape((edge,) * 3), ("z", "y", "x"))
    array = store.create(VOLUMES, (n, p), "float32", ("volume", "voxel"), (1, p))
    mean = rng.standard_normal(p, np.float32) + 10
    patterns = rng.standard_normal((rank, p), np.float32)
    patterns /= np.arange(1, rank + 1, dtype=np.float32)[:, None]
    for start, stop in batches(n, BATCH_ROWS):
        rows = rng.standard_normal((stop - start, rank), np.float32) @ patterns
        rows += rng.standard_normal(rows.shape, np.float32) / 100
        array[start:stop] = rows + mean


def exact(group: Path, r: int = COMPONENTS) -> tuple[np.ndarray, np.ndarray]:
    """The r leading components and their variances by a full decomposition in float64."""
    rows = read_rows(_array(group)).astype(np.float64)
    rows -= rows.mean(0)
    _, lengths, right = np.linalg.svd(rows, full_matrices=False)
    return right[:r].copy(), lengths[:r] ** 2 / (len(rows) - 1)


def errors(found: Path, wanted: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """The largest angle, and the largest relative error of a variance."""
    from scipy.linalg import subspace_angles

    vectors, variance = wanted
    with np.load(found) as held:
        angles = subspace_angles(vectors.T, held["vectors"].T.astype(np.float64))
        wrong = np.abs(held["variance"] - variance) / variance
    return {"angle": float(angles.max()), "variance error": float(wrong.max())}


# -- the tables


def run(size: str, only: tuple[str, ...] = (), workers: int | None = None) -> Row:
    """Rows of all cases, methods and numbers of processes, and what was aimed at."""
    processes = sorted({1, workers or available_cores()})
    only = only or tuple(METHODS)
    ways = [(name, n) for name in only for n in (processes if name in OURS else [1])]
    rows, aims = [], []
    with tempfile.TemporaryDirectory() as directory:
        few = make_store(Case(FEW_ROWS, voxels=500), Path(directory) / "few")
        for number, case in enumerate(SIZES[size]):
            found = measured(case, few, ways, Path(directory) / str(number))
            rows += found
            if {GRAM, FULL, RANDOMIZED} <= set(only):
                aims += targets(found)
    return {"components": COMPONENTS, "rows": rows, "targets": aims}


def measured(case: Case, few: Path, ways: list[tuple[str, int]], place: Path) -> list[Row]:
    """A row of each method and number of processes, which take turns."""
    group = make_store(case, place)
    given = {way: (*way, group, few) for way in ways}
    wanted, (volumes, voxels) = exact(group), _array(group).shape
    about: Row = {"case": f"bundled, box {case.box}" if case.box else "synthetic"}
    about |= {"rows": volumes, "voxels": voxels}
    return [
        {**about, "method": name, "processes": n, **row}
        for (name, n), row in harness.in_turns(
            "pca", given, case.rounds, place, lambda way, path: errors(path, wanted)
        ).items()
    ]


def targets(rows: list[Row]) -> list[Row]:
    """What was aimed at, by the Gram matrix in one process and in several."""
    of, found = {row["method"]: row for row in rows}, []
    wanted = (("seconds", FULL, 1), ("seconds", RANDOMIZED, 2), ("above idle MiB", RANDOMIZED, 0.2))
    for ours in (row for row in rows if row["method"] == GRAM):
        ratios = [
            (f"{'time' if key == 'seconds' else 'memory'} to {name}", ours[key] / of[name][key], at)
            for key, name, at in wanted
        ]
        for name, value, bound in [("largest angle", ours["angle"], 1e-6), *ratios]:
            row = {"case": ours["case"], "target": name, "processes": ours["processes"]}
            found.append(row | {"found": value, "at most": bound, "met": value <= bound})
    return found


if __name__ == "__main__":
    harness.main("pca")
