"""Arrays, linear algebra and estimators on the CPU or a GPU, by the same calls.

This module alone imports CuPy, cuML and scikit-learn. An array says by its type where it is;
numpy's functions work on CuPy's arrays too (they dispatch), so that most code needs no more than
:func:`to_device`, :func:`to_host` and, to make arrays, :func:`array_module`.
"""

from __future__ import annotations

import functools
import os
import queue
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np

from scapedist.errors import InputError
from scapedist.plan import HOST_COPIES, batches

MOST_NEIGHBOURS = 1023
"""Most neighbours that cuML's HDBSCAN looks at."""
PRODUCTS = {"cpu": (512, 512), "cuda": (8192, 4096)}
"""Points and centers whose products are held at once: on the CPU in its cache."""


# -- arrays


def array_module(array: Any) -> Any:
    """The module, numpy or cupy, of an array."""
    if isinstance(array, np.ndarray | np.generic):
        return np
    import cupy

    return cupy.get_array_module(array)


def as_array(tensor: Any) -> Any:
    """The numpy or, on a GPU, CuPy array that shares a torch tensor's memory."""
    if tensor.device.type == "cpu":
        return tensor.numpy()
    import cupy

    return cupy.from_dlpack(tensor)


def to_device(array: Any, device: str) -> Any:
    """An array in a device's memory."""
    if device == "cpu":
        return np.asarray(array)
    import cupy

    return cupy.asarray(array)


def empty(shape: tuple[int, ...], device: str, dtype: Any = np.float64) -> Any:
    """An array in a device's memory, not filled."""
    if device == "cpu":
        return np.empty(shape, dtype)
    import cupy

    return cupy.empty(shape, dtype)


def to_host(array: Any) -> np.ndarray:
    """An array as a numpy array in host memory."""
    host: Any = array if isinstance(array, np.ndarray | np.generic) else array.get()
    return host


