"""Embedding particles exactly, by their own volumes; all embeddings build on it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from scapedist.analysis.coordinates import Frame
from scapedist.analysis.mask import Mask
from scapedist.errors import RunError
from scapedist.plan import batches
from scapedist.settings import GenerateSettings, PcaSettings, from_record
from scapedist.sources.decoded import plan_generation, read_weights
from scapedist.sources.open import source_of_particles
from scapedist.stages.decoded_rows import Projection
from scapedist.store import Progress, RowFile, RunStore, read_rows
from scapedist.workers import Workers
from scapedist.workers.held import Held

if TYPE_CHECKING:
    from scapedist.model.workdir import Model

WRITE_ROWS = 8192
"""Number of particles per chunk of an embedding's arrays."""


def _make_frame(projection: Projection) -> Frame:
    """The components of a projection on its device."""
    mean = projection.reader.read("components/mean")
    if projection.low_pass is not None:
        mean = mean - projection.reader.read("embedding/low_pass/shift")
    vectors = projection.on_device(projection.reader.read("components/vectors"))
    return Frame(projection.on_device(mean), vectors, projection.mask)


frame_of = Held(_make_frame)
"""The components of a projection in this process, read once."""


def exact_batch(projection: Projection, latents: np.ndarray) -> np.ndarray:
    """Decode latents (b, zdim) and project their volumes, one after the other.

    Returns
    -------
    (b, r + 1) float32
        Coordinates, and as residual the squared norm that they miss of the masked voxels minus
        their mean.

    Raises
    ------
    RunError
        Where a volume is not finite.
    """
    result = frame_of(projection).project(projection.volumes(latents), len(latents))
    if not np.isfinite(result).all():
        raise RunError(
            "The volume of a particle contains NaN or infinite values. The model may have "
            "diverged, or its precision does not suffice: generate with --dtype float32."
        )
    return result


