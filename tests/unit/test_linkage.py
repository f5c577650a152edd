"""Linkage and cutting against scikit-learn's and SciPy's own."""

import tracemalloc

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from scapedist.analysis.gram import gram_matrix
from scapedist.analysis.linkage import (
    LINKAGES,
    cut,
    link,
    nearest_neighbor_chain,
    two_level,
    ward_of_points,
)
from scapedist.backend import nearest_by_products
from scapedist.errors import InputError

N = 60


@pytest.fixture(scope="module")
def volumes():
    """Rows (60, 300) float32 in a few loose groups, with a large common mean."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(5, 300))
    rows = centers[rng.integers(0, 5, N)] + 0.6 * rng.normal(size=(N, 300))
    return (100 + rows).astype(np.float32)


@pytest.fixture(scope="module")
def squared_distances(volumes):
    return gram_matrix(lambda start, stop: volumes[start:stop], N, 16).squared_distances


@pytest.mark.parametrize("n_states", [1, 2, 3, 7, 20, N - 1, N])
@pytest.mark.parametrize("method", LINKAGES)
def test_states_are_those_of_sklearn(volumes, squared_distances, method, n_states):
    labels = cut(link(squared_distances, method), n_states)
    model = AgglomerativeClustering(n_states, linkage=method)
    theirs = model.fit_predict(volumes.astype(np.float64))
    assert adjusted_rand_score(labels, theirs) == 1
    assert len(set(labels)) == n_states


@pytest.mark.parametrize("method", LINKAGES)
def test_the_tree_is_scipys_on_the_volumes_themselves(volumes, squared_distances, method):
    tree = link(squared_distances, method)
    exact = linkage(volumes.astype(np.float64), method)
    np.testing.assert_array_equal(tree[:, [0, 1, 3]], exact[:, [0, 1, 3]])
    np.testing.assert_allclose(tree[:, 2], exact[:, 2], rtol=1e-10)


@pytest.mark.parametrize("method", LINKAGES)
def test_cuts_are_scipys(squared_distances, method):
    tree = link(squared_distances, method)
    for n_states in range(1, N + 1):
        theirs = fcluster(tree, n_states, "maxclust")
        assert adjusted_rand_score(cut(tree, n_states), theirs) == 1


@pytest.mark.parametrize("method", LINKAGES)
@pytest.mark.parametrize("case", ["all alike", "a grid", "duplicates"])
def test_exactly_as_many_states_as_asked_for(method, case):
    """fcluster gives fewer where merges tie; here every number can be had."""
    points = {
        "all alike": np.zeros((12, 2)),
        "a grid": np.stack(np.meshgrid(range(4), range(3)), -1).reshape(12, 2) * 1.0,
        "duplicates": np.repeat(np.random.default_rng(1).normal(size=(4, 2)), 3, axis=0),
    }[case]
    tree = link(cdist(points, points, "sqeuclidean"), method)
    for n_states in range(1, 13):
        labels = cut(tree, n_states)
        assert labels.dtype == np.int32
        assert labels.shape == (12,)
        first = [np.flatnonzero(labels == state)[0] for state in range(n_states)]
        assert first == sorted(first)  # numbered by their first member, none empty
        assert labels.max() == n_states - 1


@pytest.mark.parametrize("method", LINKAGES)
def test_more_states_split_states(squared_distances, method):
    tree = link(squared_distances, method)
    for n_states in range(1, N):
        coarse, fine = cut(tree, n_states), cut(tree, n_states + 1)
        assert len(set(zip(coarse, fine, strict=True))) == n_states + 1


def test_a_long_chain():
    """A tree as deep as there are volumes."""
    points = np.cumsum(np.arange(2000.0))[:, None]
    labels = cut(link(cdist(points, points, "sqeuclidean"), "single"), 3)
    assert np.bincount(labels).tolist() == [1998, 1, 1]


@pytest.mark.parametrize("n_states", [-1, 0, 13, 1000])
def test_impossible_numbers(n_states):
    tree = link(cdist(*[np.random.default_rng(2).normal(size=(12, 3))] * 2, "sqeuclidean"))
    with pytest.raises(InputError, match=f"{n_states} states were asked for, there are 12"):
        cut(tree, n_states)


def test_an_unknown_method():
    with pytest.raises(InputError, match="average, ward, complete, single. It is 'centroid'"):
        link(np.zeros((3, 3)), "centroid")


# -- many volumes


def grouped(n, k=6, seed=3):
    """Points (n, 8) in k groups, and their groups."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, k, n)
    return (rng.normal(size=(k, 8)) * 6)[group] + rng.normal(size=(n, 8)), group


