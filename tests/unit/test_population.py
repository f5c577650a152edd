"""All particles' coordinates in blocks against numpy, scikit-learn and a known density."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from scapedist.analysis.population import GRID, Population
from scapedist.errors import InputError
from scapedist.plan import batches


def population(points, block=100):
    return Population(lambda start, stop: points[start:stop], batches(len(points), block))


def particles(n=3000, r=5, seed=0):
    """Coordinates (n, r) float32 in three clouds away from the origin."""
    rng = np.random.default_rng(seed)
    centers = np.array([[9, 0, 0, 0, 0], [0, 8, 1, 0, 0], [-3, -3, 6, 1, 0]])[:, :r]
    group = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    return (20 + centers[group] + rng.normal(size=(n, r))).astype(np.float32), group


def test_axes_are_numpys():
    points, _ = particles()
    axes, limits = population(points).axes()
    exact = points.astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(exact.T))[::-1]
    np.testing.assert_allclose(axes.variance, values, rtol=1e-9)
    on_axes = (exact - exact.mean(0)) @ axes.vectors[:3].T
    np.testing.assert_allclose(limits, np.stack([on_axes.min(0), on_axes.max(0)], 1), rtol=1e-6)


def test_groups_are_as_tight_as_those_of_sklearn():
    points, truth = particles()
    found = population(points).groups(3, seed=0)
    exact = KMeans(3, n_init=20, random_state=1).fit(points.astype(np.float64))
    assert found.inertia == pytest.approx(exact.inertia_, rel=1e-6)
    sizes = np.bincount(found.label)
    assert (np.diff(sizes) <= 0).all()
    for group in range(3):
        distance = np.linalg.norm(points - found.center[group], axis=1)
        assert found.medoid[group] == distance.argmin()
        assert found.label[found.medoid[group]] == group
        np.testing.assert_allclose(found.center[group], points[found.label == group].mean(0), 1e-5)


@pytest.mark.parametrize("block", [7, 500, 5000])
def test_blocks_do_not_matter(block):
    points, _ = particles()
    one, other = population(points), population(points, block)
    np.testing.assert_array_equal(other.groups(4, 1).label, one.groups(4, 1).label)
    axes, limits = one.axes()
    densities = [each.densities(axes, limits).density for each in (one, other)]
    np.testing.assert_array_equal(*densities)


def test_particles_beyond_the_sample_are_grouped_too(monkeypatch):
    monkeypatch.setattr("scapedist.analysis.population.SAMPLE", 200)
    points, truth = particles()
    found = population(points).groups(3, seed=0)
    assert len(found.label) == len(points)
    agree = [(found.label[truth == k] == np.bincount(found.label[truth == k]).argmax()).mean()
             for k in range(3)]  # fmt: skip
    assert min(agree) > 0.99


@pytest.mark.parametrize("n", [400, 40_000])
def test_a_density_is_that_of_the_particles(n):
    """Of two Gaussian peaks: no kernel for one peak as wide as both may blur them."""
    rng = np.random.default_rng(3)
    side = rng.choice([-1, 1], n)
    points = np.stack([10 * side + rng.normal(size=n), 2 * rng.normal(size=n)], 1)
    found = population(points.astype(np.float32), 1000)
    axes, limits = found.axes()
    made = found.densities(axes, limits)
    assert made.pair.tolist() == [[0, 1]]
    cells = np.diff(made.edges, axis=1)[:, 0]
    assert made.density[0].sum() * cells.prod() == pytest.approx(1, abs=1e-5)
    middle = (made.edges[:, 1:] + made.edges[:, :-1]) / 2
    x, y = np.meshgrid(*middle, indexing="ij")
    place = np.stack([x, y], -1) @ axes.vectors[:2] + axes.mean
    peaks = sum(np.exp(-((place[..., 0] - c) ** 2) / 2) for c in (-10, 10))
    exact = peaks * np.exp(-(place[..., 1] ** 2) / 8) / (8 * np.pi)
    wrong = np.abs(made.density[0] - exact).sum() * cells.prod()
    assert wrong < (0.45 if n == 400 else 0.12)


@pytest.mark.parametrize(("r", "pairs"), [(1, 0), (2, 1), (3, 3), (5, 3)])
def test_however_many_components(r, pairs):
    points, _ = particles(r=r)
    found = population(points)
    axes, limits = found.axes()
    assert found.densities(axes, limits).density.shape == (pairs, GRID, GRID)
    assert found.groups(2, 0).center.shape == (2, r)


def test_more_groups_than_particles():
    with pytest.raises(InputError, match="from 1 to as many groups"):
        population(particles(5)[0]).groups(6, 0)
