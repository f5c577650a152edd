"""Principal components of the volumes in a run's store: time, memory and error of each method.

Every method reads the same masked volumes from the same Zarr store and finds the leading
components, their variances and the volumes' coordinates, in a process of its own that has done so
with a few volumes before. Memory is the peak above what the process held then; with several
processes the sum of their peaks, whenever they were. Errors are against the singular value
decomposition of the centered volumes in float64: the largest principal angle between the leading
components, and the largest relative error of a variance.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from alone import alone, first_line, limit_memory, peak_bytes, reset_peak

from scapedist.analysis.gram import Run, fit_components, gram_matrix, in_turn
from scapedist.analysis.passes import Passes, coordinates_of, principal_subspace
from scapedist.backend import one_numpy_thread
from scapedist.landscape import open_workers
from scapedist.plan import ComponentsPlan, batches, kept_bytes, plan_components
from scapedist.stages.stored_rows import StoredRows
from scapedist.store import GROUP, Reader, RunStore, read_rows
from scapedist.workers import Workers, available_cores
from scapedist.workers.distributed import Distributed

COMPONENTS, BATCH_ROWS = 20, 200
"""Leading components; rows of a batch, or of a Dask chunk."""
FEW_ROWS = 60
"""Volumes of the store that a process does first."""
VOLUMES = "volumes/masked"
Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Components (r, p), variances (r,), coordinates (n, r)."""


@dataclass(frozen=True)
class Case:
    """Volumes in a store: of the bundled model in a box, or of so many voxels, synthetic."""

    rows: int
    box_size: int = 0
    voxels: int = 0
    rounds: int = 3

    @property
    def name(self) -> str:
        """What the rows of its results say."""
        return f"bundled, box {self.box_size}" if self.box_size else "synthetic"


SIZES = {
    "tiny": (Case(FEW_ROWS, voxels=500, rounds=1),),
    "small": (Case(500, box_size=48),),
    "full": (Case(2000, box_size=48), Case(1000, voxels=160_000, rounds=2)),
}


# -- methods: functions of a Zarr group and workers


def by_gram(group: Path, workers: Workers) -> Found:
    """From the Gram matrix, as scapedist's stage does."""
    rows, n, plan = _stored(group, workers, "gram")
    compute = _compute(workers)
    product = gram_matrix(rows, n, plan.block_rows, compute)
    found = fit_components(product, rows, plan.block_rows, COMPONENTS, compute)
    return found.vectors, found.variance, found.coordinates


def by_passes(group: Path, workers: Workers) -> Found:
    """From passes over the volumes, as scapedist's stage does."""
    rows, n, plan = _stored(group, workers, "iteration")
    passes = Passes(rows, n, plan.block_rows, _compute(workers))
    found = principal_subspace(passes, COMPONENTS, plan.columns)
    vectors = found.vectors[:COMPONENTS]
    coordinates, _ = coordinates_of(
        rows, n, plan.block_rows, found.mean, vectors, _compute(workers)
    )
    return vectors, found.variance[:COMPONENTS], coordinates


def _stored(group: Path, workers: Workers, solver: str) -> tuple[StoredRows, int, ComponentsPlan]:
    n = zarr.open_array(group / VOLUMES, mode="r").shape[0]
    rows = StoredRows(
        Reader(str(group)), VOLUMES, np.arange(n), kept_bytes=kept_bytes(workers.budget)
    )
    plan = plan_components(
        n,
        rows.n_voxels,
        COMPONENTS,
        workers.budget,
        workers.n_workers,
        solver=solver,
    )
    return rows, n, plan


def _compute(workers: Workers) -> Run:
    return _on_one_thread if workers.n_workers == 1 else workers.run


def _on_one_thread(work: Any, shared: Any, tasks: Any) -> Iterator[tuple[int, Any]]:
    with one_numpy_thread():
        yield from in_turn(work, shared, tasks)


def by_sklearn(solver: str, dtype: str, group: Path, workers: Workers) -> Found:
    """scikit-learn's PCA of the whole array."""
    from sklearn.decomposition import PCA

    voxels = read_rows(zarr.open_array(group / VOLUMES, mode="r")).astype(dtype, copy=False)
    pca = PCA(COMPONENTS, svd_solver=solver, random_state=0)
    coordinates = pca.fit_transform(voxels)
    return pca.components_, pca.explained_variance_, coordinates


