"""Embedding particles from a few points of their field by the reduced map, and error bars."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from scapedist.analysis.coordinates import ReducedMap
from scapedist.analysis.reduced import Calibration, FieldModel
from scapedist.errors import InputError
from scapedist.model.decoder import check_latents
from scapedist.particles.exact import WRITE_ROWS, Embedder, exact_batch
from scapedist.particles.fit_reduced import ensure_map, map_fingerprint
from scapedist.plan import batches, spread_evenly
from scapedist.settings import EmbedSettings
from scapedist.sources.decoded import field_of
from scapedist.stages.decoded_rows import Projection
from scapedist.store import Begin, RowFile
from scapedist.workers.held import Held

if TYPE_CHECKING:
    import torch

REDUCED_ROWS = {"cpu": 512, "cuda": 4096}
"""Number of particles per batch of the reduced embedding."""
POSTERIOR_ROWS = {"cpu": 64, "cuda": 512}
"""Number of particles per batch of error bars."""
COVARIANCE_COMPONENTS = 10
"""Number of leading coordinates whose posterior covariance is computed."""


def _read_map(projection: Projection) -> ReducedMap:
    import torch

    place = f"embedding/{projection.map_name}"

    def array(name: str) -> np.ndarray:
        return projection.reader.read(f"{place}/{name}")

    def model(name: str) -> FieldModel:
        names = ("basis", "mean", "center", "weight")
        return FieldModel(*(projection.on_device(array(f"{name}/{key}")) for key in names))

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(array(name)).to(projection.source.device)

    rules = projection.reader.attributes(place)["rules"]
    return ReducedMap(
        points=array("points"),
        n_hidden=int(rules["n_hidden"]),
        feature_mean=tensor("feature_mean"),
        readout=tensor("readout"),
        offset=tensor("offset"),
        of_sketch=model("field_of_sketch"),
        of_training=model("field_of_training"),
        calibration=Calibration(**rules["calibration"]),
    )


map_of = Held(_read_map)
"""The reduced map of a projection in this process, read once."""


def reduced_batch(projection: Projection, latents: np.ndarray) -> np.ndarray:
    """Coordinates of latents (b, zdim) from the field at a few points.

    Returns
    -------
    (b, r + 2) float32
        Coordinates, residual (squared norm), and expected error (norm).
    """
    return map_of(projection).evaluate(field_of(projection.source), latents)


Posterior = tuple[np.ndarray, np.ndarray, int]
"""Latent means and standard deviations, both (b, zdim) float32, and the number k of components."""


def posterior_batch(projection: Projection, task: Posterior) -> np.ndarray:
    """Covariance (b, k, k) of uncertain latents' leading coordinates, by the reduced map."""
    return covariance_of(partial(reduced_batch, projection), *task)


def exact_posterior(projection: Projection, task: Posterior) -> np.ndarray:
    """Covariance (b, k, k) of uncertain latents' leading coordinates, by exact decoding."""
    return covariance_of(partial(exact_batch, projection), *task)


def covariance_of(
    embed: Callable[[np.ndarray], np.ndarray], means: np.ndarray, deviations: np.ndarray, k: int
) -> np.ndarray:
    """Covariance (b, k, k) float32 of the leading coordinates that ``embed`` gives.

    The posterior is Gaussian with a diagonal covariance; each of its axes is followed for one
    standard deviation to both sides, and the differences of coordinates are what a derivative
    there would give.
    """
    b, zdim = means.shape
    steps = deviations[:, :, None] * np.eye(zdim, dtype=np.float32)
    both = np.concatenate([means[:, None] + steps, means[:, None] - steps], 1)
    found = embed(both.reshape(-1, zdim).astype(np.float32))[:, :k].astype(np.float64)
    plus, minus = np.split(found.reshape(b, 2 * zdim, k), 2, axis=1)
    differences = (plus - minus) / 2
    return np.einsum("bik,bil->bkl", differences, differences).astype(np.float32)


