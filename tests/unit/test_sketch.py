"""Sketches of the bundled latents and of small sets whose answer is known."""

import tracemalloc

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from scapedist.analysis import sketch as module
from scapedist.analysis.sketch import METHODS, make_sketch, quality_sample
from scapedist.errors import InputError


@pytest.fixture(scope="module")
def latents(adk):
    return adk.latents


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def sketch(latents, method):
    return make_sketch(latents, 300, method, seed=3)


def test_the_same_seed_gives_the_same_sketch(latents, method, sketch):
    again = make_sketch(latents, 300, method, seed=3)
    np.testing.assert_array_equal(again.particle, sketch.particle)
    np.testing.assert_array_equal(again.assignment, sketch.assignment)
    other = make_sketch(latents, 300, method, seed=4)
    assert not np.array_equal(other.particle, sketch.particle)


def test_the_latents_are_left_alone(latents, method):
    few = latents[:500].copy()
    make_sketch(few, 20, method)
    np.testing.assert_array_equal(few, latents[:500])


def test_particles_are_distinct_and_stand_for_all(latents, sketch):
    assert sketch.particle.shape == (300,)
    assert sketch.particle.dtype == np.int64
    assert len(np.unique(sketch.particle)) == 300
    assert sketch.assignment.shape == (len(latents),)
    assert sketch.assignment.dtype == np.int32
    assert sketch.occupancy.sum() == len(latents)
    assert sketch.occupancy.min() >= 1
    np.testing.assert_array_equal(sketch.assignment[sketch.particle], np.arange(300))


def test_excluded_particles_are_neither_chosen_nor_counted(latents, method):
    excluded = np.random.default_rng(0).choice(len(latents), 15_000, replace=False)
    made = make_sketch(latents, 300, method, 0, excluded)
    assert not np.isin(made.particle, excluded).any()
    np.testing.assert_array_equal(np.flatnonzero(made.assignment == -1), np.sort(excluded))
    assert made.occupancy.sum() == 5_000
    np.testing.assert_array_equal(made.assignment[made.particle], np.arange(300))


@pytest.mark.parametrize("method", ["uniform", "geometric"])
def test_a_drawn_sketch_has_the_nearest_groups(latents, method):
    some = latents[:3000]
    made = make_sketch(some, 80, method, 1)
    distances = cdist(some.astype(np.float64), some[made.particle].astype(np.float64))
    np.testing.assert_array_equal(made.assignment, distances.argmin(1))
    assert (np.diff(made.particle) > 0).all()


def test_a_kmeans_sketch_has_the_particle_nearest_to_each_center(latents, monkeypatch):
    ends: dict[str, np.ndarray] = {}

    def recorded(points, start, nearest):
        ends["centers"], ends["groups"] = lloyd(points, start, nearest)
        return ends["centers"], ends["groups"]

    lloyd = module.lloyd
    monkeypatch.setattr(module, "lloyd", recorded)
    some = latents[:4000]
    made = make_sketch(some, 60, "kmeans", 0)
    distances = cdist(some.astype(np.float64), ends["centers"])
    np.testing.assert_array_equal(made.assignment, distances.argmin(1))
    np.testing.assert_array_equal(made.assignment, ends["groups"])
    for group in range(60):
        members = np.flatnonzero(made.assignment == group)
        assert made.particle[group] == members[distances[members, group].argmin()]


def test_separate_groups_are_found():
    rng = np.random.default_rng(1)
    places = rng.uniform(-100, 100, (12, 4))
    which = rng.integers(0, 12, 2000)
    points = (places[which] + rng.normal(0, 0.5, (2000, 4))).astype(np.float32)
    made = make_sketch(points, 12)
    assert len(np.unique(which[made.particle])) == 12
    np.testing.assert_array_equal(which[made.particle][made.assignment], which)
    for group in range(12):  # converged: the center is the mean of its group
        members = np.flatnonzero(made.assignment == group)
        center = points[members].astype(np.float64).mean(0)
        nearest = np.linalg.norm(points[members] - center, axis=1).argmin()
        assert made.particle[group] == members[nearest]


@pytest.mark.parametrize("size", [50, 200])
def test_groups_are_as_tight_as_sklearns(latents, size):
    points = latents.astype(np.float64)
    made = make_sketch(latents, size)
    counts = made.occupancy[:, None]
    centers = np.stack([np.bincount(made.assignment, column) for column in points.T], 1) / counts
    inertia = np.square(points - centers[made.assignment]).sum()
    theirs = KMeans(size, n_init=1, max_iter=50, random_state=0).fit(points).inertia_
    assert inertia < 1.05 * theirs


def test_a_geometric_sketch_covers_rare_regions_better(latents):
    """The farthest particle from the sketch (Hausdorff distance) is nearer than with a uniform one.

    What uniform sampling misses is what is rare; geometric sketching is for finding it.
    """
    points = latents.astype(np.float64)

    def farthest(method, seed):
        chosen = points[make_sketch(latents, 300, method, seed).particle]
        return cKDTree(chosen).query(points)[0].max()

    geometric = [farthest("geometric", seed) for seed in range(4)]
    uniform = [farthest("uniform", seed) for seed in range(4)]
    assert max(geometric) < min(uniform)


