"""Building the reduced map of a run: its points, its training volumes and its errors."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scapedist.analysis import reduced as maths
from scapedist.analysis.agreement import relative_error, total_deviation
from scapedist.errors import InputError
from scapedist.particles.exact import Embedder
from scapedist.particles.memory import MAP_BLOCK_BYTES, most_training
from scapedist.plan import batches, spread_evenly
from scapedist.settings import NOT_WHERE_CLIPPED, EmbedSettings
from scapedist.sources.decoded import field_of
from scapedist.stages.decoded_rows import Projection
from scapedist.workers.one import ridge_by

SKETCH_ROWS = 1000
"""Most sketch volumes that a map is trained with, spread over the sketch."""
HELD_OUT = 100
"""Number of random, exactly decoded particles that a map is judged by."""
FURTHER = (400, 800, 1600, 3200)
"""Numbers of further training volumes, tried until a map reaches its tolerance.

A fit takes time with their third power and memory with their second: with 3,200 half a minute on a
core and 1 GiB, with twice as many four minutes and 4 GiB."""
MOST_DECODED = 25
"""One further training volume for so many particles, at most: a map must not cost what it saves."""
POINTS = (100, 200, 400, 800, 1600)
"""Numbers of points, tried until a map reaches its tolerance."""
POINT_SHARE, MOST_POINT_SHARE = 64, 16
"""One point for so many of the lattice's, at most; and with many training volumes, or the most that
there are."""
MANY_FURTHER = 1600
"""Number of further training volumes from which more points are cheaper than more volumes."""
CANDIDATES, ENERGY_VOLUMES = 8192, 32
HIDDEN_FEATURES = 2**18
"""Most hidden activations that are features; the field is one at every point."""
HIDDEN_SHARE = 5.0
"""Weight of the hidden layer's part of the kernel, relative to the field's."""
EXACT_BYTES = 8 * 2**20
"""Bytes of features in float64 that are added up at once."""
EXACT_ABOVE = 4.0
"""Multiple of the tolerance from which a particle's expected error has it decoded exactly."""
MOST_EXACT = 0.02
"""Largest fraction of exactly decoded particles with which a map counts as good enough."""


@dataclass(frozen=True)
class _Known:
    """Particles of known coordinates: sketch, further ones, held-out ones, in this order.

    Attributes
    ----------
    particle : (n + k,) int64
    coordinates : (n + k, r) float64
    residual : (n + k,) float64
    n, n_sketch
        Number of particles that a map is trained with, and of those among them in the sketch.
    """

    particle: np.ndarray
    coordinates: np.ndarray
    residual: np.ndarray
    n: int
    n_sketch: int

    @property
    def held(self) -> np.ndarray:
        """Coordinates (k, r) of the held-out particles."""
        return self.coordinates[self.n :]

    @property
    def total(self) -> float:
        """Total standard deviation of the held-out particles' coordinates."""
        return total_deviation(self.held)


