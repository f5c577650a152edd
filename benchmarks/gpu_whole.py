"""Sections of ``gpu_check.py`` that need all of scapedist: stages, workers, reading, estimators.

Each takes a :class:`gpu_check.Check`. What is not installed is said and left out.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
from gpu_check import ROOT, Check, latents_of, random_decoder, relative

from scapedist import backend

MODEL = ROOT / "scapedist" / "data" / "adk"


def stages(check: Check) -> None:
    """Every linkage, also of more volumes than fit, and components of all particles."""
    from scapedist.landscape import Run
    from scapedist.plan import LinkagePlan
    from scapedist.stages import states
    from scapedist.workers import Serial

    n, box = (200, 24) if check.size.width > 100 else (16, 8)
    usual = states.plan_linkage
    ways = [(name, usual) for name in ("average", "ward", "complete", "single")]
    ways += [(name, usual) for name in ("kmeans", "hdbscan") if check.device == "cpu" or has_cuml()]
    for kind, name in (("vectors", "ward"), ("two-level", "average")):
        plan = LinkagePlan(kind, n // 4, 0)
        ways.append((name, lambda *_, plan=plan: plan))
    labels: dict[str, list[np.ndarray]] = {"cpu": [], check.device: []}
    vectors = {}
    with tempfile.TemporaryDirectory() as place:
        for number, device in enumerate(("cpu", check.device)):
            workers = Serial(device)
            run = Run.create(MODEL, harness.EPOCH, Path(place) / str(number))
            run.sketch(workers, size=n, quality_groups=0)
            run.generate(workers, box_size=box, dtype="float32").mask()
            run.pca(workers, components=5)
            found = []
            for name, planned in ways:
                states.plan_linkage = planned
                try:
                    run.states(workers, states=4, linkage=name)
                finally:
                    states.plan_linkage = usual
                found.append(run.store.read("states/label"))
            labels[device] = found
            if check.size.width > 100:
                run.pca(workers, components=5, all_particles=True)
                vectors[device] = run.store.read("components/vectors")
    for (name, planned), ours, theirs in zip(
        ways, labels[check.device], labels["cpu"], strict=True
    ):
        what = name if planned is usual else f"{name}, more than fit"
        check.add(f"{what}: labels unlike the CPU's", (ours != theirs).sum(), f"of {n}", 0)
    if vectors:
        error = relative(vectors[check.device], vectors["cpu"])
        check.add("components of all particles", error, "relative L2", 1e-4)


def has_cuml() -> bool:
    """Whether cuML is installed; where not, that is said."""
    try:
        import cuml
    except ImportError:
        print("cuML is not installed: what it does is not checked", flush=True)
        return False
    print(f"cuML {cuml.__version__}", flush=True)
    return True


# -- workers


def workers(check: Check) -> None:
    """Workers on all GPUs: their host memory, their free pools, and that this process has none."""
    options: dict[str, Any] = {"n_workers": 2} if check.device == "cpu" else {"gpus": "all"}
    found = harness.alone("gpu_whole", options, child="in_workers")
    check.add("workers", found["workers"], "")
    check.add("contexts of the process that sends work", found["contexts"], "", 0)
    check.add("a run of the bundled model, started and done", found["seconds"], "s")
    if check.device != "cpu":
        from scapedist.plan import GPU_IMPORT_BYTES

        check.add("host memory of a worker", found["host"] / 2**30, "GiB", GPU_IMPORT_BYTES / 2**30)
        check.add("free memory of a GPU", found["free"] / 2**30, "GiB")


def in_workers(options: dict[str, Any]) -> dict[str, Any]:
    """What a run by workers took, in a process that does nothing else."""
    import torch

    from scapedist.landscape import Run, open_workers

    start = time.perf_counter()
    with open_workers(**options) as pool, tempfile.TemporaryDirectory() as place:
        run = Run.create(MODEL, harness.EPOCH, Path(place) / "run")
        run.sketch(pool, size=24, quality_groups=0).generate(pool, box_size=8).mask()
        run.pca(pool, components=3).states(pool, states=3)
        return {
            "seconds": time.perf_counter() - start,
            "workers": pool.n_workers,
            "contexts": int(torch.cuda.is_initialized()),
            "host": max(pool.everywhere(harness.peak_bytes)),
            "free": pool.budget_of_each().device_bytes,
        }


def scaling(check: Check) -> None:
    """The same volumes decoded by one card, by two and so on, up to all that there are."""
    import torch

    on_cpu = check.device == "cpu"
    most, n = (2, 16) if on_cpu else (torch.cuda.device_count(), 1024)
    alone = 0.0
    for k in sorted({1, *(2**i for i in range(1, 10) if 2**i < most), most}):
        options = {"n_workers": k} if on_cpu else {"gpus": ",".join(map(str, range(k)))}
        size = (check.size.boxes[0], check.size.width, n)
        rate = n / harness.alone("gpu_whole", options, *size, child="decoded")["seconds"]
        alone = alone or rate
        check.add(f"{k} workers: volumes a second", rate, "/s")
        check.add(f"{k} workers: of {k} times one", rate / alone / k, "fraction", 0.9)


def decoded(options: dict[str, Any], box: int, width: int, n: int) -> dict[str, Any]:
    """Seconds in which workers decode some volumes, the second time."""
    from scapedist.landscape import open_workers
    from scapedist.sources.decoded import Decoded

    batch = 2 if n < 100 else 32
    tasks = [latents_of(batch) for _ in range(n // batch)]
    with open_workers(**options) as pool:
        dtype = "float32" if pool.device == "cpu" else "bfloat16"
        source = Decoded(
            box_size=box, pixel_size_angstroms=1.0, device=pool.device, dtype=dtype,
            decoder=random_decoder(box, width), latents=tasks[0], architecture={},
        )  # fmt: skip
        for _ in range(2):
            start = time.perf_counter()
            assert sum(pool.gather(decode, source, tasks)) == n
            seconds = time.perf_counter() - start
    return {"seconds": seconds}


def decode(source: Any, latents: np.ndarray) -> int:
    """The number of a batch's volumes, each decoded and looked at."""
    sums = [volume.sum() for volume in source.decode(latents)]
    assert np.isfinite([float(each) for each in sums]).all()
    return len(sums)


