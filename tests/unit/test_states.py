"""States: numbering, medoids and moments against the plain way of computing them."""

import numpy as np
import pytest

from scapedist.analysis.states import medoids, number_by_size, weighted_moments


def in_blocks(squared, size=7):
    """Squared distances as the store gives them, a few rows at a time."""
    for start in range(0, len(squared), size):
        yield start, min(start + size, len(squared)), squared[start : start + size]


def test_numbered_by_particles():
    labels = np.array([0, 0, 1, 2, 2, 2])
    occupancy = np.array([1, 1, 50, 3, 3, 3])
    np.testing.assert_array_equal(number_by_size(labels, occupancy), [2, 2, 0, 1, 1, 1])


def test_equal_states_keep_an_order():
    # equal particles: more volumes first; then whichever comes first
    labels = np.array([1, 0, 0, 2])
    np.testing.assert_array_equal(number_by_size(labels, np.array([4, 2, 2, 4])), [1, 0, 0, 2])


def test_medoids_are_the_nearest_to_the_particles():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 5))
    occupancy = rng.integers(1, 30, 40)
    labels = rng.integers(0, 4, 40)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    found = medoids(labels, occupancy, in_blocks(distances**2))
    for state in range(4):
        members = [i for i in range(40) if labels[i] == state]
        cost = {i: sum(distances[i, j] * occupancy[j] for j in members) for i in members}
        assert found[state] == min(cost, key=cost.__getitem__)


def test_medoids_heed_occupancy():
    squared = np.square(np.subtract.outer(*[np.array([0.0, 1.0, 2.0])] * 2))
    labels = np.zeros(3, int)
    assert medoids(labels, np.array([1, 1, 1]), in_blocks(squared)) == [1]
    assert medoids(labels, np.array([1, 1, 100]), in_blocks(squared)) == [2]


@pytest.mark.parametrize("block", [1, 4, 30])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_moments(block, mean):
    rng = np.random.default_rng(1)
    items = (mean + rng.normal(size=(30, 3, 4, 5))).astype(np.float32)
    weights = rng.integers(1, 100, 30).astype(np.float64)
    exact = np.average(items.astype(np.float64), 0, weights)
    variance = np.average(np.square(items.astype(np.float64) - exact), 0, weights)
    blocks = (items[start : start + block] for start in range(0, 30, block))
    found, deviation = weighted_moments(blocks, weights)
    assert found.dtype == deviation.dtype == np.float32
    np.testing.assert_array_equal(found, exact.astype(np.float32))
    np.testing.assert_allclose(deviation, np.sqrt(variance), rtol=1e-6)


def test_moments_of_any_blocks_are_the_same_bytes():
    items = np.random.default_rng(2).normal(size=(9, 50)).astype(np.float32)
    one, other = (weighted_moments(np.split(items, cut), np.arange(1.0, 10)) for cut in ([3], [5]))
    assert one[0].tobytes() == other[0].tobytes()
    assert one[1].tobytes() == other[1].tobytes()


def test_one_volume_has_no_deviation():
    item = np.random.default_rng(3).normal(size=(1, 4, 4)).astype(np.float32)
    mean, deviation = weighted_moments([item], np.array([17.0]))
    np.testing.assert_array_equal(mean, item[0])
    assert not deviation.any()


def test_moments_of_nothing():
    with pytest.raises(ValueError, match="at least one item"):
        weighted_moments([], np.zeros(0))