def build_map(embedder: Embedder, settings: EmbedSettings) -> dict[str, Any]:
    """Build the reduced map until it reaches the tolerance, and write ``embedding/map``.

    Returns
    -------
    dict
        Record of the map: points, training volumes, errors on held-out particles, seconds.
    """
    started = time.perf_counter()
    store, n = embedder.store, len(embedder.latents)
    sketch = store.read("sketch/particle")
    others = np.setdiff1d(np.arange(n), sketch)
    n_held = min(HELD_OUT, len(others) // 4)
    if n_held < 8:
        raise InputError(
            f"A reduced map is judged by particles beside the sketch. There are {len(others)}. "
            "Use --method exact."
        )
    rng = np.random.default_rng(settings.seed)
    held = np.sort(rng.choice(others, n_held, replace=False))
    held_coordinates, held_residual = embedder.exact_rows(held, "decoding held-out")
    fitted = np.flatnonzero(store.read("components/included"))
    taught = fitted[spread_evenly(len(fitted), SKETCH_ROWS)]
    coordinates = store.read("sketch/coordinates")[taught]
    residual = store.read("sketch/residual")[taught]
    points, n_few = _points(embedder, sketch, settings.seed)
    workers, zdim = embedder.workers, embedder.latents.shape[1]
    alone = workers.n_workers == 1 and workers.device == "cpu"
    room = most_training(workers.budget, n, zdim, len(sketch), alone) - len(taught)
    numbers = further_volumes(len(others) - n_held, room)
    further = maths.spread_rows(
        embedder.latents, np.concatenate([sketch, held]), numbers[-1], settings.seed
    )
    best: dict[str, Any] = {}
    for n_further in numbers:
        rows = further[:n_further]
        more, more_residual = embedder.exact_rows(rows, "decoding for the map")
        known = _Known(
            particle=np.concatenate([sketch[taught], rows, held]),
            coordinates=np.concatenate([coordinates, more, held_coordinates]),
            residual=np.concatenate([residual, more_residual, held_residual]),
            n=len(taught) + n_further,
            n_sketch=len(taught),
        )
        few = n_further < min(MANY_FURTHER, numbers[-1])
        found = _fit(embedder, known, points[:n_few] if few else points, settings.tolerance)
        if not best or found["relative_error"] < best["relative_error"]:
            best = found | {"known": known}
        if found["reached"]:
            break
    known = best["known"]
    _write_map(embedder, "coarse", best["coarse"], settings.tolerance)
    record = _write_map(embedder, "map", best, settings.tolerance)
    for name, data, dimensions in (
        ("training_particle", known.particle[: known.n], ("training",)),
        ("training_coordinates", known.coordinates[: known.n], ("training", "component")),
        ("training_residual", known.residual[: known.n], ("training",)),
        ("held_out_particle", held, ("held_out",)),
    ):
        store.write(f"embedding/map/{name}", data, dimensions)
    return record | {
        "held_out": n_held,
        "component_relative_errors": best["component_errors"].tolist(),
        "total_deviation": known.total,
        "seconds": round(time.perf_counter() - started, 3),
    }


def further_volumes(n_particles: int, room: int = FURTHER[-1]) -> list[int]:
    """Numbers of further training volumes to try, in rising order.

    Parameters
    ----------
    n_particles
        Number of particles that they are drawn from.
    room
        Number that memory has room for; fewer than the least are never taken.
    """
    least = min(FURTHER[0] // 4, n_particles)
    most = max(least, min(n_particles // MOST_DECODED, FURTHER[-1], room))
    return [number for number in FURTHER if number < most] + [most]


def _points(embedder: Embedder, sketch: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """Lattice points (m, 3) float32 in the order in which maps take them, and how many at first."""
    source = embedder.projection.source
    lattice = source.decoder.lattice(source.box_size)
    candidates = lattice.coordinates[maths.draw_candidates(lattice.coordinates, CANDIDATES, seed)]
    rows = spread_evenly(len(sketch), ENERGY_VOLUMES)
    energy = embedder.workers.call(
        energy_of, embedder.projection, embedder.latents[sketch[rows]], candidates
    )
    squared = np.square(candidates.astype(np.float64)).sum(1)
    if len(candidates) < lattice.n_points:  # they were drawn evenly over radii, not over space
        energy = energy * np.maximum(squared, 1e-4 * squared.max())
    few, most = (
        min(POINTS[-1], max(POINTS[0], lattice.n_points // share), len(candidates))
        for share in (POINT_SHARE, MOST_POINT_SHARE)
    )
    return np.ascontiguousarray(candidates[maths.choose_points(candidates, energy, most)]), few


def _spans(
    embedder: Embedder, start: int, stop: int, n_latents: int
) -> list[tuple[int, int, bool]]:
    """Blocks (start, stop, with hidden activations) of points whose features fit the memory."""
    decoder = embedder.projection.source.decoder
    with_hidden = _n_hidden(decoder.hidden_size)
    size = max(
        1, MAP_BLOCK_BYTES[embedder.workers.device] // (4 * n_latents * (decoder.hidden_size + 2))
    )
    blocks = []
    for a, b in ((start, min(stop, with_hidden)), (max(start, with_hidden), stop)):
        blocks += [(a + i, a + j, b <= with_hidden) for i, j in batches(max(b - a, 0), size)]
    return blocks


def _n_hidden(hidden_size: int) -> int:
    return HIDDEN_FEATURES // hidden_size


def _fit(embedder: Embedder, known: _Known, points: np.ndarray, tolerance: float) -> dict[str, Any]:
    """Fit maps of more and more points until one reaches the tolerance; keep the best."""
    n, n_all = known.n, len(known.particle)
    training = Training(embedder.projection, embedder.latents[known.particle], n, points)
    kernels = [np.zeros((n_all, n)), np.zeros((n_all, n))]
    values: list[np.ndarray] = []
    best: dict[str, Any] = {}
    coarse: dict[str, Any] = {}
    fit, done = ridge_by(embedder.workers), 0
    for m in [m for m in POINTS if m < len(points)] + [len(points)]:
        tasks = _spans(embedder, done, m, n_all)
        for *added, some in embedder.workers.gather(kernel_block, training, tasks):
            values.append(some)
            for kernel, part in zip(kernels, added, strict=True):
                kernel += part
        done = m
        scales = [1 / max(float(np.trace(k[:n])), np.finfo(float).tiny) for k in kernels]
        scales[1] *= HIDDEN_SHARE
        kernel = scales[0] * kernels[0] + scales[1] * kernels[1]
        ridge = fit(kernel[:n], known.coordinates[:n])
        work = dataclasses.replace(
            training, points=points[:m], weights=ridge.weights, scales=(scales[0], scales[1])
        )
        found = {"ridge": ridge, "training": work}
        found |= _judge(np.concatenate(values, 1), known, ridge.predict(kernel[n:]), tolerance)
        coarse = coarse or found
        if not best or found["reached"] or found["relative_error"] < 0.98 * best["relative_error"]:
            best = found
        if found["reached"]:
            break
    return best | {"coarse": coarse}


def _judge(
    values: np.ndarray, known: _Known, predicted: np.ndarray, tolerance: float
) -> dict[str, Any]:
    """Errors of a map on the held-out particles, without those that it would decode exactly.

    Parameters
    ----------
    values : (n + k, q) float
        The field at the points.
    known
    predicted : (k, r) float64
        Coordinates of the held-out particles by the map.
    tolerance
    """
    n, n_sketch, error = known.n, known.n_sketch, predicted - known.held
    # the sketch's model tells what the components miss, which are blind to the sketch's remainder;
    # the model of all training volumes tells where the map is at a loss
    of_sketch = maths.FieldModel.fit(known.coordinates[:n_sketch], values[:n_sketch])
    of_training = maths.FieldModel.fit(known.coordinates[:n], values[:n])
    to_training = of_training.misfit(predicted, values[n:])
    calibration = maths.calibrate(
        of_sketch.misfit(predicted, values[n:]),
        to_training,
        known.residual[n:],
        np.linalg.norm(error, axis=1),
    )
    threshold = EXACT_ABOVE * tolerance * known.total
    kept = calibration.error(to_training) <= threshold
    remaining = np.square(error) * kept[:, None]
    relative, exact = float(np.sqrt(remaining.sum(1).mean()) / known.total), 1 - kept.mean()
    deviation = np.maximum(known.held.std(0), np.finfo(float).tiny)
    return {
        "field": (of_sketch, of_training),
        "calibration": calibration,
        "threshold": threshold,
        "relative_error": relative,
        "relative_error_unmended": relative_error(error, known.held),
        "component_errors": np.sqrt(remaining.mean(0)) / deviation,
        "fraction_exact": float(exact),
        "reached": bool(relative <= tolerance and exact <= MOST_EXACT),
    }


def _write_map(
    embedder: Embedder, name: str, found: dict[str, Any], tolerance: float
) -> dict[str, Any]:
    """Compute a map's arrays from its regression, write them, and return its rules."""
    store, work, ridge = embedder.store, found["training"], found["ridge"]
    m = len(work.points)
    tasks = _spans(embedder, 0, m, len(work.latents))
    parts = embedder.workers.gather(readout_block, work, tasks)

    def gather(key: str) -> np.ndarray:
        values = [part[key][: part["n_values"]] for part in parts]
        hidden = [part[key][part["n_values"] :] for part in parts]
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
        "training_volumes": work.n,
        "tolerance": tolerance,
        "reached": found["reached"],
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
    """Fingerprint of all that a reduced map depends on."""
    return embedder.fingerprint("map", settings.tolerance, settings.seed)


def ensure_map(embedder: Embedder, settings: EmbedSettings) -> dict[str, Any]:
    """The record of the run's map; it is built where there is none of these settings."""
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


# -- what workers do


@dataclass(frozen=True)
class Training:
    """Latents whose coordinates are known, and the points that a map is built from.

    Attributes
    ----------
    projection
    latents : (n + k, zdim) float32
        Latents of the n particles to train with, then of the k held out.
    n
        Number of particles to train with.
    points : (m, 3) float32
    weights : (n, r) float64 or None
        Weights of the regression, once they are known.
    scales
        Factors of the field's and of the hidden layer's part of the kernel.
    """

    projection: Projection
    latents: np.ndarray
    n: int
    points: np.ndarray
    weights: np.ndarray | None = None
    scales: tuple[float, float] = (1.0, 1.0)

    def features(self, start: int, stop: int, hidden: bool) -> tuple[Any, Any, int]:
        """Centered features (n + k, q) of some points, their mean, the number of field values."""
        import torch

        field = field_of(self.projection.source)
        points = self.points[start:stop]
        rows = field.features(self.latents, points, len(points) if hidden else 0)
        mean = torch.cat([some.mean(0) for some in _exactly(rows[: self.n])]).to(rows.dtype)
        n_values = rows.shape[1] - hidden * len(points) * field.decoder.hidden_size
        rows -= mean
        return rows, mean, n_values


def _exactly(rows: Any) -> Iterator[Any]:
    """Yield columns of features (n, q) in float64, a few at a time, as a whole block is large."""
    size = max(1, EXACT_BYTES // (8 * len(rows)))
    for start, stop in batches(rows.shape[1], size):
        yield rows[:, start:stop].double()


def energy_of(projection: Projection, latents: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Variance (m,) float64 of the field over latents at points (m, 3), summed over outputs."""
    field = field_of(projection.source)
    values = field.coefficients(latents, points).double()
    return (values - values.mean(0)).square().sum((0, 2)).cpu().numpy()


def kernel_block(
    training: Training, task: tuple[int, int, bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parts of the kernel from some points, and the field there.

    Returns
    -------
    (n + k, n) float32, twice
        Inner products of the field's features, and of the hidden layer's.
    (n + k, q) float32
        The field.
    """
    rows, mean, n_values = training.features(*task)
    values, hidden = rows[:, :n_values], rows[:, n_values:]
    return (
        (values @ values[: training.n].T).float().cpu().numpy(),
        (hidden @ hidden[: training.n].T).float().cpu().numpy(),
        (values + mean[:n_values]).float().cpu().numpy(),
    )


def readout_block(training: Training, task: tuple[int, int, bool]) -> dict[str, np.ndarray]:
    """Feature means and readout of the map at some points."""
    import torch

    rows, mean, n_values = training.features(*task)
    weights = torch.from_numpy(training.weights).to(rows.device)
    readout = torch.cat([some.T @ weights for some in _exactly(rows[: training.n])])
    readout[:n_values] *= training.scales[0]
    readout[n_values:] *= training.scales[1]
    return {
        "mean": mean.cpu().numpy(),
        "readout": readout.float().cpu().numpy(),
        "n_values": np.int64(n_values),
    }
