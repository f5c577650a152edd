"""Every particle's coordinates: exactly, from a few points of its field, or guessed by an MLP."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from scapedist.analysis import embedding as maths
from scapedist.errors import InputError, RunError
from scapedist.landscape.batches import VolumeSource
from scapedist.landscape.generate import made_of_maps, make_source, plan_generation
from scapedist.landscape.projection import (
    COVARIANCE_COMPONENTS,
    Projection,
    Training,
    energy_of,
    exact_batch,
    exact_posterior,
    kernel_block,
    masked_batch,
    posterior_batch,
    readout_block,
    reduced_batch,
)
from scapedist.landscape.settings import (
    NOT_WHERE_CLIPPED,
    EmbedSettings,
    GenerateSettings,
    PcaSettings,
    from_record,
)
from scapedist.model.checkpoint import read_decoder
from scapedist.model.decoder import check_latents
from scapedist.plan import batches
from scapedist.store import RowFile, RunStore, read_rows
from scapedist.workers import Workers

if TYPE_CHECKING:
    from scapedist.landscape.run import Run

REDUCED_ROWS = 512
"""Particles of a batch of the reduced embedding."""
POSTERIOR_ROWS = 64
WRITE_ROWS = 8192
SKETCH_ROWS = 1000
"""Sketch volumes that a map is trained with, at most, spread over the sketch."""
HELD_OUT = 100
"""Random particles, decoded exactly, that a map is judged by."""
FURTHER = (400, 800, 1600)
"""Further volumes that a map is trained with, until it reaches its tolerance."""
POINTS = (100, 200, 400, 800, 1600)
CANDIDATES, ENERGY_VOLUMES = 8192, 32
HIDDEN_FEATURES = 2**18
"""Hidden activations that are features, at most; the field is, at every point."""
HIDDEN_SHARE = 5.0
"""Weight of the hidden layer's part of the kernel, next to the field's."""
BLOCK_BYTES = 64 * 2**20
EXACT_ABOVE = 4.0
"""A particle is decoded exactly where its expected error is this many tolerances."""
MOST_EXACT = 0.02
"""Fraction of particles that may be decoded exactly for a map to count as good enough."""
MLP_VARIANTS = {"paper": (50, 1e-3), "cryodrgn": (200, 1e-4)}
"""Epochs and learning rate."""


class Embedder:
    """What all methods share: the run, its components, its workers, and what is known exactly.

    Parameters
    ----------
    run
        With its components fitted.
    workers, memory_limit
        Where to compute; bytes a worker may use.
    """

    def __init__(self, run: Run, workers: Workers, memory_limit: int | None) -> None:
        self.run, self.store, self.workers = run, run.store, workers
        self.memory_limit = memory_limit
        record = self.store.stages.get("pca")
        if record is None:
            raise RunError(
                f"An embedding needs components. {run.directory} has none that are up to date. "
                f"Give `scapedist pca {run.directory}` first."
            )
        self.base = record["fingerprint"]
        self.generated = from_record(GenerateSettings, self.store.stages["generate"])
        self.fitted = from_record(PcaSettings, record)
        self.latents = self.store.read("latents")
        self.r, n_voxels = self.store.array("components/vectors").shape
        n_masked = int((self.store.read("mask") > 0).sum())
        if n_masked != n_voxels:
            raise RunError(
                f"Components live on the mask's voxels. The mask of {run.directory} has "
                f"{n_masked}, its components {n_voxels}. Give `scapedist pca {run.directory}`."
            )
        if run.model._decoder is None:
            run.model.decoder = workers.call(
                read_decoder, run.model.config, run.model.files["weights"]
            )
        self.projection = Projection(
            self._source(), self.fitted.clip_negative, self.fitted.soft_mask
        )
        frame_bytes = 4 * self.r * n_voxels + 8 * self.store.array("mask").size
        limit = None if memory_limit is None else memory_limit - frame_bytes
        self.batch_size = plan_generation(
            self.projection.source.decoder,
            self.projection.source.box_size,
            dataclasses.replace(self.generated, store_dtype="float32"),
            len(self.latents),
            limit,
        ).batch_size
        self._exact: RowFile | None = None

    def _source(self) -> VolumeSource:
        source = make_source(self.run, self.generated, {})
        if made_of_maps(self.run):
            source = dataclasses.replace(source, decoder=self.run.model.decoder, map_paths=())
        return source

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
        self._fill(file, missing, exact_batch, self.projection, self.batch_size, what)
        rows = file.read(particles).astype(np.float64)
        return rows[:, :-1], rows[:, -1]

    def exact_seconds_a_particle(self) -> float:
        """What decoding and projecting a particle takes a worker, measured now."""
        n = min(len(self.latents), 4 * self.batch_size * self.workers.n_workers)
        tasks = [self.latents[a:b] for a, b in batches(n, self.batch_size)]
        for _ in range(2):  # the first time a worker reads what it needs
            started = time.perf_counter()
            for _ in self.workers.run(exact_batch, self.projection, tasks):
                pass
        return (time.perf_counter() - started) * self.workers.n_workers / n

    def exact_file(self) -> RowFile:
        """Rows of coordinates and residual of every particle that was decoded."""
        if self._exact is None:
            path = self.run.directory / "embedding.exact.rows"
            self._exact = RowFile(path, self.fingerprint("exact"), self.r + 1)
        return self._exact

    def remove_rows(self, method: str) -> None:
        """Remove the rows kept in case of a stop, once a method's results are recorded."""
        if method == "exact" and not self._has_exact:
            return  # they hold all components, the results fewer
        for kind in (method, "posterior") if method == "reduced" else (method,):
            (self.run.directory / f"embedding.{kind}.rows").unlink(missing_ok=True)

    @property
    def _has_exact(self) -> bool:
        """Whether all particles are embedded exactly, on all components."""
        record = self.store.beside.get("embedding/exact")
        return record is not None and record["results"]["components"] == self.r

    def _exact_from_store(self, particles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(particles, kind="stable")
        back = np.argsort(order, kind="stable")
        coordinates = read_rows(self.store.array("embedding/exact/coordinates"), particles[order])
        residual = read_rows(self.store.array("embedding/exact/residual"), particles[order])
        return coordinates[back].astype(np.float64), residual[back].astype(np.float64)

    def _fill(
        self,
        file: RowFile,
        particles: np.ndarray,
        work: Callable[[Any, Any], np.ndarray],
        projection: Projection,
        size: int,
        what: str,
    ) -> None:
        """Compute the rows of some particles and add them to a file, batch by batch."""
        spans = batches(len(particles), size)
        tasks = [self.latents[particles[start:stop]] for start, stop in spans]
        done = 0
        self.run.progress(what, 0, len(particles))
        for number, rows in self.workers.run(work, projection, tasks):
            start, stop = spans[number]
            file.append(particles[start:stop], rows)
            done += stop - start
            self.run.progress(what, done, len(particles))

    def fingerprint(self, *parts: Any) -> str:
        """Of results that build on these components."""
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


def sketch_residual(store: RunStore, n_components: int) -> np.ndarray:
    """What the first components miss of each sketch volume (m,); NaN where it was left out."""
    included = store.read("components/included")
    coordinates = store.read("sketch/coordinates")[:, :n_components]
    residual = np.full(len(included), np.nan)
    norms = np.diag(store.read("components/gram"))
    residual[included] = np.maximum(norms - np.square(coordinates[included]).sum(1), 0)
    return residual


def embed_method(settings: EmbedSettings) -> str:
    """The name under which a method's results lie."""
    return settings.method if settings.box_size is None else f"exact_{settings.box_size}"


def embed(
    embedder: Embedder, settings: EmbedSettings, strict: bool, begin: Callable[[], None]
) -> dict[str, Any]:
    """Embed all particles by a method and write its results."""
    components = settings.components or embedder.r
    if components > embedder.r:
        raise InputError(
            f"An embedding has at most as many components as were fitted, {embedder.r}. "
            f"{components} were asked for. Give `scapedist pca {embedder.run.directory} "
            f"--components {components}` first."
        )
    if settings.error_bars and embedder.run.model.latent_variance is None:
        raise InputError(
            "Error bars come from the latents' posterior variance. This model has none (its z file "
            "holds means alone). Leave out --error-bars."
        )
    embedder.check_decoder()
    if settings.box_size is not None:
        return _embed_low_pass(embedder, settings, components, begin)
    if settings.method == "exact":
        return _embed_exact(embedder, components, begin)
    if settings.method == "mlp":
        return _embed_mlp(embedder, settings, components, begin)
    return _embed_reduced(embedder, settings, components, strict, begin)


# -- exact


def _embed_exact(embedder: Embedder, components: int, begin: Callable[[], None]) -> dict[str, Any]:
    begin()
    every, started = np.arange(len(embedder.latents)), time.perf_counter()
    file = embedder.exact_file()
    todo = file.missing(every)
    what = "embedding, exact"
    embedder._fill(file, todo, exact_batch, embedder.projection, embedder.batch_size, what)
    seconds = time.perf_counter() - started
    embedder.write("exact", components, _file_blocks(file, len(every), embedder.r))
    return {
        "particles": len(every),
        "components": components,
        "workers": embedder.workers.n_workers,
        "seconds_a_particle": seconds * embedder.workers.n_workers / max(len(todo), 1),
    }


def _file_blocks(file: RowFile, n: int, r: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    for start, stop in batches(n, WRITE_ROWS):
        rows = file.read(np.arange(start, stop))
        yield start, {"coordinates": rows[:, :r], "residual": rows[:, r]}


def _embed_low_pass(
    embedder: Embedder, settings: EmbedSettings, components: int, begin: Callable[[], None]
) -> dict[str, Any]:
    """Exactly, but from the frequencies of a smaller box; the mean of what these miss is added."""
    run, store, source = embedder.run, embedder.store, embedder.projection.source
    box = settings.box_size
    assert box is not None
    if box % 2 or not 2 <= box < source.box_size:
        raise InputError(
            f"A smaller box is even and below that of the volumes, {source.box_size}. --box-size "
            f"is {box}."
        )
    from scapedist.landscape.analyse import sketch_voxels

    begin()
    projection = dataclasses.replace(embedder.projection, low_pass=box, token=f"low{box}")
    n_sketch = store.array("sketch/particle").shape[0]
    rows = np.linspace(0, n_sketch - 1, min(n_sketch, 64)).round().astype(np.int64)
    particles = store.read("sketch/particle")[rows]
    tasks = [embedder.latents[particles[a:b]] for a, b in batches(len(rows), embedder.batch_size)]
    found = dict(embedder.workers.run(masked_batch, projection, tasks))
    low = np.concatenate([found[number] for number in range(len(tasks))])
    gap = sketch_voxels(run, embedder.fitted, rows) - low
    store.write("embedding/low_pass/shift", gap.mean(0, dtype=np.float64), ("voxel",))
    method = embed_method(settings)
    n, started = len(embedder.latents), time.perf_counter()
    file = RowFile(
        run.directory / f"embedding.{method}.rows", embedder.fingerprint(method), embedder.r + 1
    )
    todo = file.missing(np.arange(n))
    embedder._fill(
        file, todo, exact_batch, projection, embedder.batch_size, f"embedding, box {box}"
    )
    seconds = time.perf_counter() - started
    embedder.write(method, components, _file_blocks(file, n, embedder.r))
    held = np.random.default_rng(settings.seed).choice(n, min(n, HELD_OUT), replace=False)
    exact, _ = embedder.exact_rows(np.sort(held), "checking")
    mine = file.read(np.sort(held))[:, : embedder.r]
    return {
        "particles": n,
        "components": components,
        "workers": embedder.workers.n_workers,
        "seconds_a_particle": seconds * embedder.workers.n_workers / max(len(todo), 1),
        "relative_error": _relative(mine - exact, exact),
    }


def _relative(error: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square error, relative to the total standard deviation."""
    return float(np.sqrt(np.square(error).sum(1).mean() / np.var(exact, axis=0).sum()))


# -- the reduced map


def build_map(embedder: Embedder, settings: EmbedSettings) -> dict[str, Any]:
    """Build the reduced map until it reaches the tolerance, and write ``embedding/map``.

    Returns
    -------
    dict
        Its record: points, training volumes, errors on held-out particles, seconds.
    """
    started = time.perf_counter()
    store, n = embedder.store, len(embedder.latents)
    sketch = store.read("sketch/particle")
    known, missed = store.read("sketch/coordinates"), sketch_residual(store, embedder.r)
    rng = np.random.default_rng(settings.seed)
    others = np.setdiff1d(np.arange(n), sketch)
    n_held = min(HELD_OUT, len(others) // 4)
    if n_held < 8:
        raise InputError(
            f"A reduced map is judged by particles beside the sketch. There are {len(others)}. "
            "Use --method exact."
        )
    held = np.sort(rng.choice(others, n_held, replace=False))
    held_coordinates, held_residual = embedder.exact_rows(held, "decoding held-out")
    total = float(np.sqrt(np.var(held_coordinates, axis=0).sum()))
    taught = np.linspace(0, len(sketch) - 1, min(len(sketch), SKETCH_ROWS)).round().astype(int)
    points = _points(embedder, sketch, settings.seed)
    # a map that costs more than it saves is none
    most = max(min(FURTHER[0] // 4, len(others) - n_held), (len(others) - n_held) // 25)
    ladder = [k for k in FURTHER if k < most] + [most]
    further = maths.spread_rows(
        embedder.latents, np.concatenate([sketch, held]), most, settings.seed
    )
    best: dict[str, Any] = {}
    for n_further in ladder:
        rows = further[:n_further]
        coordinates, residual = embedder.exact_rows(rows, "decoding for the map")
        particles = np.concatenate([sketch[taught], rows, held])
        targets = np.concatenate([known[taught], coordinates])
        residuals = np.concatenate([missed[taught], residual])
        training = Training(embedder.projection, embedder.latents[particles], len(targets), points)
        found = _fit(
            embedder, training, targets, len(taught), held_coordinates, held_residual, settings
        )
        if not best or found["relative_error"] < best["relative_error"]:
            best = found | {
                "training": training,
                "targets": targets,
                "residuals": residuals,
                "rows": particles,
            }
        if found["reached"]:
            break
    coarse = best["coarse"] | {"training": best["training"]}
    _write_map(embedder, "coarse", coarse, settings)
    record = _write_map(embedder, "map", best, settings)
    for name, data, dimensions in (
        ("component_error", best["component_errors"], ("component",)),
        ("training_particle", best["rows"][: best["training"].n], ("training",)),
        ("training_coordinates", best["targets"], ("training", "component")),
        ("training_residual", best["residuals"], ("training",)),
        ("held_out_particle", held, ("held_out",)),
    ):
        store.write(f"embedding/map/{name}", data, dimensions)
    return record | {
        "held_out": n_held,
        "total_deviation": total,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _points(embedder: Embedder, sketch: np.ndarray, seed: int) -> np.ndarray:
    """Points of the lattice in the order in which maps take them, (m, 3) float32."""
    source = embedder.projection.source
    assert source.decoder is not None
    lattice = source.decoder.lattice(source.box_size)
    candidates = lattice.coordinates[maths.draw_candidates(lattice.coordinates, CANDIDATES, seed)]
    rows = np.linspace(0, len(sketch) - 1, min(len(sketch), ENERGY_VOLUMES)).round().astype(int)
    energy = embedder.workers.call(
        energy_of, embedder.projection, embedder.latents[sketch[rows]], candidates
    )
    squared = np.square(candidates.astype(np.float64)).sum(1)
    if len(candidates) < lattice.n_points:  # they were drawn evenly over radii, not over space
        energy = energy * np.maximum(squared, 1e-4 * squared.max())
    n = min(POINTS[-1], max(POINTS[0], lattice.n_points // 64), len(candidates))
    return np.ascontiguousarray(candidates[maths.choose_points(candidates, energy, n)])


def _spans(
    embedder: Embedder, start: int, stop: int, n_latents: int
) -> list[tuple[int, int, bool]]:
    """Blocks of points whose features fit the memory, hidden activations with the first ones."""
    decoder = embedder.projection.source.decoder
    assert decoder is not None
    with_hidden = _n_hidden(decoder.hidden_size)
    size = max(1, BLOCK_BYTES // (4 * n_latents * (decoder.hidden_size + 2)))
    blocks = []
    for a, b in ((start, min(stop, with_hidden)), (max(start, with_hidden), stop)):
        blocks += [(a + i, a + j, b <= with_hidden) for i, j in batches(max(b - a, 0), size)]
    return blocks


def _n_hidden(hidden_size: int) -> int:
    return HIDDEN_FEATURES // hidden_size


def _fit(
    embedder: Embedder,
    training: Training,
    targets: np.ndarray,
    n_sketch: int,
    held_coordinates: np.ndarray,
    held_residual: np.ndarray,
    settings: EmbedSettings,
) -> dict[str, Any]:
    """Add points to the kernel until the map reaches the tolerance; the last that paid is kept."""
    n, n_all = training.n, len(training.latents)
    kernels = [np.zeros((n_all, n)), np.zeros((n_all, n))]
    values: list[np.ndarray] = []
    best: dict[str, Any] = {}
    coarse: dict[str, Any] = {}
    done = 0
    for m in _ladder(len(training.points)):
        tasks = _spans(embedder, done, m, n_all)
        parts = dict(embedder.workers.run(kernel_block, training, tasks))
        for number in range(len(tasks)):
            *added, some = parts[number]
            values.append(some)
            for kernel, part in zip(kernels, added, strict=True):
                kernel += part
        done = m
        scales = [1 / max(float(np.trace(k[:n])), np.finfo(float).tiny) for k in kernels]
        scales[1] *= HIDDEN_SHARE
        kernel = scales[0] * kernels[0] + scales[1] * kernels[1]
        ridge = maths.fit_ridge(kernel[:n], targets)
        error = ridge.predict(kernel[n:]) - held_coordinates
        found = {
            "m": m,
            "ridge": ridge,
            "scales": tuple(scales),
        }
        found |= _judge(
            np.concatenate(values, 1),
            targets,
            n_sketch,
            error,
            held_coordinates,
            held_residual,
            settings,
        )
        coarse = coarse or found
        if not best or found["reached"] or found["relative_error"] < 0.98 * best["relative_error"]:
            best = found
        if found["reached"]:
            break
    return best | {"coarse": coarse}


def _ladder(n_points: int) -> list[int]:
    return [m for m in POINTS if m < n_points] + [n_points]


def _judge(
    values: np.ndarray,
    targets: np.ndarray,
    n_sketch: int,
    held_error: np.ndarray,
    held_coordinates: np.ndarray,
    held_residual: np.ndarray,
    settings: EmbedSettings,
) -> dict[str, Any]:
    """A map's errors on the held-out particles, those that it would have decoded left out."""
    n = len(targets)
    found = held_error + held_coordinates
    # what the components miss is told by the sketch alone, whose remainder they are blind to; where
    # the map is at a loss by all that it was trained with
    of_sketch = maths.FieldModel.fit(targets[:n_sketch], values[:n_sketch])
    of_training = maths.FieldModel.fit(targets, values[:n])
    calibration = maths.calibrate(
        of_sketch.misfit(found, values[n:]),
        of_training.misfit(found, values[n:]),
        held_residual,
        np.linalg.norm(held_error, axis=1),
    )
    total = float(np.sqrt(np.var(held_coordinates, axis=0).sum()))
    threshold = EXACT_ABOVE * settings.tolerance * total
    kept = calibration.error(of_training.misfit(found, values[n:])) <= threshold
    remaining = np.square(held_error) * kept[:, None]
    error, exact = float(np.sqrt(remaining.sum(1).mean()) / total), float(1 - kept.mean())
    deviation = np.maximum(held_coordinates.std(0), np.finfo(float).tiny)
    return {
        "field": (of_sketch, of_training),
        "calibration": calibration,
        "threshold": threshold,
        "relative_error": error,
        "relative_error_unmended": _relative(held_error, held_coordinates),
        "component_errors": np.sqrt(remaining.mean(0)) / deviation,
        "fraction_exact": exact,
        "reached": error <= settings.tolerance and exact <= MOST_EXACT,
    }


def _write_map(
    embedder: Embedder, name: str, found: dict[str, Any], settings: EmbedSettings
) -> dict[str, Any]:
    """Compute a map's arrays from its regression, write them, and return its rules."""
    store, training = embedder.store, found["training"]
    ridge, m = found["ridge"], found["m"]
    work = dataclasses.replace(
        training, points=training.points[:m], weights=ridge.weights, scales=found["scales"]
    )
    tasks = _spans(embedder, 0, m, len(training.latents))
    parts = dict(embedder.workers.run(readout_block, work, tasks))
    ordered = [parts[number] for number in range(len(tasks))]

    def gather(key: str) -> np.ndarray:
        values = [part[key][: part["n_values"]] for part in ordered]
        hidden = [part[key][part["n_values"] :] for part in ordered]
        return np.concatenate(values + hidden)

    of_sketch, of_training = found["field"]
    store.delete(f"embedding/{name}")
    for key, data, dimensions in (
        ("points", work.points, ("point", "axis")),
        ("feature_mean", gather("mean"), ("feature",)),
        ("readout", gather("readout"), ("feature", "component")),
        ("offset", ridge.mean.astype(np.float32), ("component",)),
        *((f"field_of_sketch/{key}", *item) for key, item in of_sketch.arrays().items()),
        *((f"field_of_training/{key}", *item) for key, item in of_training.arrays().items()),
    ):
        store.write(f"embedding/{name}/{key}", data, dimensions)
    rules = {
        "points": m,
        "n_hidden": min(m, _n_hidden(work.projection.source.decoder.hidden_size)),
        "training_volumes": training.n,
        "tolerance": settings.tolerance,
        "reached": bool(found["reached"]),
        "relative_error": found["relative_error"],
        "relative_error_without_exact": found["relative_error_unmended"],
        "fraction_exact_expected": found["fraction_exact"],
        "threshold": found["threshold"],
        "calibration": dataclasses.asdict(found["calibration"]),
        "ridge": ridge.ridge,
    }
    store.group[f"embedding/{name}"].attrs["rules"] = rules
    return rules


def map_fingerprint(embedder: Embedder, settings: EmbedSettings) -> str:
    """Of all that a reduced map depends on."""
    return embedder.fingerprint("map", settings.tolerance, settings.seed)


def ensure_map(embedder: Embedder, settings: EmbedSettings) -> dict[str, Any]:
    """The record of the run's map, built where there is none of these settings."""
    if embedder.fitted.clip_negative:
        raise InputError(NOT_WHERE_CLIPPED)
    fingerprint = map_fingerprint(embedder, settings)
    held = embedder.store.beside.get("embedding/map")
    if held is not None and held["fingerprint"] == fingerprint:
        record: dict[str, Any] = held["results"]
        return record
    embedder.store.withdraw("embedding/map")
    record = build_map(embedder, settings)
    embedder.store.finish_beside("embedding/map", {"fingerprint": fingerprint, "results": record})
    return record


def _embed_reduced(
    embedder: Embedder,
    settings: EmbedSettings,
    components: int,
    strict: bool,
    begin: Callable[[], None],
) -> dict[str, Any]:
    started = time.perf_counter()
    rules = ensure_map(embedder, settings)
    if not rules["reached"] and strict:
        exact = rules["fraction_exact_expected"]
        raise InputError(
            f"The reduced embedding did not reach the tolerance {settings.tolerance:.2g}: with "
            f"{rules['training_volumes']} training volumes and {rules['points']} points its "
            f"relative error is {rules['relative_error']:.2g}, and {exact:.1%} of the "
            "particles would be decoded exactly. Use a larger --tolerance, a larger "
            "sketch, or --method exact."
        )
    begin()
    setup, n = time.perf_counter() - started, len(embedder.latents)
    file = RowFile(
        embedder.run.directory / "embedding.reduced.rows",
        map_fingerprint(embedder, settings),
        embedder.r + 2,
    )
    started = time.perf_counter()
    todo = file.missing(np.arange(n))
    embedder._fill(
        file, todo, reduced_batch, embedder.projection, REDUCED_ROWS, "embedding, reduced"
    )
    seconds = time.perf_counter() - started
    flagged = np.flatnonzero(file.read(np.arange(n))[:, -1] > rules["threshold"])
    embedder.exact_rows(flagged, "decoding uncertain ones")
    seconds_exact = time.perf_counter() - started - seconds
    n_exact = 0

    def blocks() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        nonlocal n_exact
        r = embedder.r
        for start, stop in batches(n, WRITE_ROWS):
            rows = file.read(np.arange(start, stop))
            here = flagged[(flagged >= start) & (flagged < stop)]
            error = rows[:, r + 1].copy()
            exact = np.zeros(stop - start, bool)
            exact[here - start] = True
            coordinates, residual = embedder.exact_rows(here, "")
            rows[exact, :r], rows[exact, r], error[exact] = coordinates, residual, 0
            n_exact += len(here)
            yield (
                start,
                {
                    "coordinates": rows[:, :r],
                    "residual": rows[:, r],
                    "error": error,
                    "exact": exact,
                },
            )

    embedder.write("reduced", components, blocks())
    bars = _error_bars(embedder) if settings.error_bars else {}
    return bars | {
        "particles": n,
        "components": components,
        "workers": embedder.workers.n_workers,
        "points": rules["points"],
        "training_volumes": rules["training_volumes"],
        "tolerance": settings.tolerance,
        "reached": rules["reached"],
        "relative_error": rules["relative_error"],
        "decoded_exactly": n_exact,
        "setup_seconds": round(setup, 3),
        "map_seconds": rules["seconds"],
        "exact_seconds": round(seconds_exact, 3),
        "seconds_a_particle": seconds * embedder.workers.n_workers / max(len(todo), 1),
    }


def _error_bars(embedder: Embedder) -> dict[str, Any]:
    """Write the covariance of each particle's leading coordinates under its latent's posterior."""
    variance = embedder.run.model.latent_variance
    assert variance is not None
    deviations = np.sqrt(variance)
    n, k = len(variance), min(COVARIANCE_COMPONENTS, embedder.r)
    coarse = dataclasses.replace(embedder.projection, map_name="coarse", token="coarse")
    file = RowFile(
        embedder.run.directory / "embedding.posterior.rows",
        embedder.fingerprint("posterior", embedder.store.beside["embedding/map"]["fingerprint"]),
        k * k,
    )
    todo = file.missing(np.arange(n))
    spans = batches(len(todo), POSTERIOR_ROWS)
    tasks = [(embedder.latents[todo[a:b]], deviations[todo[a:b]]) for a, b in spans]
    done = n - len(todo)
    for number, found in embedder.workers.run(posterior_batch, coarse, tasks):
        a, b = spans[number]
        file.append(todo[a:b], found.reshape(b - a, -1))
        done += b - a
        embedder.run.progress("error bars", done, n)
    array = embedder.store.create(
        "embedding/reduced/covariance",
        (n, k, k),
        "float32",
        ("particle", "component", "component_"),
        (min(n, WRITE_ROWS), k, k),
        compress=True,
    )
    variances = np.zeros(k)
    for start, stop in batches(n, WRITE_ROWS):
        block = file.read(np.arange(start, stop)).reshape(-1, k, k)
        array[start:stop] = block
        variances += np.einsum("nkk->k", block.astype(np.float64))
    sample = np.linspace(0, n - 1, min(n, 8)).round().astype(np.int64)
    tasks = [(embedder.latents[[row]], deviations[[row]]) for row in sample]
    found = dict(embedder.workers.run(exact_posterior, embedder.projection, tasks))
    exact = np.concatenate([found[i] for i in range(len(tasks))])
    mine = file.read(sample).reshape(-1, k, k)
    error = np.linalg.norm(mine - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
    return {
        "posterior_deviation": np.sqrt(variances / n).tolist(),
        "covariance_relative_error": float(np.sqrt(np.square(error).mean())),
    }


def apply_map(embedder: Embedder, latents: np.ndarray) -> dict[str, np.ndarray]:
    """Coordinates, residuals and expected errors of any latents (n, zdim) by the run's map."""
    latents = check_latents(np.asarray(latents, np.float32), embedder.latents.shape[1])
    spans = batches(len(latents), REDUCED_ROWS)
    tasks = [latents[start:stop] for start, stop in spans]
    found = dict(embedder.workers.run(reduced_batch, embedder.projection, tasks))
    rows = np.concatenate([found[number] for number in range(len(tasks))])
    return {
        "coordinates": rows[:, : embedder.r],
        "residual": rows[:, embedder.r],
        "error": rows[:, embedder.r + 1],
    }


# -- the paper's MLP


def _embed_mlp(
    embedder: Embedder, settings: EmbedSettings, components: int, begin: Callable[[], None]
) -> dict[str, Any]:
    """Train on the reduced map's volumes, or on the sketch where there is no map."""
    store = embedder.store
    if "embedding/map" in store.beside:
        particles = store.read("embedding/map/training_particle")
        coordinates = store.read("embedding/map/training_coordinates")
        residual = store.read("embedding/map/training_residual")
    else:
        particles = store.read("sketch/particle")
        coordinates, residual = store.read("sketch/coordinates"), sketch_residual(store, embedder.r)
    unknown = np.isnan(residual)  # volumes left out of the components
    _, residual[unknown] = embedder.exact_rows(particles[unknown], "decoding for the MLP")
    residual = residual + np.square(coordinates[:, components:]).sum(1)
    begin()
    epochs, learning_rate = MLP_VARIANTS[settings.variant]
    from scapedist.model.regressor import fit_and_predict

    started = time.perf_counter()
    targets = np.column_stack([coordinates[:, :components], np.sqrt(residual)])
    predicted, losses = embedder.workers.call(
        fit_and_predict,
        embedder.latents[particles],
        targets,
        embedder.latents,
        epochs,
        learning_rate,
        settings.seed,
    )
    setup = time.perf_counter() - started - losses["seconds"]
    missed = np.square(np.maximum(predicted[:, -1], 0))
    blocks = (
        (a, {"coordinates": predicted[a:b, :-1], "residual": missed[a:b]})
        for a, b in batches(len(predicted), WRITE_ROWS)
    )
    embedder.write("mlp", components, blocks)
    return {
        "particles": len(predicted),
        "components": components,
        "variant": settings.variant,
        "training_volumes": len(particles),
        "epochs": epochs,
        "setup_seconds": round(setup, 3),
        "seconds_a_particle": losses.pop("seconds") / len(predicted),
        **losses,
    }