@pytest.mark.parametrize("n", [2, 3, 10, 61, 700])
def test_ward_from_points_is_scipys(n):
    points = grouped(n)[0] + 100
    tree, exact = ward_of_points(points, 2**16), linkage(points, "ward")
    np.testing.assert_array_equal(tree[:, [0, 1, 3]], exact[:, [0, 1, 3]])
    np.testing.assert_allclose(tree[:, 2], exact[:, 2], rtol=1e-10)


@pytest.mark.parametrize(
    "points",
    [
        np.stack(np.meshgrid(range(6), range(6)), -1).reshape(-1, 2) * 1.0,
        np.repeat(grouped(9)[0], 4, axis=0),
        np.zeros((20, 3)),
        np.cumsum(np.arange(300.0))[:, None],
    ],
    ids=["grid", "duplicates", "all alike", "chain"],
)
def test_ward_from_points_that_tie(points):
    """Where distances are equal the merges may differ, but it ends, and no state gets lost."""
    tree = ward_of_points(points, 2**16)
    assert np.array_equal(np.sort(tree[:, :2].ravel()), np.arange(2 * len(points) - 2))
    assert tree[-1, 3] == len(points)
    assert (np.diff(tree[:, 2]) >= 0).all()
    for n_states in (1, 2, len(points)):
        assert len(set(cut(tree, n_states))) == n_states


def test_ward_holds_no_matrix_of_all_pairs():
    points = grouped(3000)[0]
    tracemalloc.start()
    ward_of_points(points, 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20  # of the distances alone, float64 has 69 MiB


@pytest.mark.parametrize("method", LINKAGES)
def test_two_levels_find_the_groups(method):
    points, group = grouped(900)
    both = two_level(points, method, 120, nearest_by_products, seed=0)
    assert both.micro.shape == (900,)
    assert len(both.tree) == both.micro.max()
    labels = both.cut(6)
    assert adjusted_rand_score(labels, group) > 0.99
    assert labels[0] == 0  # numbered by their first member


@pytest.mark.parametrize("method", LINKAGES)
def test_two_levels_of_points_whose_distances_round(method):
    """Far from the origin; were a distance not the same both ways, the chain would not end."""
    points = np.random.default_rng(0).normal(size=(300, 50))
    near = two_level(points, method, 75, nearest_by_products, 0)
    far = two_level(points + 100, method, 75, nearest_by_products, 0)
    np.testing.assert_array_equal(near.micro, far.micro)
    np.testing.assert_allclose(near.tree[:, 2], far.tree[:, 2], rtol=1e-8)


@pytest.mark.parametrize("n", [50, 301])
def test_the_chain_ends_where_distances_are_not_quite_the_same_both_ways(n):
    rng = np.random.default_rng(0)
    squared = cdist(*[rng.normal(size=(n, 4))] * 2, "sqeuclidean")
    noisy = squared * (1 + 1e-13 * rng.normal(size=squared.shape))
    for method in LINKAGES:
        exact = nearest_neighbor_chain(squared.copy(), method)
        found = nearest_neighbor_chain(noisy.copy(), method)
        np.testing.assert_allclose(found[:, 2], exact[:, 2], rtol=1e-10)


@pytest.mark.parametrize("method", ["average", "ward"])
def test_with_a_micro_state_a_point_two_levels_are_one(method):
    points, _ = grouped(80)
    both = two_level(points, method, 80, nearest_by_products, seed=0)
    exact = cut(link(cdist(points, points, "sqeuclidean"), method), 7)
    assert adjusted_rand_score(both.cut(7), exact) == 1


def test_micro_states_weigh_as_many_points_as_they_hold():
    """Average linkage of groups of a thousand and of one: the mean is over points."""
    places, sizes = np.array([0.0, 1.0, 1.9]), [1000, 1, 1]
    points = np.repeat(places, sizes)[:, None]
    weighed = two_level(points, "average", len(points), nearest_by_products, 0)
    exact = link(cdist(points, points, "sqeuclidean"), "average")
    np.testing.assert_allclose(weighed.tree[-1, 2], exact[-1, 2])
