"""Estimates from whole arrays, made in this process or by one worker with a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from scapedist import backend
from scapedist.analysis.reduced import Ridge, fit_ridge
from scapedist.analysis.sketch import Sketch, make_sketch
from scapedist.workers.serial import Serial


def one_of(workers: Serial) -> Serial:
    """The worker that estimates: one with a GPU; on the CPU this process, with all its cores."""
    return Serial() if workers.device == "cpu" else workers


def sketch_by(workers: Serial) -> Callable[..., Sketch]:
    """Function :func:`scapedist.analysis.sketch.make_sketch`, run by a GPU where there is one."""
    if workers.device == "cpu":
        return make_sketch
    return partial(workers.call, partial(make_sketch, nearest=backend.nearest_by_gpu))


def umap_by(workers: Serial) -> Callable[[np.ndarray, int], np.ndarray]:
    """Function that makes a UMAP (n, 2) float32 of points (n, k) by a seed."""
    return partial(one_of(workers).call, _umap, workers.device)


def _umap(device: str, points: np.ndarray, seed: int) -> np.ndarray:
    return backend.umap(backend.to_device(points, device), seed)


def ridge_by(workers: Serial) -> Callable[[np.ndarray, np.ndarray], Ridge]:
    """Function that fits a ridge regression to a kernel (n, n) and targets (n, r), float64."""
    return partial(one_of(workers).call, _ridge, workers.device)


def _ridge(device: str, kernel: np.ndarray, targets: np.ndarray) -> Ridge:
    found = fit_ridge(*(backend.to_device(array, device) for array in (kernel, targets)))
    weights, mean, left_out = map(backend.to_host, (found.weights, found.mean, found.left_out))
    return Ridge(weights, mean, left_out, found.ridge)