def by_increments(group: Path, workers: Workers) -> Found:
    """scikit-learn's IncrementalPCA, a batch of rows at a time."""
    from sklearn.decomposition import IncrementalPCA

    array = zarr.open_array(group / VOLUMES, mode="r")
    spans = [slice(*span) for span in batches(array.shape[0], BATCH_ROWS)]
    pca = IncrementalPCA(COMPONENTS)
    for span in spans:
        pca.partial_fit(read_rows(array, span))
    coordinates = np.concatenate([pca.transform(read_rows(array, span)) for span in spans])
    return pca.components_, pca.explained_variance_, coordinates


def by_compression(n_power_iter: int, group: Path, workers: Workers) -> Found:
    """Dask's randomized decomposition of chunks of rows."""
    import dask
    import dask.array

    rows = _chunked(group)
    centered = rows - rows.mean(0)
    left, lengths, right = dask.compute(
        *dask.array.linalg.svd_compressed(
            centered, COMPONENTS, iterator="QR", n_power_iter=n_power_iter, seed=0
        )
    )
    return right, lengths**2 / (len(rows) - 1), left * lengths


def by_dask_ml(name: str, group: Path, workers: Workers) -> Found:
    """An estimator of dask-ml with its default settings."""
    pca = getattr(import_module("dask_ml.decomposition"), name)(COMPONENTS)
    rows = _chunked(group)
    coordinates = np.asarray(pca.fit(rows).transform(rows))
    return pca.components_, pca.explained_variance_, coordinates


def _chunked(group: Path) -> Any:
    import dask.array

    return dask.array.from_zarr(str(group / VOLUMES)).rechunk((BATCH_ROWS, -1))