# -- all particles


def embed_reduced(
    embedder: Embedder,
    settings: EmbedSettings,
    components: int,
    strict: bool,
    begin: Begin,
) -> dict[str, Any]:
    """Embed all particles by the reduced map, but exactly those that it is unsure of."""
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
    n = len(embedder.latents)
    file = RowFile(
        embedder.directory / "embedding.reduced.rows",
        map_fingerprint(embedder, settings),
        embedder.r + 2,
    )
    started = time.perf_counter()
    todo = file.missing(np.arange(n))
    size = REDUCED_ROWS[embedder.workers.device]
    embedder.fill(file, todo, reduced_batch, embedder.projection, size, "embedding, reduced")
    seconds = time.perf_counter() - started
    errors = (file.read(np.arange(start, stop))[:, -1] for start, stop in batches(n, WRITE_ROWS))
    flagged = np.flatnonzero(np.concatenate(list(errors)) > rules["threshold"])
    embedder.exact_rows(flagged, "decoding uncertain ones")
    seconds_exact = time.perf_counter() - started - seconds

    def blocks() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        r = embedder.r
        for start, stop in batches(n, WRITE_ROWS):
            rows = file.read(np.arange(start, stop))
            here = flagged[(flagged >= start) & (flagged < stop)]
            error = rows[:, r + 1].copy()
            exact = np.zeros(stop - start, bool)
            exact[here - start] = True
            coordinates, residual = embedder.exact_rows(here, "")
            rows[exact, :r], rows[exact, r], error[exact] = coordinates, residual, 0
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
        "decoded_exactly": len(flagged),
        "setup_seconds": rules["seconds"],
        "exact_seconds": round(seconds_exact, 3),
        "seconds_a_particle": seconds * embedder.workers.n_workers / max(len(todo), 1),
    }


def _error_bars(embedder: Embedder) -> dict[str, Any]:
    """Write the covariance of each particle's leading coordinates under its latent's posterior."""
    deviations = np.sqrt(embedder.model.posterior_variance())
    n, k = len(deviations), min(COVARIANCE_COMPONENTS, embedder.r)
    coarse = embedder.variant(map_name="coarse")
    file = RowFile(
        embedder.directory / "embedding.posterior.rows",
        embedder.fingerprint("posterior", embedder.store.beside["embedding/map"]["fingerprint"]),
        k * k,
    )
    embedder.fill(
        file,
        file.missing(np.arange(n)),
        posterior_batch,
        coarse,
        POSTERIOR_ROWS[embedder.workers.device],
        "error bars",
        lambda rows: (embedder.latents[rows], deviations[rows], k),
    )
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
    sample = spread_evenly(n, 8)
    tasks = [(embedder.latents[[row]], deviations[[row]], k) for row in sample]
    found = embedder.workers.gather(exact_posterior, embedder.projection, tasks)
    exact = np.concatenate(found)
    mine = file.read(sample).reshape(-1, k, k)
    error = np.linalg.norm(mine - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
    return {
        "posterior_deviation": np.sqrt(variances / n).tolist(),
        "covariance_relative_error": float(np.sqrt(np.square(error).mean())),
    }


def apply_map(embedder: Embedder, latents: np.ndarray) -> dict[str, np.ndarray]:
    """Coordinates, residuals and expected errors of any latents (n, zdim) by the run's map."""
    latents = check_latents(np.asarray(latents, np.float32), embedder.latents.shape[1])
    spans = batches(len(latents), REDUCED_ROWS[embedder.workers.device])
    tasks = [latents[start:stop] for start, stop in spans]
    rows = np.concatenate(embedder.workers.gather(reduced_batch, embedder.projection, tasks))
    return {
        "coordinates": rows[:, : embedder.r],
        "residual": rows[:, embedder.r],
        "error": rows[:, embedder.r + 1],
    }
