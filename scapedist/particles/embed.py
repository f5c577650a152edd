"""Embedding all particles: exactly, from a few points of their field, or by the paper's MLP."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from scapedist.analysis.agreement import relative_error
from scapedist.errors import InputError
from scapedist.particles.exact import WRITE_ROWS, Embedder, exact_batch
from scapedist.particles.fit_reduced import HELD_OUT
from scapedist.particles.reduced import embed_reduced
from scapedist.plan import batches, spread_evenly
from scapedist.settings import EmbedSettings
from scapedist.stages.decoded_rows import Projection, masked_batch
from scapedist.stages.stored_rows import sketch_voxels
from scapedist.store import Begin, RowFile

FEW_PARTICLES = 2000
"""Most particles that ``analyze`` embeds exactly unless another method is asked for."""
MLP_VARIANTS = {"paper": (50, 1e-3), "cryodrgn": (200, 1e-4)}
"""Epochs and learning rate of each variant of the MLP."""


def embedding_of(
    method: str | None, n_particles: int, error_bars: bool, clip_negative: bool
) -> str:
    """The method that embeds all particles: the one asked for, or the usual one."""
    if method is not None:
        return method
    if clip_negative:
        return "none"
    return "exact" if n_particles <= FEW_PARTICLES and not error_bars else "reduced"


def embed_method(settings: EmbedSettings) -> str:
    """The name under which a method's results are stored."""
    return settings.method if settings.box_size is None else f"exact_{settings.box_size}"


def embed_particles(
    embedder: Embedder, settings: EmbedSettings, strict: bool, begin: Begin
) -> dict[str, Any]:
    """Embed all particles by a method and write its results."""
    components = settings.components or embedder.r
    if components > embedder.r:
        raise InputError(
            f"An embedding has at most as many components as were fitted, {embedder.r}. "
            f"{components} were asked for. Give `scapedist pca {embedder.directory} "
            f"--components {components}` first."
        )
    if settings.error_bars:
        embedder.model.posterior_variance()
    embedder.check_decoder()
    if settings.box_size is not None:
        return _embed_low_pass(embedder, settings, components, begin)
    if settings.method == "exact":
        return _embed_exact(embedder, components, begin)
    if settings.method == "mlp":
        return _embed_mlp(embedder, settings, components, begin)
    return embed_reduced(embedder, settings, components, strict, begin)


# -- exact


def _embed_exact(embedder: Embedder, components: int, begin: Begin) -> dict[str, Any]:
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
    embedder: Embedder, settings: EmbedSettings, components: int, begin: Begin
) -> dict[str, Any]:
    """Embed from a smaller box's frequencies, adding the mean of what these miss."""
    store, source = embedder.store, embedder.projection.source
    box = settings.box_size
    assert box is not None
    if box % 2 or not 2 <= box < source.box_size:
        raise InputError(
            f"A smaller box is even and below that of the volumes, {source.box_size}. --box-size "
            f"is {box}."
        )
    begin()
    projection = embedder.variant(low_pass=box)
    sketch = store.read("sketch/particle")
    rows = spread_evenly(len(sketch), 64)
    tasks = [
        embedder.latents[sketch[rows[a:b]]] for a, b in batches(len(rows), embedder.batch_size)
    ]
    low = np.concatenate(embedder.workers.gather(masked_batch, projection, tasks))
    gap = sketch_voxels(store, embedder.fitted, rows) - low
    store.write("embedding/low_pass/shift", gap.mean(0, dtype=np.float64), ("voxel",))
    method, n = embed_method(settings), len(embedder.latents)
    file = RowFile(
        embedder.directory / f"embedding.{method}.rows",
        embedder.fingerprint(method),
        embedder.r + 1,
    )
    results = _decode_all(embedder, file, projection, method, components)
    held = np.random.default_rng(settings.seed).choice(n, min(n, HELD_OUT), replace=False)
    exact, _ = embedder.exact_rows(np.sort(held), "checking")
    mine = file.read(np.sort(held))[:, : embedder.r]
    return results | {"relative_error": relative_error(mine - exact, exact)}


# -- the paper's MLP


def _embed_mlp(
    embedder: Embedder, settings: EmbedSettings, components: int, begin: Begin
) -> dict[str, Any]:
    """Embed by an MLP trained on the reduced map's volumes, or on the sketch without a map."""
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
        embedder.workers.device,
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