GRAM, PASSES = "scapedist, Gram matrix", "scapedist, passes"
FULL, RANDOMIZED = "scikit-learn, full", "scikit-learn, randomized"
OURS = (GRAM, PASSES)
METHODS: dict[str, Callable[[Path, Workers], Found]] = {
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


# -- in a process of its own


def child(method: str, n_workers: str, group: str, few: str, result: str) -> dict[str, Any]:
    """Seconds and peak of a method, whose components are left in a file."""
    limit_memory()
    work = METHODS[method]
    with open_workers(int(n_workers)) as workers:
        try:
            work(Path(few), workers)
            before = _everywhere(workers, reset_peak)
            start = time.perf_counter()
            vectors, variance, coordinates = work(Path(group), workers)
            seconds = time.perf_counter() - start
            peak = _everywhere(workers, peak_bytes) - before
        except Exception as error:  # of another package: a row like others
            return {"error": first_line(error)}
    np.savez(result, vectors=vectors, variance=variance, coordinates=coordinates)
    return {"seconds": seconds, "bytes": peak}


def _everywhere(workers: Workers, call: Callable[[], int]) -> int:
    """Sum of a call's results in this process and in workers' processes."""
    found = call()
    if isinstance(workers, Distributed):
        found += sum(workers.connected().run(call).values())
    return found


# -- stores


def make_store(case: Case, place: Path) -> Path:
    """The Zarr group of a run whose volumes are those of a case."""
    if case.box_size:
        _bundled(case, place)
    else:
        _synthetic(case, place)
    return place / GROUP


def _bundled(case: Case, place: Path) -> None:
    from scapedist.landscape import Run

    with (
        as_file(files("scapedist") / "data" / "adk") as workdir,
        open_workers() as workers,
    ):
        run = Run.create(workdir, 14, place).sketch(size=case.rows, quality_groups=0)
        run.generate(workers, box_size=case.box_size, store="masked").mask()


def _synthetic(case: Case, place: Path) -> None:
    """Rows of a large mean, of variances that decay as 1 / k^2, and a hundredth of noise."""
    rng = np.random.default_rng(0)
    n, p = case.rows, case.voxels
    store = RunStore(place, "w-")
    mask = np.zeros(int(np.ceil(p ** (1 / 3) - 1e-9)) ** 3, np.float32)
    mask[:p] = 1
    store.write("mask", mask.reshape((round(len(mask) ** (1 / 3)),) * 3), ("z", "y", "x"))
    array = store.create(VOLUMES, (n, p), "float32", ("volume", "voxel"), (1, p))
    mean = rng.standard_normal(p, np.float32) + 10
    rank = min(n // 2, 200)
    patterns = rng.standard_normal((rank, p), np.float32)
    patterns /= np.arange(1, rank + 1, dtype=np.float32)[:, None]
    for start, stop in batches(n, BATCH_ROWS):
        rows = rng.standard_normal((stop - start, rank), np.float32) @ patterns
        rows += rng.standard_normal(rows.shape, np.float32) / 100
        array[start:stop] = rows + mean


def exact(group: Path, r: int = COMPONENTS) -> tuple[np.ndarray, np.ndarray]:
    """The r leading components and their variances by a full decomposition in float64."""
    rows = read_rows(zarr.open_array(group / VOLUMES, mode="r")).astype(np.float64)
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


# -- the table


def main() -> None:
    """Measure all methods and print the tables."""
    from machine import print_table, write_json

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--only", choices=METHODS, nargs="+", default=tuple(METHODS))
    parser.add_argument("--workers", type=int, help="scapedist's (default: one a core)")
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    results = run(arguments.size, tuple(arguments.only), arguments.workers)
    print_table(results["rows"])
    print()
    print_table(results["targets"])
    if arguments.output:
        write_json(arguments.output, results)


def run(
    size: str, methods: tuple[str, ...] = tuple(METHODS), n_workers: int | None = None
) -> dict[str, Any]:
    """Rows of all cases and methods, and what was aimed at."""
    from machine import describe  # imports torch, which no method's process needs

    processes = sorted({1, n_workers or available_cores()})
    ways = [(name, n) for name in methods for n in (processes if name in OURS else [1])]
    rows, aims = [], []
    with tempfile.TemporaryDirectory() as directory:
        few = make_store(Case(FEW_ROWS, voxels=500), Path(directory) / "few")
        for number, case in enumerate(SIZES[size]):
            place = Path(directory) / str(number)
            found = measured(case, make_store(case, place), few, ways, place)
            rows += found
            if {GRAM, FULL, RANDOMIZED} <= set(methods):
                aims += targets(case, found)
    return {
        "benchmark": "pca",
        "machine": describe(),
        "components": COMPONENTS,
        "rows": rows,
        "targets": aims,
    }


def measured(
    case: Case, group: Path, few: Path, ways: list[tuple[str, int]], place: Path
) -> list[dict[str, Any]]:
    """A row of each method and number of processes, which take turns."""
    results = {way: place / f"{number}.npz" for number, way in enumerate(ways)}
    took: dict[tuple[str, int], list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(case.rounds):
        for name, n in ways:
            if name.startswith("dask-ml") and find_spec("dask_ml") is None:
                took[name, n] = [{"error": "not installed"}]
            elif not any("error" in found for found in took[name, n]):
                arguments = (name, str(n), str(group), str(few), str(results[name, n]))
                took[name, n].append(alone("pca", *arguments))
    wanted = exact(group)
    volumes, voxels = zarr.open_array(group / VOLUMES, mode="r").shape
    rows = []
    for (name, n), found in took.items():
        row: dict[str, Any] = {
            "case": case.name,
            "rows": volumes,
            "voxels": voxels,
            "method": name,
            "processes": n,
            **dict.fromkeys(("seconds", "above idle MiB", "angle", "variance error"), ""),
            "error": found[-1].get("error", ""),
        }
        if not row["error"]:
            row["seconds"] = statistics.median(each["seconds"] for each in found)
            row["above idle MiB"] = statistics.median(each["bytes"] for each in found) / 2**20
            row |= errors(results[name, n], wanted)
        rows.append(row)
    return rows


def targets(case: Case, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was aimed at, by the Gram matrix in one process and in several."""
    of, found = {row["method"]: row for row in rows}, []
    for ours in (row for row in rows if row["method"] == GRAM):
        memory = ours["above idle MiB"] / of[RANDOMIZED]["above idle MiB"]
        bounds = {
            "largest angle": (ours["angle"], 1e-6),
            f"time to {FULL}": (ours["seconds"] / of[FULL]["seconds"], 1),
            f"time to {RANDOMIZED}": (ours["seconds"] / of[RANDOMIZED]["seconds"], 2),
            f"memory to {RANDOMIZED}": (memory, 0.2),
        }
        for name, (value, bound) in bounds.items():
            row = {"case": case.name, "target": name, "processes": ours["processes"]}
            found.append(row | {"found": value, "at most": bound, "met": value <= bound})
    return found


if __name__ == "__main__":
    main()