class Outbox:
    """Hands arrays to functions of the host, in threads, while the device computes on.

    Parameters
    ----------
    n_threads
        Number of threads; 0 to call at once, as for arrays of the CPU.
    """

    def __init__(self, n_threads: int) -> None:
        self._pool = ThreadPoolExecutor(n_threads) if n_threads else None
        self._sent: list[Future[Any]] = []
        self._done: list[Any] = []
        self._buffers: queue.SimpleQueue[dict[Any, Any]] = queue.SimpleQueue()
        for _ in range(HOST_COPIES):
            self._buffers.put({})

    def put(self, arrays: tuple[Any, ...], use: Callable[..., Any]) -> None:
        """Call ``use`` with the arrays as numpy arrays; the originals must not change meanwhile."""
        if self._pool is None:
            self._done.append(use(*map(to_host, arrays)))
            return
        buffers = self._buffers.get()  # waits while as many are on their way as may be
        ready = self._copied(arrays, buffers)
        self._sent.append(self._pool.submit(self._use, ready, arrays, buffers, use))

    def _copied(self, arrays: tuple[Any, ...], buffers: dict[Any, Any]) -> Any:
        """Begin to copy arrays from a GPU to pinned memory; return what to wait for and to keep."""
        if all(isinstance(array, np.ndarray) for array in arrays):
            return None
        import cupy
        import cupyx

        if not hasattr(self, "_stream"):
            self._stream = cupy.cuda.Stream(non_blocking=True)
        # one that is not contiguous would be copied on the device, beside this order
        arrays = tuple(cupy.ascontiguousarray(array) for array in arrays)
        self._stream.wait_event(cupy.cuda.get_current_stream().record())
        for i, array in enumerate(arrays):
            if i not in buffers or buffers[i].shape != array.shape:
                buffers[i] = cupyx.empty_pinned(array.shape, array.dtype)
            array.get(stream=self._stream, out=buffers[i], blocking=False)
        return self._stream.record(), arrays

    def _use(
        self, ready: Any, arrays: tuple[Any, ...], buffers: dict[Any, Any], use: Callable[..., Any]
    ) -> Any:
        try:
            if ready is None:
                return use(*arrays)
            ready[0].synchronize()
            return use(*(buffers[i] for i in range(len(arrays))))
        finally:
            self._buffers.put(buffers)

    def results(self) -> list[Any]:
        """Results of the calls, in the order in which arrays were put."""
        self._done += [sent.result() for sent in self._sent]
        self._sent = []
        return self._done

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def pool_bytes() -> int:
    """Bytes that are free in the pool of a GPU that RMM shares between torch and CuPy.

    RMM counts what it hands out where it is told to track allocations, as our workers do.
    """
    import rmm

    resource = rmm.mr.get_current_device_resource()
    size = used = 0
    while resource is not None:
        if hasattr(resource, "get_allocated_bytes"):
            used = max(used, int(resource.get_allocated_bytes()))
        if hasattr(resource, "pool_size"):
            size = int(resource.pool_size())
        resource = resource.get_upstream() if hasattr(resource, "get_upstream") else None
    return max(size - used, 0)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice.

    torch has a class of errors for it; where RMM allocates, it is a RuntimeError of its own text.
    """
    text = str(error).lower()
    signs = ("out of memory", "out_of_memory", "bad_alloc", "alloc_failed", "can't allocate memory")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)


def device_lost(error: BaseException) -> bool:
    """Whether an error says that a GPU answers no more, so that only other GPUs can go on.

    After such an error CUDA refuses all further work of the process.
    """
    text = str(error).lower().replace("_", " ")
    signs = (
        "fallen off the bus",
        "gpu is lost",
        "uncorrectable ecc",
        "eccuncorrectable",
        "unspecified launch failure",
        "launch failed",
        "launchfailure",
        "hardware stack error",
        "hardwarestackerror",
        "no cuda-capable device",
        "nodevice",
        "no device",
        "busy or unavailable",
        "devicesunavailable",
        "device unavailable",
    )
    return "cuda" in text and any(sign in text for sign in signs)


# -- linear algebra


def one_numpy_thread() -> AbstractContextManager[Any]:
    """Context in which numpy's linear algebra runs on one thread."""
    context: AbstractContextManager[Any] = _libraries().limit(limits=1)
    return context


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _libraries() -> Any:
    """The linear algebra libraries of this process, found once because that takes a while."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


# -- estimators


def kmeans(
    points: Any, n_clusters: int, seed: int, max_iterations: int, n_starts: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Centers and labels by Lloyd's k-means from greedy k-means++ starts, reproducible.

    Starts are drawn by scikit-learn in either case; on a GPU cuML goes on from them.

    Parameters
    ----------
    points : (n, k) float
        Points, a numpy array, or a CuPy array for cuML.
    n_clusters, seed, max_iterations, n_starts
        The best of ``n_starts`` starts is taken.

    Returns
    -------
    centers : (n_clusters, k) float64
    labels : (n,) int32

    Raises
    ------
    InputError
        Where the number of groups or the seed is impossible.
    """
    if not 1 <= n_clusters <= len(points):
        raise InputError(
            f"k-means makes from 1 to as many groups as there are points, {len(points)}. "
            f"{n_clusters} were asked for. Use --states {len(points)} or less."
        )
    if not 0 <= seed < 2**32:
        raise InputError(f"The seed of k-means is from 0 to {2**32 - 1}. It is {seed}.")
    from sklearn.cluster import KMeans, kmeans_plusplus
    from threadpoolctl import threadpool_limits

    if array_module(points) is not np:
        from cuml.cluster import KMeans as DeviceKMeans

        rng, best = np.random.RandomState(seed), None
        # cuML's tolerance is a length, so that points are brought to unit spread
        middle = points.mean(0)
        spread = float(np.sqrt(np.square(points - middle).mean())) or 1.0
        scaled = (points - middle) / spread
        host = to_host(scaled)
        for _ in range(n_starts):
            start = kmeans_plusplus(host, n_clusters, random_state=rng)[0]
            found = DeviceKMeans(
                n_clusters=n_clusters, init=start, n_init=1, max_iter=max_iterations, tol=1e-9
            )
            found.fit(scaled)
            if best is None or found.inertia_ < best.inertia_:
                best = found
        assert best is not None
        centers = to_host(best.cluster_centers_).astype(np.float64) * spread + to_host(middle)
        return centers, to_host(best.labels_).astype(np.int32)
    # one thread: scikit-learn adds the threads' partial centers in the order they finish
    with threadpool_limits(1):
        model = KMeans(
            n_clusters, n_init=n_starts, max_iter=max_iterations, random_state=seed, copy_x=False
        )
        labels = model.fit_predict(np.array(points, np.float64))
    return model.cluster_centers_, labels