# -- reading, training, estimators


def reading(check: Check) -> None:
    """The Gram matrix of stored volumes, against reading them and multiplying them alone."""
    from scapedist.analysis.gram import gram_matrix
    from scapedist.stages.stored_rows import MASKED, StoredRows
    from scapedist.store import RunStore

    n, p = min(check.size.gram, 2000), check.size.voxels
    rng = np.random.default_rng(6)
    with tempfile.TemporaryDirectory() as place:
        store = RunStore(Path(place), "w-")
        store.write("mask", np.ones((1, 1, p), np.float32), ("z", "y", "x"))
        array = store.create(MASKED, (n, p), "float32", ("volume", "voxel"), (1, p))
        for row in range(n):
            array[row] = rng.standard_normal(p, np.float32)

        def fresh() -> StoredRows:
            kept = 2**62
            return StoredRows(store.reader, MASKED, np.arange(n), False, False, check.device, kept)

        held, size = fresh(), max(1, n // 2)

        def read_alone() -> None:
            rows = fresh()
            for start in range(0, n, size):
                rows(start, start + size)

        def multiply(rows: StoredRows) -> None:
            gram_matrix(rows, n, size)

        both = check.time(f"read and multiply {n} volumes", lambda: multiply(fresh()), 3)
        read = check.time("read them", read_alone, 3)
        multiply(held)
        product = check.time("multiply them", partial(multiply, held), 3)
    check.add("both, of their sum", both / (read + product), "")
    if check.device != "cpu":
        check.add("of the slower one alone", max(read, product) / both, "fraction")


def training(check: Check) -> None:
    """The paper's MLP: trained on some volumes, applied to all particles."""
    from scapedist.model.regressor import fit_and_predict

    n = check.size.training
    epochs, every = (50, 344_069) if check.size.width > 100 else (1, 100)
    targets = np.random.default_rng(7).standard_normal((n, check.size.components))
    given = (latents_of(n), targets, latents_of(every), epochs, 1e-3, 0, check.device)
    predicted, _ = check.once(f"{n} volumes, {epochs} epochs", partial(fit_and_predict, *given))
    assert np.isfinite(predicted).all()


def estimators(check: Check) -> None:
    """Estimators of cuML against scikit-learn's, and cuML as a judge of our own mathematics."""
    if check.device == "cpu" or not has_cuml():
        return
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(5)
    n, more = (20_000, 120_000) if check.size.width > 100 else (1000, 1500)
    centers = rng.standard_normal((10, 8)) * 20
    truth = rng.integers(10, size=more)
    every = centers[truth] + rng.standard_normal((more, 8))
    host = every[:n]
    theirs = KMeans(25, n_init=3, max_iter=300, random_state=0).fit(host).inertia_
    for scale in (1.0, 1e-3):  # cuML's tolerance is a length: densities are far below 1
        points = check.array(host * scale)
        work = partial(backend.kmeans, points, 25, 0, 300, n_starts=3)
        found, labels = check.once(f"k-means of {n}, times {scale:g}", work)
        inertia = np.square(host * scale - found[labels]).sum() / scale**2
        check.add(f"its inertia over scikit-learn's, times {scale:g}", inertia / theirs, "", 1.02)
    for size in (n, more):  # of more than 102,300 not all neighbours count
        points = check.array(every[:size])
        labels = check.once(f"HDBSCAN of {size}", partial(backend.hdbscan, points, size // 100))
        kept = labels >= 0
        pairs = np.unique(np.stack([labels[kept], truth[:size][kept]]), axis=1).shape[1]
        check.add("groups that are not one", pairs - 10, "of 10", 0)
    placed = check.once(f"UMAP of {n}", partial(backend.umap, check.array(host), 0))
    assert np.isfinite(placed).all()
    judged(check, host[:2000])


def judged(check: Check, points: np.ndarray) -> None:
    """Our components and single linkage against cuML's PCA and AgglomerativeClustering."""
    from cuml.cluster import AgglomerativeClustering
    from cuml.decomposition import PCA

    from scapedist.analysis.gram import fit_components, gram_matrix
    from scapedist.analysis.linkage import cut, link

    mixed = points @ np.random.default_rng(8).standard_normal((points.shape[1], 300))
    rows = check.array(mixed.astype(np.float32))
    theirs = PCA(n_components=5, svd_solver="full").fit(rows.astype(np.float64))

    def read(start: int, stop: int) -> Any:
        return rows[start:stop]

    ours = fit_components(gram_matrix(read, len(rows), 500), read, 500, 5)
    variance = backend.to_host(theirs.explained_variance_)
    check.add("variances, ours and cuML's", relative(ours.variance, variance), "relative L2", 1e-5)
    angle = np.linalg.svd(ours.vectors @ backend.to_host(theirs.components_).T)[1].min()
    check.add("components, ours and cuML's: 1 - cosine", 1 - angle, "", 1e-6)
    squared = np.square(points[:, None] - points[None]).sum(-1)
    mine = cut(link(check.array(squared), "single"), 10)
    joined = AgglomerativeClustering(n_clusters=10, linkage="single").fit(check.array(points))
    pairs = np.unique(np.stack([mine, backend.to_host(joined.labels_)]), axis=1).shape[1]
    check.add("single linkage: groups unlike cuML's", pairs - 10, "of 10", 0)


def cards(check: Check) -> None:
    """The GPUs of this machine as scapedist sees them."""
    if check.device == "cpu":
        return
    from scapedist.workers.gpus import visible_gpus

    for number, gpu in enumerate(visible_gpus()):
        name = f"{number}: {gpu.name}, compute capability {'.'.join(map(str, gpu.capability))}"
        check.add(f"{name}, free", gpu.free_bytes / 2**30, "GiB")
    print(f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
