"""What a GPU does otherwise than the CPU, as far as the CPU can show it; the rest on a GPU."""

import os
import threading
import time
import tracemalloc

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist, squareform

from scapedist import backend
from scapedist.analysis.eigen import leading_eigenpairs
from scapedist.analysis.gram import fit_components, gram_matrix
from scapedist.analysis.linkage import LINKAGES, nearest_neighbor_chain
from scapedist.analysis.reduced import fit_ridge
from scapedist.analysis.sketch import make_sketch


def on(device, array):
    """A copy of an array on a device: what is computed in its place leaves the array alone."""
    return backend.to_device(array.copy(), device)


def needs_cuml(device):
    if device == "cuda":
        pytest.importorskip("cuml")


def points(n=300, k=6, seed=0):
    """Points in a few groups of different size and width, (n, k) float64."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((5, k)) * 8
    return centers[rng.integers(5, size=n)] + rng.standard_normal((n, k)) * rng.random((n, 1))


# -- linkage


@pytest.mark.parametrize("method", LINKAGES)
@pytest.mark.parametrize("n", [2, 3, 4, 30, 500])
def test_the_chain_merges_as_scipy_does(device, method, n):
    distances = pdist(points(n, seed=n))
    wanted = linkage(distances, method)
    found = nearest_neighbor_chain(on(device, squareform(distances) ** 2), method)
    np.testing.assert_array_equal(found[:, [0, 1, 3]], wanted[:, [0, 1, 3]])
    np.testing.assert_allclose(found[:, 2], wanted[:, 2], rtol=1e-9)


@pytest.mark.parametrize("method", LINKAGES)
def test_the_chain_ends_where_distances_are_equal(device, method):
    """Ties have more than one right tree: heights are the same in all of these for single."""
    grid = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), -1).reshape(-1, 2)
    distances = pdist(grid)
    found = nearest_neighbor_chain(on(device, squareform(distances) ** 2), method)
    assert found[-1, 3] == len(grid)
    assert (np.diff(found[:, 2]) >= 0).all()
    if method == "single":
        np.testing.assert_allclose(found[:, 2], linkage(distances, method)[:, 2])


# -- estimators


def test_nearest_centers_are_those_of_a_tree(device):
    some, centers = points(1000, seed=1), points(40, seed=2)
    distance, number = backend.nearest_by_products(on(device, centers), on(device, some))
    wanted, nearest = cKDTree(centers).query(some)
    np.testing.assert_array_equal(number, nearest)
    np.testing.assert_allclose(distance, wanted, rtol=1e-9, atol=1e-12)


def test_nearest_centers_block_by_block(device, monkeypatch):
    some, centers = points(100, seed=1), points(23, seed=2)
    centers[[4, 9, 21]] = centers[[0, 1, 2]] = some[:3]
    whole = backend.nearest_by_products(on(device, centers), on(device, some))
    np.testing.assert_array_equal(whole[1][:3], [0, 1, 2])  # of equal ones the first
    assert not whole[0][:3].any()
    monkeypatch.setattr(backend, "PRODUCTS", {"cpu": (9, 5), "cuda": (9, 5)})
    parts = backend.nearest_by_products(on(device, centers), on(device, some))
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_array_equal(whole[0], parts[0])


def test_nearest_centers_take_no_memory_of_all_distances():
    some, centers = points(20_000, 3, seed=1), points(4000, 3, seed=2)
    tracemalloc.start()
    backend.nearest_by_products(centers, some)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (8 + 4 * os.cpu_count()) * 2**20  # all distances are 610 MiB


@pytest.mark.parametrize("method", ["kmeans", "uniform", "geometric"])
def test_a_sketch_by_all_distances_is_the_same(method):
    latents = points(2000, 4, seed=3).astype(np.float32)
    wanted = make_sketch(latents, 50, method, seed=4)
    found = make_sketch(latents, 50, method, 4, nearest=backend.nearest_by_products)
    np.testing.assert_array_equal(found.particle, wanted.particle)
    np.testing.assert_array_equal(found.assignment, wanted.assignment)


def test_kmeans_finds_the_groups(device):
    needs_cuml(device)
    some = points(400, seed=5)
    centers, labels = backend.kmeans(on(device, some), 5, seed=0, max_iterations=100, n_starts=5)
    own = np.linalg.norm(some - centers[labels], axis=1)
    every = np.linalg.norm(some[:, None] - centers[None], axis=2)
    np.testing.assert_allclose(own, every.min(1), rtol=1e-5)
    for k in range(5):
        np.testing.assert_allclose(centers[k], some[labels == k].mean(0), rtol=1e-4, atol=1e-4)


def test_hdbscan_leaves_out_what_is_in_no_group(device):
    needs_cuml(device)
    rng = np.random.default_rng(0)
    tight = np.concatenate([rng.standard_normal((40, 3)) * 0.1 + k * 10 for k in range(3)])
    far = rng.random((6, 3)) * 200 + 100
    labels = backend.hdbscan(on(device, np.concatenate([tight, far])), 10)
    assert labels[-6:].tolist() == [-1] * 6
    assert [len(np.unique(labels[40 * k : 40 * k + 40])) for k in range(3)] == [1, 1, 1]
    assert len(np.unique(labels)) == 4


# -- linear algebra


def test_eigenpairs_and_ridge(device):
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((200, 500)) * np.logspace(0, -3, 500)
    kernel, targets = rows @ rows.T, rng.standard_normal((200, 3))
    values, vectors = map(backend.to_host, leading_eigenpairs(on(device, kernel), 10))
    exact = np.linalg.eigvalsh(kernel)[::-1][:10]
    np.testing.assert_allclose(values, exact, rtol=1e-10)
    np.testing.assert_allclose(kernel @ vectors, vectors * values, atol=1e-9 * exact[0])
    ours, wanted = fit_ridge(on(device, kernel), on(device, targets)), fit_ridge(kernel, targets)
    assert ours.ridge == pytest.approx(wanted.ridge)
    np.testing.assert_allclose(backend.to_host(ours.weights), wanted.weights, rtol=1e-6, atol=1e-9)


def test_components_from_tiles(device):
    rng = np.random.default_rng(2)
    rows = (rng.standard_normal((60, 4000)) * 0.1 + rng.random(4000) * 50).astype(np.float32)

    def read(start, stop):
        return on(device, rows[start:stop])

    gram = gram_matrix(read, len(rows), 17)
    centered = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    np.testing.assert_allclose(gram.matrix, centered @ centered.T, atol=1e-9)
    np.testing.assert_allclose(gram.mean, rows.mean(0, dtype=np.float64), rtol=1e-12)
    fitted = fit_components(gram, read, 17, 5)
    _, singular, wanted = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(fitted.variance, singular[:5] ** 2 / 59, rtol=1e-9)
    np.testing.assert_allclose(np.abs(fitted.vectors @ wanted[:5].T), np.eye(5), atol=1e-6)


def test_sums_do_not_depend_on_who_is_done_first():
    """Tiles that come back in another order give the same bytes."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((90, 500)).astype(np.float32)

    def backwards(work, shared, tasks):
        for number in reversed(range(len(tasks))):
            yield number, work(shared, tasks[number])

    def read(start, stop):
        return rows[start:stop]

    here, there = (gram_matrix(read, 90, 7, *run) for run in ((), (backwards,)))
    assert here.matrix.tobytes() == there.matrix.tobytes()
    assert here.mean.tobytes() == there.mean.tobytes()
    ours, theirs = (fit_components(here, read, 7, 4, *run) for run in ((), (backwards,)))
    assert ours.vectors.tobytes() == theirs.vectors.tobytes()