class Embedder:
    """Embeds the particles of a run, and keeps the rows that it computed exactly.

    Parameters
    ----------
    store
        Store of a run with components.
    model
        Model that decodes the particles.
    workers
        Workers to compute on.
    progress
        Called with how many particles are done.
    """

    def __init__(self, store: RunStore, model: Model, workers: Workers, progress: Progress) -> None:
        self.store, self.model, self.workers, self.progress = store, model, workers, progress
        self.directory = store.directory
        record = self.store.stages.get("pca")
        if record is None:
            raise RunError(
                f"An embedding needs components. {self.directory} has none that are up to date. "
                f"Give `scapedist pca {self.directory}` first."
            )
        self.base = record["fingerprint"]
        self.generated = from_record(GenerateSettings, self.store.stages["generate"])
        self.fitted = from_record(PcaSettings, record)
        self.latents = self.store.read("latents")
        self.r, n_voxels = self.store.array("components/vectors").shape
        n_masked = Mask.of(self.store.read("mask")).n_voxels
        if n_masked != n_voxels:
            raise RunError(
                f"Components live on the mask's voxels. The mask of {self.directory} has "
                f"{n_masked}, its components {n_voxels}. Give `scapedist pca {self.directory}`."
            )
        workers.check_files([self.directory])
        read_weights(model, workers)
        self.projection = Projection(
            source_of_particles(store, model, self.generated, workers.device),
            store.reader,
            self.fitted.clip_negative,
            self.fitted.soft_mask,
        )
        frame_bytes = 4 * self.r * n_voxels + 8 * self.store.array("mask").size
        self.batch_size = plan_generation(
            self.projection.source.decoder,
            self.projection.source.box_size,
            dataclasses.replace(self.generated, store_dtype="float32"),
            len(self.latents),
            workers.budget.less(frame_bytes),
            workers.device,
        ).batch_size
        self._exact: RowFile | None = None

    def variant(self, **changes: Any) -> Projection:
        """The projection with some fields changed, and a token of its own."""
        return dataclasses.replace(self.projection, token=uuid4().hex, **changes)

    # -- exactly decoded particles

    def exact_rows(self, particles: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (n, r) float64 and residuals (n,) of particles by their own volumes.

        What is computed is kept in a file of the run until all particles are embedded exactly:
        whatever needs it next finds it there.
        """
        if self._has_exact:
            return self._exact_from_store(particles)
        file = self.exact_file()
        missing = file.missing(particles)
        self.fill(file, missing, exact_batch, self.projection, self.batch_size, what)
        rows = file.read(particles).astype(np.float64)
        return rows[:, :-1], rows[:, -1]

    def exact_seconds_a_particle(self) -> float:
        """Seconds per particle to decode and project on one worker, measured now."""
        n = min(len(self.latents), 4 * self.batch_size * self.workers.n_workers)
        tasks = [self.latents[a:b] for a, b in batches(n, self.batch_size)]
        for _ in range(2):  # the first time a worker reads what it needs
            started = time.perf_counter()
            for _ in self.workers.run(exact_batch, self.projection, tasks):
                pass
        return (time.perf_counter() - started) * self.workers.n_workers / n

    def exact_file(self) -> RowFile:
        """File of the coordinates and residual of every particle that was decoded."""
        if self._exact is None:
            path = self.directory / "embedding.exact.rows"
            self._exact = RowFile(path, self.fingerprint("exact"), self.r + 1)
        return self._exact

    def remove_rows(self, method: str) -> None:
        """Remove the rows kept in case of a stop, once a method's results are recorded."""
        if method == "exact" and not self._has_exact:
            return  # they hold all components, the results fewer
        for kind in (method, "posterior") if method == "reduced" else (method,):
            (self.directory / f"embedding.{kind}.rows").unlink(missing_ok=True)

    @property
    def _has_exact(self) -> bool:
        """Whether all particles are embedded exactly, on all components."""
        record = self.store.beside.get("embedding/exact")
        return record is not None and record["results"]["components"] == self.r

    def _exact_from_store(self, particles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        coordinates = read_rows(self.store.array("embedding/exact/coordinates"), particles)
        residual = read_rows(self.store.array("embedding/exact/residual"), particles)
        return coordinates.astype(np.float64), residual.astype(np.float64)

    def fill(
        self,
        file: RowFile,
        particles: np.ndarray,
        work: Callable[[Any, Any], np.ndarray],
        projection: Projection,
        size: int,
        what: str,
        task_of: Callable[[np.ndarray], Any] | None = None,
    ) -> None:
        """Compute the rows of some particles and add them to a file, batch by batch.

        A batch is its particles' latents, or what ``task_of`` makes of their numbers.
        """
        spans = batches(len(particles), size)
        make = task_of or self.latents.__getitem__
        tasks = [make(particles[start:stop]) for start, stop in spans]
        done = 0
        self.progress(what, 0, len(particles))
        for number, rows in self.workers.run(work, projection, tasks):
            start, stop = spans[number]
            file.append(particles[start:stop], rows.reshape(stop - start, -1))
            done += stop - start
            self.progress(what, done, len(particles))

    def fingerprint(self, *parts: Any) -> str:
        """Fingerprint of results that build on these components."""
        text = json.dumps([self.base, *parts], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def check_decoder(self) -> None:
        """Refuse where decoding a sketch particle does not give the volume that is stored."""
        particle = self.store.read("sketch/particle")[:1]
        known = self.store.read("sketch/coordinates")
        spread = np.sqrt(np.nanvar(known, axis=0).sum())
        found, _ = self.exact_rows(particle, "checking")
        error = float(np.linalg.norm(found[0] - known[0]))
        if error > 0.01 * spread:
            raise RunError(
                f"A particle is embedded by its decoded volume. That of sketch volume 0 differs "
                f"from the stored one by {error / spread:.1%} of the landscape's spread: the maps "
                "are not what this model decodes (another epoch, sign, hand or box). Generate the "
                "run's volumes with the model."
            )

    # -- results

    def write(
        self,
        method: str,
        components: int,
        blocks: Iterator[tuple[int, dict[str, np.ndarray]]],
    ) -> None:
        """Write ``embedding/<method>/`` from blocks of rows: coordinates, residual and others."""
        n = len(self.latents)
        self.store.delete(f"embedding/{method}")
        arrays: dict[str, Any] = {}
        for start, block in blocks:
            beyond = block["coordinates"][:, components:]
            block["residual"] = block["residual"] + np.square(beyond.astype(np.float64)).sum(1)
            block["coordinates"] = block["coordinates"][:, :components]
            for name, rows in block.items():
                if name not in arrays:
                    kept = rows if rows.dtype == bool else rows.astype(np.float32)
                    arrays[name] = self.store.create(
                        f"embedding/{method}/{name}",
                        (n, *rows.shape[1:]),
                        kept.dtype,
                        ("particle", "component", "component_")[: rows.ndim],
                        (min(n, WRITE_ROWS), *rows.shape[1:]),
                        compress=True,
                    )
                arrays[name][start : start + len(rows)] = rows
