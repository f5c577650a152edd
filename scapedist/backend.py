"""Estimators and linear algebra on the CPU; the one place that imports scikit-learn."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from scapedist.errors import InputError


def kmeans(
    points: np.ndarray, n_clusters: int, seed: int, max_iterations: int, n_starts: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's k-means from a greedy k-means++ start (scikit-learn), the same at every call.

    Parameters
    ----------
    points : (n, k) float
    n_clusters, seed, max_iterations, n_starts
        The best of ``n_starts`` starts is taken.

    Returns
    -------
    centers : (n_clusters, k) float64
    labels : (n,) int32

    Raises
    ------
    InputError
        Where the number of groups or the seed cannot be.
    """
    if not 1 <= n_clusters <= len(points):
        raise InputError(
            f"k-means makes from 1 to as many groups as there are points, {len(points)}. "
            f"{n_clusters} were asked for. Use --states {len(points)} or less."
        )
    if not 0 <= seed < 2**32:
        raise InputError(f"The seed of k-means is from 0 to {2**32 - 1}. It is {seed}.")
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # one thread: scikit-learn adds the threads' partial centers in the order they finish
    with threadpool_limits(1):
        model = KMeans(
            n_clusters, n_init=n_starts, max_iter=max_iterations, random_state=seed, copy_x=False
        )
        labels = model.fit_predict(np.array(points, np.float64))
    return model.cluster_centers_, labels


def one_numpy_thread() -> AbstractContextManager[Any]:
    """Numpy's linear algebra on one thread, while the context lasts."""
    context: AbstractContextManager[Any] = _libraries().limit(limits=1)
    return context


@functools.cache
def _libraries() -> Any:
    """The linear algebra libraries of this process; finding them takes a while."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def leading_eigenpairs(matrix: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n largest eigenvalues, descending, and eigenvectors of a symmetric matrix.

    Small matrices and large fractions of the spectrum are solved in full (LAPACK); a few pairs
    of a large matrix by Lanczos iteration (ARPACK) from a fixed start.

    Parameters
    ----------
    matrix : (m, m) float64
    n
        At most m.

    Returns
    -------
    values : (n,) float64
    vectors : (m, n) float64
    """
    size = len(matrix)
    if size <= 3000 or n > size // 10:
        from scipy.linalg import eigh

        values, vectors = eigh(matrix, subset_by_index=(size - n, size - 1))
    else:
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(0).standard_normal(size)
        values, vectors = eigsh(matrix, k=n, which="LA", v0=start, tol=1e-12)
    order = np.argsort(values)[::-1]
    return values[order], vectors[:, order]