# -- arrays on their way to the disk


@pytest.mark.parametrize("n_threads", [0, 3])
def test_an_outbox_keeps_the_order(device, n_threads):
    if device == "cuda" and not n_threads:
        pytest.skip("volumes of a GPU are written by threads")
    used_by = set()

    def use(values, number):
        used_by.add(threading.current_thread())
        time.sleep(0.002 * (int(number[0]) % 3))
        return values.sum() + number

    with backend.Outbox(n_threads) as outbox:
        for number in range(20):
            values = np.full(1000, number, np.float32)
            outbox.put((on(device, values), on(device, np.float64([number])[0:1])), use)
        found = np.array(outbox.results())
    np.testing.assert_array_equal(found.ravel(), 1001.0 * np.arange(20))
    assert (threading.current_thread() in used_by) == (n_threads == 0)


@pytest.mark.parametrize("n_threads", [0, 3])
def test_an_outbox_tells_of_the_first_failure(n_threads):
    def use(number):
        if number[0] >= 5:
            raise OSError(f"no room for {int(number[0])}")

    def send_all():
        with backend.Outbox(n_threads) as outbox:
            for number in range(40):
                outbox.put((np.array([number]),), use)
            outbox.results()

    with pytest.raises(OSError, match="no room for 5"):
        send_all()
