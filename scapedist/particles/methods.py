"""Comparing all embeddings of a run with exact decoding."""

from __future__ import annotations

from typing import Any

import numpy as np

from scapedist.analysis import agreement as maths
from scapedist.analysis.placing import Volumes
from scapedist.errors import InputError, RunError
from scapedist.particles.exact import Embedder
from scapedist.particles.place import sketch_volumes
from scapedist.store import RunStore, embeddings, read_rows

CHECKED_PARTICLES = 100
"""Number of random particles on which ``analyze`` checks an approximate embedding."""
MOST_ROWS = 2000
"""Most particles among which neighbours are compared."""


def compare_methods(embedder: Embedder, n_sample: int | None, seed: int) -> dict[str, Any]:
    """Compare the embeddings and write ``crosscheck/``: sample, exact coordinates and errors.

    Parameters
    ----------
    embedder
    n_sample
        Number of particles to compare on; None for all, once these are embedded exactly.
        Particles that a map was trained with or judged by are left out.
    seed
        Seed of the sample.
    """
    store, n = embedder.store, len(embedder.latents)
    methods = [name for name in embeddings(store.beside) if name != "exact"]
    if not methods:
        raise RunError(
            f"A cross-check needs an embedding to check. {embedder.directory} has none beside "
            f"the exact one. Give `scapedist embed {embedder.directory}` first."
        )
    seen = np.zeros(0, np.int64)
    if "embedding/map" in store.beside:
        names = ("training_particle", "held_out_particle")
        seen = np.concatenate([store.read(f"embedding/map/{name}") for name in names])
    unseen = np.setdiff1d(np.arange(n), np.concatenate([seen, store.read("sketch/particle")]))
    if n_sample is None and "embedding/exact" not in store.beside:
        raise RunError(
            "A cross-check on all particles needs all of them embedded exactly. Give `scapedist "
            f"embed {embedder.directory} --method exact` first, or --sample."
        )
    if len(unseen) < 3:
        raise InputError(
            f"A cross-check needs particles that no method was trained with. There are "
            f"{len(unseen)}. Use --method exact for so few."
        )
    rows = unseen
    if n_sample is not None and n_sample < len(unseen):
        rows = np.sort(np.random.default_rng(seed).choice(unseen, n_sample, replace=False))
    exact, exact_residual = embedder.exact_rows(rows, "decoding the sample")
    store.delete("crosscheck")
    store.write("crosscheck/particle", rows, ("sample",))
    store.write("crosscheck/exact", exact.astype(np.float32), ("sample", "component"))
    results: dict[str, Any] = {"sample": len(rows), "methods": {}}
    for method in methods:
        found = read_rows(store.array(f"embedding/{method}/coordinates"), rows)
        residual = read_rows(store.array(f"embedding/{method}/residual"), rows)
        r = found.shape[1]
        beyond = exact_residual + np.square(exact[:, r:]).sum(1)
        error = maths.relative_errors(found - exact[:, :r], exact[:, :r])
        record = maths.agreement(found, exact[:, :r])
        record["residual_log_correlation"] = _log_correlation(residual, beyond)
        record["worst"] = maths.worst(error, rows)
        some = slice(None, MOST_ROWS)
        record["neighbour_overlap"] = maths.neighbour_overlap(found[some], exact[some, :r])
        if "states" in store.stages:
            volumes = sketch_volumes(store, r, with_states=True)
            record |= _states(volumes, (found, residual), (exact[:, :r], beyond), error)
        record |= _cost(store, method)
        results["methods"][method] = record
        store.write(f"crosscheck/error/{method}", error.astype(np.float32), ("sample",))
    results["exact_seconds_a_particle"] = embedder.exact_seconds_a_particle()
    return results


def _log_correlation(found: np.ndarray, exact: np.ndarray) -> float | None:
    tiny = np.finfo(np.float32).tiny
    both = np.log(np.maximum([found, exact], tiny))
    return float(np.corrcoef(both)[0, 1]) if (both.std(1) > 0).all() else None


def _states(
    volumes: Volumes,
    found: tuple[np.ndarray, np.ndarray],
    exact: tuple[np.ndarray, np.ndarray],
    error: np.ndarray,
) -> dict[str, Any]:
    """Fraction of particles whose state changes, and the errors within each state."""
    mine, states = (volumes.place(*each).state for each in (found, exact))
    return {
        "states_changed": float((mine != states).mean()),
        "error_by_state": maths.by_group(error, states, int(volumes.label.max()) + 1),
    }


def _cost(store: RunStore, method: str) -> dict[str, Any]:
    """Cost of a method, from its record."""
    results = store.beside[f"embedding/{method}"]["results"]
    cost = {"seconds_a_particle": results["seconds_a_particle"]}
    for name in ("setup_seconds", "exact_seconds", "decoded_exactly", "relative_error"):
        if name in results:
            key = "stated_relative_error" if name == "relative_error" else name
            cost[key] = results[name]
    return cost
