"""Components of all particles: passes over volumes that are decoded each time and never stored."""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scapedist.analysis.eigen import Pairs
from scapedist.analysis.mask import Mask
from scapedist.analysis.passes import MOST_PASSES, Passes, Subspace, principal_subspace
from scapedist.files.aside import renamed
from scapedist.plan import GIB, SPARE_COLUMNS, batches, plan_components
from scapedist.settings import GenerateSettings, PcaSettings, from_record
from scapedist.sources.decoded import Decoded, plan_generation
from scapedist.stages.decoded_rows import DecodedRows, Projection
from scapedist.store import Progress, RunStore
from scapedist.workers import Workers

USUAL_PASSES = 6
"""Usual number of passes until twenty components are settled, from those of a sketch."""
KEPT = "components.passes"
"""Name of the run's directory for the sums of a stopped command."""


class KeptPasses(Passes):
    """Passes whose sums are kept in files: a stopped command goes on within the pass it was in.

    Parameters
    ----------
    directory
        Directory of the files.
    progress
        Called with how many rows of a pass are done.
    *arguments, **options
        Arguments of :class:`~scapedist.analysis.passes.Passes`.
    """

    def __init__(self, directory: Path, progress: Progress, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._directory, self._progress = directory, progress
        directory.mkdir(parents=True, exist_ok=True)

    def scatter(
        self, number: int, center: np.ndarray, block: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Products and sums of a pass, as :meth:`Passes.scatter`, computed now or before."""
        path = self._directory / f"{number:02d}.npz"
        found = _read(path)
        if found is None:
            found = super().scatter(number, center, block)
            _write(path, found)
            shutil.rmtree(self._parts_of(number), ignore_errors=True)
        return found

    def _parts_of(self, number: int) -> Path:
        return self._directory / f"{number:02d}"

    def parts(
        self, number: int, shared: Any, wanted: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield the parts of a pass: those that are kept, then the others as they are computed."""
        assert wanted is None
        place = self._parts_of(number)
        place.mkdir(exist_ok=True)
        paths = [place / f"{task:03d}.npz" for task in range(len(self.tasks))]
        todo, done = [], 0
        for task, path in enumerate(paths):
            if (found := _read(path)) is None:
                todo.append(task)
            else:
                done += self._rows_of(task)
                yield task, found
        what = f"decoding all particles, pass {number}"
        self._progress(what, done, self.n)
        for task, found in super().parts(number, shared, todo):
            _write(paths[task], found)
            done += self._rows_of(task)
            self._progress(what, done, self.n)
            yield task, found

    def _rows_of(self, task: int) -> int:
        spans = self.tasks[task]
        return spans[-1][1] - spans[0][0]


def _write(path: Path, found: tuple[np.ndarray, np.ndarray, float]) -> None:
    with renamed(path) as partial, partial.open("wb") as stream:
        np.savez(stream, product=found[0], sums=found[1], squares=found[2])


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, float] | None:
    """The content of a file of sums; None where there is no sound one."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            return held["product"], held["sums"], float(held["squares"])
    except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


@dataclass(frozen=True)
class Whole:
    """Plan of finding the components of all particles, and what that takes.

    Attributes
    ----------
    particles : (n,) int64
        Rows of the latents whose volumes count.
    batch_size, columns
        Number of volumes that are decoded at once; columns of the iteration's space.
    here_bytes, worker_bytes, disk_bytes
        Projected peak memory of this process and of each worker; size of what is kept in case of
        a stop.
    """

    particles: np.ndarray
    batch_size: int
    columns: int
    here_bytes: int
    worker_bytes: int
    disk_bytes: int


def plan_whole(
    store: RunStore,
    settings: PcaSettings,
    source: Decoded,
    workers: Workers,
    included: np.ndarray,
) -> Whole:
    """Plan the components of all particles in the sketch groups that are included.

    Raises
    ------
    ResourceError
        Where a worker's memory or the disk does not suffice.
    """
    generated = from_record(GenerateSettings, store.stages["generate"])
    n_voxels = Mask.of(store.read("mask")).n_voxels
    assignment = store.read("sketch/assignment")
    particles = np.flatnonzero((assignment >= 0) & included[assignment])
    iteration = plan_components(
        len(particles),
        n_voxels,
        settings.components,
        workers.budget_of_each(),
        max(workers.n_workers, 2),
        "iteration",
    )
    width = settings.components + SPARE_COLUMNS
    beside = 8 * n_voxels * (2 * width + 3)
    decoding = plan_generation(
        source.decoder,
        source.box_size,
        generated,
        len(particles),
        workers.budget.less(beside),
        workers.device,
    )
    kept = 8 * n_voxels * width * (MOST_PASSES + 32)
    return Whole(
        particles,
        decoding.batch_size,
        iteration.columns,
        iteration.here_bytes,
        decoding.worker_bytes + beside,
        kept,
    )


def whole_subspace(
    store: RunStore,
    settings: PcaSettings,
    source: Decoded,
    workers: Workers,
    included: np.ndarray,
    fingerprint: str,
    progress: Progress,
    start: np.ndarray,
) -> tuple[Subspace, dict[str, Any]]:
    """Principal directions of all particles' volumes, and the record of how they were found.

    Parameters
    ----------
    store
        Store of a run with a sketch, its volumes and a mask.
    settings
        Settings of the components.
    source
        Source that decodes any particle.
    workers
        Workers that decode particles.
    included : (n_volumes,) bool
        Sketch volumes whose groups count.
    fingerprint
        Fingerprint of all that the result depends on.
    progress
        Called with how many particles of a pass are decoded.
    start : (r, n_voxels)
        Components of the sketch.
    """
    plan = plan_whole(store, settings, source, workers, included)
    store.check_room(plan.disk_bytes)
    projection = Projection(source, store.reader, settings.clip_negative, settings.soft_mask)
    rows = DecodedRows(projection, store.read("latents")[plan.particles])
    place = store.directory / KEPT
    for other in place.glob("*"):
        if other.name != fingerprint[:16]:
            shutil.rmtree(other, ignore_errors=True)
    directory = place / fingerprint[:16]
    n = len(plan.particles)
    passes = KeptPasses(directory, progress, rows, n, plan.batch_size, workers.run)
    started, residuals = time.perf_counter(), []

    def told(_: int, pairs: Pairs) -> None:
        r = min(settings.components, len(pairs.values))
        worst = pairs.residuals[:r] / np.maximum(pairs.values[:r], np.finfo(float).tiny)
        residuals.append(float(worst.max()))

    found = principal_subspace(passes, settings.components, plan.columns, start, after_pass=told)
    r = min(settings.components, len(found.vectors))
    return found, {
        "particles": n,
        "passes": found.passes,
        "settled": found.settled,
        "residual_after_each_pass": residuals,
        "seconds_of_passes": round(time.perf_counter() - started, 3),
        "angle_to_sketch_degrees": _angle(start[:r], found.vectors[:r]),
    }


def forget_passes(store: RunStore) -> None:
    """Remove the sums kept in case of a stop, once the result is recorded."""
    shutil.rmtree(store.directory / KEPT, ignore_errors=True)


def measured_seconds(store: RunStore, source: Decoded, workers: Workers, plan: Whole) -> float:
    """Seconds per pass, from a few batches that are decoded now."""
    rows = DecodedRows(Projection(source, store.reader, False, False), store.read("latents"))
    n = min(len(plan.particles), 2 * plan.batch_size * workers.n_workers)
    tasks = batches(n, plan.batch_size)
    for _ in range(2):  # the first time a worker makes what it needs
        started = time.perf_counter()
        for _ in workers.run(_decode_only, rows, tasks):
            pass
    return (time.perf_counter() - started) * len(plan.particles) / n


def _decode_only(rows: DecodedRows, span: tuple[int, int]) -> float:
    return float(rows(*span)[:, 0].sum())


def told_cost(
    store: RunStore,
    settings: PcaSettings,
    source: Decoded,
    workers: Workers,
    included: np.ndarray,
) -> str:
    """The projected cost of :func:`whole_subspace` in words; arguments as :func:`plan_whole`."""
    plan = plan_whole(store, settings, source, workers, included)
    seconds = measured_seconds(store, source, workers, plan)
    return (
        f"{len(plan.particles)} particles are decoded in each pass, {seconds:.0f} s per pass; "
        f"about {USUAL_PASSES} passes, {USUAL_PASSES * seconds / 3600:.2g} h. "
        f"{plan.here_bytes / GIB:.2f} GiB here, {plan.worker_bytes / GIB:.2f} GiB per worker, at "
        f"most {plan.disk_bytes / GIB:.2f} GiB of disk meanwhile."
    )


def _angle(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest angle in degrees between the spans of two sets of orthonormal rows."""
    cosines = np.linalg.svd(ours.astype(np.float64) @ theirs.T, compute_uv=False)
    return float(np.degrees(np.arccos(np.clip(cosines[-1], 0, 1))))
