"""How well an embedding agrees with the exact one, on particles that have both."""

from __future__ import annotations

from typing import Any

import numpy as np

QUANTILES = (0.5, 0.9, 0.99, 1.0)
NEIGHBOURS = 10
WORST = 10


def agreement(found: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Agreement of coordinates, per component and overall.

    Parameters
    ----------
    found, exact : (n, r) float
        Coordinates by a method, and exactly.

    Returns
    -------
    dict
        ``r2`` (list of r): 1 - squared error / variance of each component; ``relative_error``:
        root mean square error over all components, relative to the total standard deviation;
        ``error_quantiles`` (median, 90 %, 99 %, largest) of the particles' errors, and
        ``component_error_quantiles`` of each component's absolute errors, both relative likewise.
    """
    error = found.astype(np.float64) - exact
    variance = np.var(exact, axis=0, dtype=np.float64)
    total = float(np.sqrt(max(variance.sum(), np.finfo(float).tiny)))
    norms = np.linalg.norm(error, axis=1) / total
    explained = 1 - np.square(error).mean(0) / np.maximum(variance, np.finfo(float).tiny)
    return {
        "r2": explained.tolist(),
        "relative_error": relative_error(error, exact),
        "error_quantiles": np.quantile(norms, QUANTILES).tolist(),
        "component_error_quantiles": (
            np.quantile(np.abs(error) / total, QUANTILES, axis=0).T.tolist()
        ),
    }


def relative_error(error: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square norm of errors (n, r), relative to the total standard deviation."""
    total = np.var(exact, axis=0, dtype=np.float64).sum()
    squared = np.square(error.astype(np.float64)).sum(1).mean()
    return float(np.sqrt(squared / max(total, np.finfo(float).tiny)))


def neighbour_overlap(found: np.ndarray, exact: np.ndarray, k: int = NEIGHBOURS) -> float | None:
    """Mean share of the k nearest neighbours of each row (n, r) that two embeddings have alike."""
    from scipy.spatial import cKDTree

    k = min(k, len(exact) - 1)
    if k < 1:
        return None
    ours = cKDTree(found).query(found, k + 1)[1]
    theirs = cKDTree(exact).query(exact, k + 1)[1]
    shares = [
        len(set(mine.tolist()) & set(other.tolist()) - {row}) / k
        for row, (mine, other) in enumerate(zip(ours, theirs, strict=True))
    ]
    return float(np.mean(shares))


def worst(error: np.ndarray, particles: np.ndarray, n: int = WORST) -> list[dict[str, Any]]:
    """The particles (m,) with the largest errors (m,), largest first."""
    order = np.argsort(-error, kind="stable")[:n]
    return [{"particle": int(particles[i]), "error": float(error[i])} for i in order]


def by_group(error: np.ndarray, groups: np.ndarray, n_groups: int) -> list[float | None]:
    """Root mean square of errors (m,) in each group (m,) 0 to n_groups - 1; None for empty ones."""
    counts = np.bincount(groups, minlength=n_groups)
    sums = np.bincount(groups, np.square(error), minlength=n_groups)
    return [
        float(np.sqrt(total / count)) if count else None
        for total, count in zip(sums, counts, strict=True)
    ]