@pytest.mark.parametrize("size", [5_000, 12_000])
def test_a_large_sketch_needs_no_matrix_of_both(latents, method, size):
    tracemalloc.start()
    made = make_sketch(latents, size, method)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(made.particle)) == size
    assert made.occupancy.min() >= 1
    assert peak < 30 * 2**20  # of 20,000 x 5,000 distances, float32 alone has 380 MiB


def test_as_many_as_there_are(latents, method):
    some = latents[:250]
    made = make_sketch(some, 250, method)
    np.testing.assert_array_equal(np.sort(made.particle), np.arange(250))
    np.testing.assert_array_equal(made.occupancy, 1)


@pytest.mark.parametrize("size", [-3, 0, 1, 251])
def test_impossible_sizes(latents, method, size):
    with pytest.raises(InputError, match=rf"have {size}, there are 250 particles.* 250 or less"):
        make_sketch(latents[:250], size, method)


def test_too_few_after_exclusion(latents, method):
    with pytest.raises(InputError, match="there are 50 particles"):
        make_sketch(latents[:250], 60, method, excluded=np.arange(200))
    with pytest.raises(InputError, match="there are 0 particles"):
        make_sketch(latents[:250], 60, method, excluded=np.arange(250))


def test_an_unknown_method(latents):
    with pytest.raises(InputError, match="kmeans, uniform, geometric. It is 'random'"):
        make_sketch(latents, 10, "random")


def test_fewer_distinct_latents_than_groups(latents):
    repeated = np.repeat(latents[:40], 25, axis=0)
    with pytest.raises(InputError, match="50 groups were asked for, 40 hold particles"):
        make_sketch(repeated, 50)
    made = make_sketch(repeated, 40)  # the way out that the message names
    np.testing.assert_array_equal(np.unique(repeated[made.particle], axis=0).shape, (40, 8))
    np.testing.assert_array_equal(made.occupancy, 25)


def test_drawn_sketches_bear_duplicates(latents):
    repeated = np.repeat(latents[:40], 25, axis=0)
    for drawn in ("uniform", "geometric"):
        made = make_sketch(repeated, 50, drawn)
        assert len(np.unique(made.particle)) == 50
        assert made.occupancy.sum() == 1000
        assert made.occupancy.min() >= 1


def spread_over(n_dimensions, of=64, n=6000):
    """Points (n, of) along few dimensions, with a little noise in all, turned."""
    rng = np.random.default_rng(n_dimensions)
    points = 0.02 * rng.normal(size=(n, of))
    points[:, :n_dimensions] += rng.normal(size=(n, n_dimensions))
    return points @ np.linalg.qr(rng.normal(size=(of, of)))[0]


@pytest.mark.parametrize(
    ("n_dimensions", "of", "by_tree"),
    [(2, 64, True), (3, 64, True), (20, 64, False), (64, 64, False), (2, 12, True),
     (12, 12, False), (8, 8, True)],
)  # fmt: skip
def test_nearest_centers_are_found_the_faster_way(monkeypatch, n_dimensions, of, by_tree):
    points = spread_over(n_dimensions, of)
    centers, taken = points[:2000], []

    def noted(*arrays):
        taken.append("products")
        return products(*arrays)

    products = module.nearest_by_products
    monkeypatch.setattr(module, "nearest_by_products", noted)
    distance, number = module.nearest_center(centers, points)
    assert taken == ([] if by_tree else ["products"])
    wanted = cdist(points, centers)
    np.testing.assert_array_equal(number, wanted.argmin(1))
    np.testing.assert_allclose(distance, wanted.min(1), rtol=1e-9, atol=1e-12)


def test_a_sketch_of_many_dimensions_is_the_same_either_way(monkeypatch):
    latents = spread_over(64).astype(np.float32)
    found = make_sketch(latents, 100, seed=3)
    monkeypatch.setattr(module, "TREE_DIMENSIONS", 64)
    wanted = make_sketch(latents, 100, seed=3)
    np.testing.assert_array_equal(found.particle, wanted.particle)
    np.testing.assert_array_equal(found.assignment, wanted.assignment)


def test_a_quality_sample(sketch):
    group, particle = quality_sample(sketch, 8, 4, seed=0)
    assert group.shape == particle.shape == (32,)
    assert len(np.unique(group)) == 8
    assert (np.diff(group) >= 0).all()
    assert len(np.unique(particle)) == 32
    np.testing.assert_array_equal(sketch.assignment[particle], group)
    assert not np.isin(particle, sketch.particle).any()
    again = quality_sample(sketch, 8, 4, seed=0)
    np.testing.assert_array_equal(again[1], particle)
    assert not np.array_equal(quality_sample(sketch, 8, 4, seed=1)[1], particle)


def test_a_quality_sample_takes_what_small_groups_have():
    assignment = np.array([0, 0, 1, 1, 1, 2], np.int32)
    made = module.Sketch(np.array([1, 3, 5]), assignment)
    group, particle = quality_sample(made, 8, 4, seed=0)
    np.testing.assert_array_equal(group, [0, 1, 1])
    np.testing.assert_array_equal(particle, [0, 2, 4])


def test_no_quality_sample_where_each_stands_for_itself(latents):
    made = make_sketch(latents[:50], 50, "uniform")
    group, particle = quality_sample(made, 8, 4, seed=0)
    assert group.size == particle.size == 0
