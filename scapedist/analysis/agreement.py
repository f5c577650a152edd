"""Agreement of an embedding with the exact one, on particles that have both."""

from __future__ import annotations

from typing import Any

import numpy as np

QUANTILES = (0.5, 0.9, 0.99, 1.0)
NEIGHBOURS = 10
WORST = 10


def agreement(found: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Agreement of a method's coordinates with the exact ones, per component and overall.

    Parameters
    ----------
    found, exact : (n, r) float
        Coordinates found by a method, and the exact ones.

    Returns
    -------
    dict
        ``r2`` (list of r): 1 - squared error / variance of each component; ``relative_error``:
        root mean square error over all components, relative to the total standard deviation;
        ``error_quantiles`` (median, 90 %, 99 %, largest) of the particles' errors, and
        ``component_error_quantiles`` of each component's absolute errors, both relative likewise.
    """
    tiny = np.finfo(float).tiny
    error = found.astype(np.float64) - exact
    explained = 1 - np.square(error).mean(0) / np.maximum(np.var(exact, 0, np.float64), tiny)
    quantiles = np.quantile(np.abs(error) / total_deviation(exact), QUANTILES, axis=0)
    return {
        "r2": explained.tolist(),
        "relative_error": relative_error(error, exact),
        "error_quantiles": np.quantile(relative_errors(error, exact), QUANTILES).tolist(),
        "component_error_quantiles": quantiles.T.tolist(),
    }


def total_deviation(exact: np.ndarray) -> float:
    """Total standard deviation of coordinates (n, r), above zero."""
    variance = np.var(exact, axis=0, dtype=np.float64).sum()
    return float(np.sqrt(max(variance, np.finfo(float).tiny)))


def relative_errors(error: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Norms (n,) of errors (n, r), relative to the total standard deviation."""
    norms: np.ndarray = np.linalg.norm(error.astype(np.float64), axis=1)
    return norms / total_deviation(exact)


def relative_error(error: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square norm of errors (n, r), relative to the total standard deviation."""
    return float(np.sqrt(np.square(relative_errors(error, exact)).mean()))


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
    """Root mean square of errors (m,) per group 0 to n_groups - 1; None for empty groups."""
    counts = np.bincount(groups, minlength=n_groups)
    sums = np.bincount(groups, np.square(error), minlength=n_groups)
    return [
        float(np.sqrt(total / count)) if count else None
        for total, count in zip(sums, counts, strict=True)
    ]