def hdbscan(points: Any, least: int) -> np.ndarray:
    """Dense groups (n,) int32 of points (n, k) by HDBSCAN, -1 for none; cuML's for CuPy arrays.

    Parameters
    ----------
    points
    least
        Smallest number of points of a group; as many points, up to ``MOST_NEIGHBOURS`` and the
        point itself, tell how dense it is around a point.
    """
    neighbours = min(least - 1, MOST_NEIGHBOURS)
    if array_module(points) is not np:
        from cuml.cluster import HDBSCAN as DeviceHDBSCAN

        model = DeviceHDBSCAN(min_cluster_size=least, min_samples=neighbours)
        return to_host(model.fit_predict(points)).astype(np.int32)
    from sklearn.cluster import HDBSCAN

    # scikit-learn counts the point itself, too
    model = HDBSCAN(min_cluster_size=least, min_samples=neighbours + 1, copy=True)
    labels: np.ndarray = model.fit_predict(points)
    return labels.astype(np.int32)


def nearest_by_gpu(centers: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance and number of the center nearest to each point, computed on a GPU."""
    return nearest_by_products(to_device(centers, "cuda"), to_device(points, "cuda"))


def nearest_by_products(centers: Any, points: Any) -> tuple[np.ndarray, np.ndarray]:
    """Distance and number of the center nearest to each point, from all distances in float64.

    Half a squared distance, less what all centers share, is one product: that of the point and 1
    with minus the center and half its squared norm.

    Parameters
    ----------
    centers : (m, k) float
    points : (n, k) float
        Points, a numpy or CuPy array.

    Returns
    -------
    distance : (n,) float64
    number : (n,) int64
    """
    on_cpu = array_module(points) is np
    n_rows, n_columns = PRODUCTS["cpu" if on_cpu else "cuda"]
    centers = centers.astype(np.float64)
    origin = centers.mean(0)  # products of small numbers lose less
    centers = centers - origin
    factors = np.column_stack([-centers, np.square(centers).sum(1) / 2])
    distance, number = np.empty(len(points)), np.empty(len(points), np.int64)

    def search(span: tuple[int, int]) -> None:
        some = points[slice(*span)].astype(np.float64) - origin
        ours = np.column_stack([some, np.ones_like(some[:, 0])])
        least = nearest = None
        for first, last in batches(len(centers), n_columns):
            products = ours @ factors[first:last].T
            row = products.argmin(1)
            value = np.take_along_axis(products, row[:, None], 1)[:, 0]
            if least is not None:  # of equally near centers the first
                row = np.where(value < least, row + first, nearest)
                value = np.minimum(value, least)
            least, nearest = value, row
        number[slice(*span)] = to_host(nearest)
        distance[slice(*span)] = to_host(np.sqrt(np.square(some - centers[nearest]).sum(1)))

    # products as small as these are slower by all threads together than by each its own
    with one_numpy_thread(), ThreadPoolExecutor(available_cores()) as threads:
        for _ in (threads.map if on_cpu else map)(search, batches(len(points), n_rows)):
            pass
    return distance, number


def umap(points: Any, seed: int) -> np.ndarray:
    """UMAP (n, 2) float32 of points (n, k), by cuML for CuPy arrays and umap-learn for others.

    Raises
    ------
    InputError
        Where the package is not installed.
    """
    options = {"n_components": 2, "n_neighbors": min(15, len(points) - 1), "random_state": seed}
    if array_module(points) is not np:
        from cuml.manifold import UMAP as DeviceUMAP

        return to_host(DeviceUMAP(**options).fit_transform(points))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # umap tells of optional packages and of its own habits
            from umap import UMAP  # seconds to import: only where it is wanted

            found: np.ndarray = UMAP(**options, n_jobs=1).fit_transform(points)
            return found
    except ImportError:
        raise InputError(
            "A UMAP of the latents needs the package umap-learn. It is not installed. "
            "Install it (pip install 'scapedist[umap]'), or make the report without UMAP."
        ) from None
