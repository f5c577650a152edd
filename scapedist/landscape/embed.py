"""Every particle's coordinates: exactly, from a few points of its field, or guessed by an MLP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from scapedist.analysis.crosscheck import relative_error
from scapedist.errors import InputError
from scapedist.landscape.batches import spread_evenly
from scapedist.landscape.embedder import WRITE_ROWS, Embedder
from scapedist.landscape.projection import (
    COVARIANCE_COMPONENTS,
    Projection,
    exact_batch,
    exact_posterior,
    masked_batch,
    posterior_batch,
    reduced_batch,
)
from scapedist.landscape.reduced_map import HELD_OUT, ensure_map, map_fingerprint
from scapedist.model.decoder import check_latents
from scapedist.plan import batches
from scapedist.settings import EmbedSettings
from scapedist.store import RowFile

REDUCED_ROWS = {"cpu": 512, "cuda": 4096}
"""Particles of a batch of the reduced embedding."""
POSTERIOR_ROWS = {"cpu": 64, "cuda": 512}
"""Particles of a batch of error bars."""
MLP_VARIANTS = {"paper": (50, 1e-3), "cryodrgn": (200, 1e-4)}
"""Epochs and learning rate."""


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
    if settings.error_bars:
        embedder.run.model.posterior_variance()
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
    file, projection = embedder.exact_file(), embedder.projection
    return _decode_all(embedder, file, projection, "exact", components)


def _decode_all(
    embedder: Embedder, file: RowFile, projection: Projection, method: str, components: int
) -> dict[str, Any]:
    """Decode all particles that a file does not have, and write the method's results."""
    every, started = np.arange(len(embedder.latents)), time.perf_counter()
    todo = file.missing(every)
    what = f"embedding, {method}"
    embedder.fill(file, todo, exact_batch, projection, embedder.batch_size, what)
    seconds = time.perf_counter() - started
    r = embedder.r
    blocks = (
        (start, {"coordinates": rows[:, :r], "residual": rows[:, r]})
        for start, stop in batches(len(every), WRITE_ROWS)
        for rows in (file.read(every[start:stop]),)
    )
    embedder.write(method, components, blocks)
    return {
        "particles": len(every),
        "components": components,
        "workers": embedder.workers.n_workers,
        "seconds_a_particle": seconds * embedder.workers.n_workers / max(len(todo), 1),
    }


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
    projection = embedder.variant(low_pass=box)
    sketch = store.read("sketch/particle")
    rows = spread_evenly(len(sketch), 64)
    tasks = [
        embedder.latents[sketch[rows[a:b]]] for a, b in batches(len(rows), embedder.batch_size)
    ]
    low = np.concatenate(embedder.workers.gather(masked_batch, projection, tasks))
    gap = sketch_voxels(run, embedder.fitted, rows) - low
    store.write("embedding/low_pass/shift", gap.mean(0, dtype=np.float64), ("voxel",))
    method, n = embed_method(settings), len(embedder.latents)
    file = RowFile(
        run.directory / f"embedding.{method}.rows", embedder.fingerprint(method), embedder.r + 1
    )
    results = _decode_all(embedder, file, projection, method, components)
    held = np.random.default_rng(settings.seed).choice(n, min(n, HELD_OUT), replace=False)
    exact, _ = embedder.exact_rows(np.sort(held), "checking")
    mine = file.read(np.sort(held))[:, : embedder.r]
    return results | {"relative_error": relative_error(mine - exact, exact)}


# -- reduced


def _embed_reduced(
    embedder: Embedder,
    settings: EmbedSettings,
    components: int,
    strict: bool,
    begin: Callable[[], None],
) -> dict[str, Any]:
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
        embedder.run.directory / "embedding.reduced.rows",
        map_fingerprint(embedder, settings),
        embedder.r + 2,
    )
    started = time.perf_counter()
    todo = file.missing(np.arange(n))
    size = REDUCED_ROWS[embedder.workers.device]
    embedder.fill(file, todo, reduced_batch, embedder.projection, size, "embedding, reduced")
    seconds = time.perf_counter() - started
    flagged = np.flatnonzero(file.read(np.arange(n))[:, -1] > rules["threshold"])
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
    deviations = np.sqrt(embedder.run.model.posterior_variance())
    n, k = len(deviations), min(COVARIANCE_COMPONENTS, embedder.r)
    coarse = embedder.variant(map_name="coarse")
    file = RowFile(
        embedder.run.directory / "embedding.posterior.rows",
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
        coordinates, residual = store.read("sketch/coordinates"), store.read("sketch/residual")
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
